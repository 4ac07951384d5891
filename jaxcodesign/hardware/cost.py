"""Closed-form cost of a workload on an accelerator: seconds, joules, bytes.

Each product [batch, m, k] x [batch, n, k] is cut into folds that fill the array, see
`folding`. A step of time is the cycles that one multiply-accumulate takes (1, or bits,
or pairs of terms). Cycles and buffer reads are those of SCALE-Sim 3.0.0 exactly, when
its accounting is asked for. Bytes are the concern of `dataflow`. A product waits for
the slower of array and DRAM: double buffering hides the other. The vector unit reads
and writes each element of its operations once, in the width of an activation, for the
price of an int32 addition, whatever the operation. Inputs and outputs of the program
cross DRAM once more.

Everything is jnp on the leaves of the accelerator and the formats: vmap over designs,
grad over any leaf. float32 rounds cycle counts above 2^24; `exact` uses float64.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.hardware import dataflow
from jaxcodesign.hardware.dataflow import Operand
from jaxcodesign.hardware.folding import along, fill
from jaxcodesign.hardware.smooth import ceil, maximum
from jaxcodesign.hardware.spec import Accelerator, Mac
from jaxcodesign.numerics.formats import Format
from jaxcodesign.numerics.terms import most_terms
from jaxcodesign.programs import precision
from jaxcodesign.programs.workload import Gemm, Workload

Scalar = jax.typing.ArrayLike


@tree.pytree
class CostReport:
  """What a workload costs. Totals are sums over products, the vector unit and I/O.

  The rows of two workloads add up to those of both together, but for weights that fit
  the weight buffer only apart.

  Attributes:
    names: Products, in order.
    product_time_s: [L] seconds.
    product_energy_j: [L] joules, leakage included.
    product_cycles: [L] cycles, stalls on DRAM included.
    product_utilization: [L] cell cycles that multiplied over those that passed.
    product_sram_bytes: [L] bytes into and out of the three buffers.
    product_dram_bytes: [L] bytes to and from DRAM.
    other_time_s: Seconds of the vector unit and of the program's inputs and outputs.
    other_energy_j: Joules of these.
    parts_j: Energy by cause: "mac", "sram", "dram", "leakage", "vector".
    time_s: Total seconds.
    energy_j: Total joules.
    cycles: Total cycles.
    utilization: Of the array while it runs products.
    traffic_bytes: Total bytes to and from DRAM.
  """

  names: tuple[str, ...] = tree.static()
  product_time_s: jax.Array
  product_energy_j: jax.Array
  product_cycles: jax.Array
  product_utilization: jax.Array
  product_sram_bytes: jax.Array
  product_dram_bytes: jax.Array
  other_time_s: jax.Array
  other_energy_j: jax.Array
  parts_j: dict[str, jax.Array]
  time_s: jax.Array
  energy_j: jax.Array
  cycles: jax.Array
  utilization: jax.Array
  traffic_bytes: jax.Array

  @property
  def edp_js(self) -> jax.Array:
    """Energy-delay product in joule seconds."""
    return self.energy_j * self.time_s


def evaluate(
  workload: Workload,
  accelerator: Accelerator,
  *,
  policy: precision.Policy = (),
  repeats: Scalar = 1.0,
) -> CostReport:
  """Prices a workload on an accelerator.

  Args:
    workload: From `trace`.
    accelerator: Leaves may be traced or batched by vmap.
    policy: Formats of operands, as given to `quantize`; operands without one have the
      native width of the cell.
    repeats: Executions on new data, one after the other, over which weights that stay
      on chip are fetched once; at least 1. The report is for one execution.

  Returns:
    A `CostReport` of scalars and [L] arrays, L the products of the workload.

  Raises:
    ValueError: If the workload has no product, a rule of `policy` decides none, a group
      of a format does not divide its contraction, or a budget or `repeats` is below 1.
  """
  if not workload.gemms:
    raise ValueError("the workload has no matrix product: nothing to run on an array")
  if tree.is_concrete(repeats) and not np.all(np.asarray(repeats) >= 1):
    raise ValueError(f"repeats={repeats} executions: at least 1 is needed")
  number = lambda x: jnp.asarray(x, jnp.result_type(float))
  a: Accelerator = jax.tree.map(number, accelerator)
  a = dataclasses.replace(a, temperature=accelerator.temperature)  # may be known
  sizes = dataflow.sizes(workload)
  left, right = _operands(workload, a.mac, policy)
  step = _cycles_per_mac(a.mac, left, right)
  sram_bytes, sram_j, dram = dataflow.bytes_moved(
    a, sizes, left, right, number(repeats)
  )
  compute = sizes.runs * fold_cycles(a, sizes.m, sizes.k, sizes.n, step)
  fetch = dram / a.dram.bandwidth_bytes_s * a.clock_hz
  cycles = maximum(compute, fetch, a.temperature)
  time = cycles / a.clock_hz
  busy = sizes.macs * step
  parts = {
    "mac": busy * a.mac.energy_j,
    "sram": sram_j,
    "dram": dram * a.dram.access_j,
    "leakage": time * a.leakage_w(),
  }
  other_cycles, other, io = _vector_and_io(workload, a)
  sums = {name: jnp.sum(part) for name, part in parts.items()}
  sums |= {name: sums.get(name, number(0)) + joules for name, joules in other.items()}
  cells = a.rows * a.cols
  return CostReport(
    names=tuple(g.name for g in workload.gemms),
    product_time_s=time,
    product_energy_j=jnp.sum(jnp.stack(list(parts.values())), axis=0),
    product_cycles=cycles,
    product_utilization=busy / (cells * cycles),
    product_sram_bytes=sram_bytes,
    product_dram_bytes=dram,
    other_time_s=other_cycles / a.clock_hz,
    other_energy_j=jnp.sum(jnp.stack(list(other.values()))),
    parts_j=sums,
    time_s=jnp.sum(time) + other_cycles / a.clock_hz,
    energy_j=jnp.sum(jnp.stack(list(sums.values()))),
    cycles=jnp.sum(cycles) + other_cycles,
    utilization=jnp.sum(busy) / (cells * jnp.sum(cycles)),
    traffic_bytes=jnp.sum(dram) + io,
  )


def exact(workload: Workload, accelerator: Accelerator, **options: Any) -> CostReport:
  """`evaluate` in float64, as NumPy numbers: for reports. Leaves must be concrete."""
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (accelerator, options))
    report = evaluate(workload, wide[0], **wide[1])
    return jax.tree.map(np.asarray, report)


def fold_cycles(a: Accelerator, m: Any, k: Any, n: Any, step: Any) -> jax.Array:
  """Cycles of all folds of products [m, k] x [n, k].

  Args:
    a: Its rows R, cols C, dataflow, accounting and temperature count.
    m: [...] sizes, likewise k and n.
    k: Contraction.
    n: Columns of the result.
    step: Cycles of one multiply-accumulate, [...].

  `folding` has what a fold takes beyond its steps of time, in both accountings.
  Both were measured on bit-parallel cells. That a serial cell passes operands on in one
  cycle, and so fills and drains in as many, is an assumption.
  """
  rows, cols, time = along(a.dataflow, m, k, n)
  folds = ceil(rows / a.rows, a.temperature) * ceil(cols / a.cols, a.temperature)
  return folds * (time * step + fill(a.dataflow, a.accounting, a.rows, a.cols))


def _operands(
  workload: Workload, mac: Mac, policy: precision.Policy
) -> tuple[Operand, Operand]:
  pairs = precision.assign(policy, workload.gemms)
  number = lambda x: jnp.asarray(x, jnp.result_type(float))
  bits = lambda fmt, native: number(native if fmt is None else fmt.bits_per_value())
  # Without a format: any int8, whose magnitude of 7 bits has at most 4 terms.
  native = most_terms(7)
  lefts, rights = [], []
  for (left, right), g in zip(pairs, workload.gemms):
    _check_groups(left, right, g)
    lefts.append(
      (bits(left, mac.activation_bits), left.most_terms() if left else native)
    )
    per_value = right and (right.terms_per_value() if g.rhs else right.most_terms())
    width = mac.weight_bits if g.rhs else mac.activation_bits
    rights.append((bits(right, width), native if right is None else per_value))
  left, right = (
    Operand(*(jnp.stack([number(x) for x in column]) for column in zip(*side)))
    for side in (lefts, rights)
  )
  return left, right


def _check_groups(left: Format | None, right: Format | None, g: Gemm) -> None:
  """Refuses what `quantize` would refuse."""
  for fmt, length, side in ((left, g.k // g.window, "left"), (right, g.k, "right")):
    try:
      if fmt is not None:
        fmt.check(length)
    except ValueError as error:
      raise ValueError(f"{g.name}, {side} operand: {error}") from error


def _cycles_per_mac(mac: Mac, left: Operand, right: Operand) -> jax.Array:
  if mac.kind == "term_serial":
    return left.terms * right.terms
  # Hard at any temperature: an operand that fits the cell exactly is the usual case.
  passes = jnp.ceil(right.bits / mac.weight_bits)
  if mac.kind == "bit_serial":
    return left.bits * passes
  return passes * jnp.ceil(left.bits / mac.activation_bits)


def _vector_and_io(
  workload: Workload, a: Accelerator
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
  """Cycles, joules by cause, and DRAM bytes of all that is no product."""
  elements = jnp.asarray(
    float(sum(v.elements * v.count for v in workload.vector_ops)),
    jnp.result_type(float),
  )
  wide = a.mac.activation_bits / 8
  access = a.ofmap.read_energy_j() + a.ofmap.write_energy_j()
  io = jnp.asarray(workload.io_elements * wide)
  cycles = elements / a.vector.lanes + io / a.dram.bandwidth_bytes_s * a.clock_hz
  joules = {
    "vector": elements * (a.vector.energy_j + access * wide),
    "dram": io * a.dram.access_j,
    "leakage": cycles / a.clock_hz * a.leakage_w(),
  }
  return cycles, joules, io
