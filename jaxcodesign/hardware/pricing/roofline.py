"""A roofline of a traced program: how long a chip takes at best, and what bounds it.

Each product takes the longer of two times: its operations at the peak of its formats,
and its bytes, both operands and the result once, through the memory. Elementwise work
is taken to be fused into the products. A share of the peak and of the bandwidth that is
known to be reachable can be given.

Reference: Williams, Waterman, Patterson. "Roofline", CACM 2009.
"""

from typing import NamedTuple

import jax
import numpy as np

from jaxcodesign import tree
from jaxcodesign.hardware.machines.chips import BITS, Chip, check_format
from jaxcodesign.hardware.mapping import dataflow
from jaxcodesign.programs.workload import Workload


@tree.pytree
class Roofline:
  """Times of the products of a program on a chip; arrays are float64 [L].

  Attributes:
    names: Products, in order.
    chip: The chip.
    weights: Format of weights.
    activations: Format of everything else.
    operations: 2 a multiply-accumulate.
    bytes_moved: To and from memory.
    compute_s: At the peak.
    memory_s: At the full bandwidth.
  """

  names: tuple[str, ...] = tree.static()
  chip: Chip
  weights: str = tree.static()
  activations: str = tree.static()
  operations: np.ndarray
  bytes_moved: np.ndarray
  compute_s: np.ndarray
  memory_s: np.ndarray

  @property
  def time_s(self) -> float:
    """Seconds of all products, one after the other."""
    return float(np.sum(np.maximum(self.compute_s, self.memory_s)))

  @property
  def intensity(self) -> np.ndarray:
    """Operations a byte, [L]."""
    return self.operations / self.bytes_moved

  @property
  def bound(self) -> list[str]:
    """Which time is the longer for each product: "compute" or "memory"."""
    slower = self.compute_s >= self.memory_s
    return ["compute" if x else "memory" for x in slower]

  def table(self) -> str:
    """One product a line, the longest first, and the sum."""
    lines = [f"{'product':32} {'GOP':>9} {'MB':>9} {'op/B':>7} {'us':>9}  bound"]
    times = np.maximum(self.compute_s, self.memory_s)
    for i in np.argsort(-times, kind="stable"):
      lines.append(
        f"{self.names[i][:32]:32} {self.operations[i] / 1e9:9.3f} "
        f"{self.bytes_moved[i] / 1e6:9.3f} {self.intensity[i]:7.1f} "
        f"{times[i] * 1e6:9.2f}  {self.bound[i]}"
      )
    share = float(np.sum(self.operations)) / self.time_s
    lines.append(
      f"{self.chip.name}: {self.time_s * 1e3:.3f} ms, {share / 1e12:.1f} Top/s, "
      f"{self.weights} weights, {self.activations} activations"
    )
    return "\n".join(lines)


class Footprint(NamedTuple):
  """Bytes that inference keeps in memory."""

  weights: float
  cache: float

  @property
  def total(self) -> float:
    """Both together."""
    return self.weights + self.cache


class TrainingCost(NamedTuple):
  """Of a training run."""

  operations: float
  chip_hours: float
  days: float
  dollars: float


def roofline(
  workload: Workload,
  chip: Chip,
  *,
  weights: str = "bf16",
  activations: str = "bf16",
  compute_share: float = 1.0,
  bandwidth_share: float = 1.0,
) -> Roofline:
  """Bounds the time of a program on a chip.

  Args:
    workload: From `trace`.
    chip: From `chips`.
    weights: Format of operands that are parameters, one of `chips.BITS`.
    activations: Format of all other operands and of results.
    compute_share: Reachable share of the peak, in (0, 1].
    bandwidth_share: Reachable share of the bandwidth, in (0, 1].

  Raises:
    ValueError: If a format or a share is none, no unit of the chip holds the formats,
      or the workload has no product or one of size zero.
  """
  if not workload.gemms:
    raise ValueError("the workload has no matrix product: nothing to bound")
  for g in workload.gemms:
    if not g.macs:
      raise ValueError(
        f"product {g.name!r} [{g.batch}, {g.m}, {g.k}] x [{g.batch}, {g.n}, {g.k}] "
        f"times {g.count} multiplies nothing: leave it out of the program"
      )
  for name, share in (("compute", compute_share), ("bandwidth", bandwidth_share)):
    if not 0 < share <= 1:
      raise ValueError(f"{name}_share={share} is not in (0, 1]")
  weighted = [bool(g.rhs) for g in workload.gemms]
  peaks = {
    known: float(chip.peak(activations, weights if known else activations))
    for known in set(weighted)
  }
  with jax.enable_x64(True):
    s = jax.tree.map(np.asarray, vars(dataflow.sizes(workload)))
  wide, narrow = BITS[activations] / 8, BITS[weights] / 8
  operations = np.asarray([2.0 * g.macs for g in workload.gemms])
  right = s["rhs_elements"] * np.where(weighted, narrow, wide)
  moved = s["count"] * (s["lhs_elements"] + s["out_elements"]) * wide + right
  return Roofline(
    names=tuple(g.name for g in workload.gemms),
    chip=chip,
    weights=weights,
    activations=activations,
    operations=operations,
    bytes_moved=moved,
    compute_s=operations / (compute_share * np.asarray([peaks[x] for x in weighted])),
    memory_s=moved / (bandwidth_share * float(np.asarray(chip.bandwidth_bytes_s))),
  )


