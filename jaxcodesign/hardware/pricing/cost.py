"""Closed-form cost of a workload on an accelerator: seconds, joules, bytes.

Each product [batch, m, k] x [batch, n, k] is cut into folds that fill the array, see
`folding`. A step of time is the cycles that a cell takes for the products it sums at
once (1, or bits, or pairs of terms or chunks, see `steps`). Cycles and buffer reads are
those of SCALE-Sim 3.0.0 exactly, when its accounting is asked for. Bytes are the
concern of `dataflow`. A product waits for the slower of array and DRAM: double
buffering hides the other. The vector unit reads and writes each element of its
operations once, in the width of an activation, for the price of an int32 addition,
whatever the operation. Inputs and outputs of the program cross DRAM once more. Cells
that are clocked and do not multiply, in folds and stalls, cost their idle energy; the
array is gated while the vector unit works.

Everything is jnp on the leaves of the accelerator and the formats: vmap over designs,
grad over any leaf. float32 rounds cycle counts above 2^24; `exact` uses float64.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.hardware.machines.spec import Accelerator
from jaxcodesign.hardware.mapping import dataflow
from jaxcodesign.hardware.mapping.fold_cycles import fold_cycles
from jaxcodesign.hardware.mapping.steps import Steps, covering, operands, steps
from jaxcodesign.hardware.mapping.stored import Stored, executed
from jaxcodesign.hardware.pricing.report import CostReport
from jaxcodesign.hardware.simulators.folding import along
from jaxcodesign.numerics.smooth import ceil, maximum
from jaxcodesign.programs import precision
from jaxcodesign.programs.workload import Gemm, Workload

Scalar = jax.typing.ArrayLike


def evaluate(
  workload: Workload,
  accelerator: Accelerator,
  *,
  policy: precision.Policy = (),
  repeats: Scalar = 1.0,
  stored: Mapping[str, Stored] | None = None,
) -> CostReport:
  """Prices a workload on an accelerator.

  Args:
    workload: From `trace`.
    accelerator: Leaves may be traced or batched by vmap.
    policy: Formats of operands, as given to `quantize`; operands without one have the
      native width of the cell. Budgets, mantissas and the bits of a `Width`, which
      stands for a `Fixed`, may be traced and have derivatives.
    repeats: Executions on new data, one after the other, over which weights that stay
      on chip are fetched once; at least 1. The report is for one execution.
    stored: How sparse weights lie in memory and run, by `Gemm.rhs`; others are dense.
      Zeros that an array executes take its cycles and the energy of idle cells, which
      favours them: the inputs beside them move all the same.

  Returns:
    A `CostReport` of scalars and [L] arrays, L the products of the workload.

  Raises:
    ValueError: If the workload has no product, or one with a size below 1, a rule of
      `policy` decides none, a group of a format does not divide its contraction, a
      budget or `repeats` is below 1, the capacity of a buffer is known and not
      tabulated (traced, it costs NaN), or as `stored.executed`.
  """
  check_workload(workload)
  _check_repeats(repeats)
  a = priceable(accelerator)
  sizes, density, index_bits = executed(workload, a, stored or {})
  left, right = operands(workload, a.mac, policy)
  step = steps(a.mac, left, right, native=not policy)
  repeats = jnp.asarray(repeats, jnp.result_type(float))
  kept = right._replace(bits=right.bits + index_bits)
  sram_bytes, sram_j, dram = dataflow.bytes_moved(
    _deep(a, step.lanes), sizes, left, kept, repeats
  )
  compute = sizes.runs * fold_cycles(
    a, sizes.m, sizes.k, sizes.n, step.cycles, step.lanes
  )
  fetch = dram / a.dram.bandwidth_bytes_s * a.clock_hz
  cycles = maximum(compute, fetch, a.temperature)
  time = cycles / a.clock_hz
  busy, work, idle = _cells(a, sizes, density, step, cycles)
  parts = {
    "mac": work + idle,
    "sram": sram_j,
    "dram": dram * a.dram.access_j,
    "leakage": time * a.leakage_w(),
  }
  products = Products(cycles, parts, busy, idle, sram_bytes, dram)
  return report(workload, a, products, a.mac.activation_bits / 8)


class Products(NamedTuple):
  """What products took, [L] each.

  Attributes:
    cycles: Stalls on DRAM included.
    parts_j: Joules by cause.
    busy: Cell cycles that multiplied.
    idle_j: Joules of cells that did not.
    sram_bytes: Through the buffers.
    dram_bytes: Through DRAM.
  """

  cycles: jax.Array
  parts_j: dict[str, Any]
  busy: jax.Array
  idle_j: jax.Array
  sram_bytes: jax.Array
  dram_bytes: jax.Array


def report(
  workload: Workload, a: Accelerator, products: Products, value_bytes: Any
) -> CostReport:
  """Products, the vector unit and I/O, and their sums.

  Args:
    workload: Of the products, and of all that is none.
    a: Its leaves are floating-point arrays.
    products: What they took.
    value_bytes: Of a value outside of products.
  """
  cycles, parts, busy, idle, sram_bytes, dram = products
  other_cycles, other, io = _vector_and_io(workload, a, value_bytes)
  sums = {name: jnp.sum(part) for name, part in parts.items()}
  zero = jnp.zeros((), jnp.result_type(float))
  sums |= {name: sums.get(name, zero) + joules for name, joules in other.items()}
  time, cells = cycles / a.clock_hz, a.rows * a.cols
  return CostReport(
    names=tuple(g.name for g in workload.gemms),
    product_time_s=time,
    product_energy_j=jnp.sum(jnp.stack(list(parts.values())), axis=0),
    product_cycles=cycles,
    product_utilization=busy / (cells * cycles),
    product_sram_bytes=sram_bytes,
    product_dram_bytes=dram,
    product_parts_j=parts,
    other_time_s=other_cycles / a.clock_hz,
    other_energy_j=jnp.sum(jnp.stack(list(other.values()))),
    parts_j=sums,
    idle_j=jnp.sum(idle),
    time_s=jnp.sum(time) + other_cycles / a.clock_hz,
    energy_j=jnp.sum(jnp.stack(list(sums.values()))),
    cycles=jnp.sum(cycles) + other_cycles,
    utilization=jnp.sum(busy) / (cells * jnp.sum(cycles)),
    traffic_bytes=jnp.sum(dram) + io,
  )


def check_workload(workload: Workload) -> None:
  """Raises a ValueError if there is no product, or one of size zero."""
  if not workload.gemms:
    raise ValueError("the workload has no matrix product: nothing to run on an array")
  for g in workload.gemms:
    _check_sizes(g)


def _check_repeats(repeats: Scalar) -> None:
  if tree.is_concrete(repeats) and not np.all(np.asarray(repeats) >= 1):
    raise ValueError(f"repeats={repeats} executions: at least 1 is needed")


def exact(workload: Workload, accelerator: Accelerator, **options: Any) -> CostReport:
  """`evaluate` in float64, as NumPy numbers: for reports. Leaves must be concrete."""
  with jax.enable_x64(True):
    # A mapping that is no dict would be a leaf.
    if options.get("stored"):
      options["stored"] = dict(options["stored"])
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (accelerator, options))
    report = evaluate(workload, wide[0], **wide[1])
    return jax.tree.map(np.asarray, report)


class Folded(NamedTuple):
  """What the array does for each product, all its runs; [L]."""

  folds: jax.Array
  cycles: jax.Array  # stalls left out
  edges: dataflow.Traffic  # values, of all executions
  columns: jax.Array  # of the contraction as it is executed


def folded(
  workload: Workload,
  accelerator: Accelerator,
  *,
  policy: precision.Policy = (),
  stored: Mapping[str, Stored] | None = None,
) -> Folded:
  """Folds, cycles and accesses of the array by itself, as `evaluate` counts them.

  Arguments and errors are those of `evaluate`.
  """
  a = priceable(accelerator)
  s, _, _ = executed(workload, a, stored or {})
  step = steps(a.mac, *operands(workload, a.mac, policy), native=not policy)
  edges = dataflow.traffic(_deep(a, step.lanes), s)
  high, wide, _ = along(a.dataflow, s.m, covering(s.k, step.lanes), s.n)
  folds = ceil(high / a.rows, a.temperature) * ceil(wide / a.cols, a.temperature)
  cycles = fold_cycles(a, s.m, s.k, s.n, step.cycles, step.lanes)
  total = dataflow.Traffic(*(s.count * x for x in edges))
  return Folded(s.runs * folds, s.runs * cycles, total, s.k)


def priceable(accelerator: Accelerator) -> Accelerator:
  """Leaves as floating-point arrays, but for a temperature that may be known.

  Raises:
    ValueError: If a buffer is none, naming it.
  """
  for name in ("ifmap", "weight", "ofmap"):
    getattr(accelerator, name).check(f"{accelerator.name}.{name}")
  a = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), accelerator)
  return dataclasses.replace(a, temperature=accelerator.temperature)


def _cells(
  a: Accelerator, s: dataflow.Sizes, density: Any, step: Steps, cycles: jax.Array
) -> tuple[jax.Array, Any, Any]:
  """Cell cycles that multiply, joules of these and of the rest, each [L]."""
  results = s.runs * s.m * s.n
  taken = results * covering(s.k, step.lanes)
  busy = density * taken * step.cycles
  idle = (a.rows * a.cols * cycles - busy) * a.mac.idle_j
  work = busy * step.active_j + taken * a.mac.group_j + results * a.mac.output_j
  return busy, work, idle


def _check_sizes(g: Gemm) -> None:
  for name in ("batch", "m", "k", "n", "count"):
    size = getattr(g, name)
    if size < 1:
      raise ValueError(
        f"product {g.name or 'of activations'}: {name}={size}, a size is at least 1; "
        "leave products of empty arrays out of the workload"
      )


def _deep(a: Accelerator, lanes: Any) -> Accelerator:
  """The array as deep as it looks to a contraction that lies along its rows."""
  if a.dataflow == "os" or (isinstance(lanes, int) and lanes == 1):
    return a
  return dataclasses.replace(a, rows=a.rows * lanes)


def _vector_and_io(
  workload: Workload, a: Accelerator, wide: Any
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
  """Cycles, joules by cause, and DRAM bytes of all that is no product."""
  elements = jnp.asarray(
    float(sum(v.elements * v.count for v in workload.vector_ops)),
    jnp.result_type(float),
  )
  access = a.ofmap.read_energy_j() + a.ofmap.write_energy_j()
  io = jnp.asarray(workload.io_elements * wide)
  cycles = elements / a.vector.lanes + io / a.dram.bandwidth_bytes_s * a.clock_hz
  joules = {
    "vector": elements * (a.vector.energy_j + access * wide),
    "dram": io * a.dram.access_j,
    "leakage": cycles / a.clock_hz * a.leakage_w(),
  }
  return cycles, joules, io