def footprint(
  workload: Workload,
  *,
  weights: str = "bf16",
  cache: str = "bf16",
  cached: tuple[str, ...] = ("*/k", "*/v"),
) -> Footprint:
  """Bytes of the weights and of the keys and values of a language model's context.

  Args:
    workload: Trace of the model over a whole context.
    weights: Format of the parameters.
    cache: Format of keys and values.
    cached: Globs of the weights whose products are kept.

  Raises:
    ValueError: If a format is unknown.
  """
  for name in (weights, cache):
    check_format(name)
  names = sorted({g.rhs for g in workload.gemms if g.rhs})
  kept = {name for pattern in cached for name in tree.match(pattern, names)}
  values = sum(g.batch * g.m * g.n * g.count for g in workload.gemms if g.rhs in kept)
  return Footprint(workload.parameters * BITS[weights] / 8, values * BITS[cache] / 8)


def training_operations(workload: Workload, samples: int) -> float:
  """Operations of training on one sample: 6 a multiply-accumulate of the forward pass.

  Forward 2, and as much again for the gradients of each operand. Counted from the
  products, so that a weight used at many places counts at each, as in a convolution.
  That the first layer needs no gradient of its input is not taken off.

  Args:
    workload: Trace of the forward pass.
    samples: Images, or tokens, in the trace; the cost of attention is that of its
      context.

  Raises:
    ValueError: If the workload is a backward pass or empty, or `samples` is below 1.
  """
  if samples < 1:
    raise ValueError(f"samples={samples}: the trace has one at least")
  if any(g.role != "forward" for g in workload.gemms):
    raise ValueError("the workload has backward products: trace the forward pass alone")
  if not workload.macs:
    raise ValueError("the workload multiplies nothing: no cost follows from it")
  return 6.0 * workload.macs / samples


def language_operations(parameters: float) -> float:
  """Operations of training a dense language model on one token, 6 a parameter.

  For a model of which no more is known. Attention, which grows with the context, is
  left out, and an embedding counts as if it multiplied. Wrong where weights are used
  at many places: use `training_operations` for convolutions.
  """
  return 6.0 * parameters


def training_cost(
  operations_per_sample: float,
  samples: float,
  chip: Chip,
  *,
  chips: int = 1,
  utilization: float = 0.4,
  dollars_per_hour: float = 2.0,
  precision: str = "bf16",
) -> TrainingCost:
  """Chip-hours and dollars of a training run.

  Args:
    operations_per_sample: From `training_operations` or `language_operations`.
    samples: Images or tokens seen in training.
    chip: Peak is that of `precision`.
    chips: At once.
    utilization: Share of the peak that the run sustains, in (0, 1].
    dollars_per_hour: Of one chip; a rent, not a source.
    precision: Format of the products.

  Raises:
    ValueError: If a number is not positive and finite, the price negative, or the
      utilization above 1.
  """
  numbers = {
    "operations_per_sample": operations_per_sample,
    "samples": samples,
    "chips": chips,
  }
  for name, number in numbers.items():
    if not (number > 0 and np.isfinite(number)):
      raise ValueError(f"{name}={number} must be positive and finite")
  if not 0 < utilization <= 1:
    raise ValueError(f"utilization={utilization} is not in (0, 1]")
  if not (dollars_per_hour >= 0 and np.isfinite(dollars_per_hour)):
    raise ValueError(f"dollars_per_hour={dollars_per_hour} is no price")
  operations = float(operations_per_sample) * samples
  rate = float(np.asarray(chip.peak(precision, precision))) * utilization
  hours = operations / rate / 3600
  return TrainingCost(operations, hours, hours / chips / 24, hours * dollars_per_hour)
