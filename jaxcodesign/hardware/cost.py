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

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.hardware import dataflow, synthesis
from jaxcodesign.hardware.cost_report import CostReport
from jaxcodesign.hardware.dataflow import Operand
from jaxcodesign.hardware.folding import along, fill
from jaxcodesign.hardware.smooth import ceil, maximum
from jaxcodesign.hardware.spec import Accelerator, Mac
from jaxcodesign.numerics.formats import BlockFloat, Format
from jaxcodesign.numerics.rounding import straight_through, straight_through_ceil
from jaxcodesign.numerics.terms import most_terms
from jaxcodesign.programs import precision
from jaxcodesign.programs.workload import Gemm, Workload

Scalar = jax.typing.ArrayLike


class Steps(NamedTuple):
  """How a cell takes the multiply-accumulates of a product, [L].

  Attributes:
    cycles: Of one step.
    lanes: Multiply-accumulates of one step, neighbours along the contraction.
    active_j: Joules of an active cycle.
  """

  cycles: jax.Array
  lanes: Any
  active_j: Any


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
      native width of the cell. Budgets, mantissas and the bits of a `Width`, which
      stands for a `Fixed`, may be traced and have derivatives.
    repeats: Executions on new data, one after the other, over which weights that stay
      on chip are fetched once; at least 1. The report is for one execution.

  Returns:
    A `CostReport` of scalars and [L] arrays, L the products of the workload.

  Raises:
    ValueError: If the workload has no product, or one with a size below 1, a rule of
      `policy` decides none, a group of a format does not divide its contraction, a
      budget or `repeats` is below 1, or the capacity of a buffer is known and not
      tabulated (traced, it costs NaN).
  """
  _check(workload, repeats)
  a = _priceable(accelerator)
  sizes = dataflow.sizes(workload)
  left, right = _operands(workload, a.mac, policy)
  step = steps(a.mac, left, right, native=not policy)
  repeats = jnp.asarray(repeats, jnp.result_type(float))
  sram_bytes, sram_j, dram = dataflow.bytes_moved(
    _deep(a, step.lanes), sizes, left, right, repeats
  )
  compute = sizes.runs * fold_cycles(
    a, sizes.m, sizes.k, sizes.n, step.cycles, step.lanes
  )
  fetch = dram / a.dram.bandwidth_bytes_s * a.clock_hz
  cycles = maximum(compute, fetch, a.temperature)
  time = cycles / a.clock_hz
  busy, work, idle = _cells(a, sizes, step, cycles)
  parts = {
    "mac": work + idle,
    "sram": sram_j,
    "dram": dram * a.dram.access_j,
    "leakage": time * a.leakage_w(),
  }
  return _report(workload, a, cycles, parts, busy, idle, sram_bytes, dram)


def _report(
  workload: Workload,
  a: Accelerator,
  cycles: jax.Array,
  parts: dict[str, Any],
  busy: jax.Array,
  idle: jax.Array,
  sram_bytes: jax.Array,
  dram: jax.Array,
) -> CostReport:
  """Products [L], the vector unit and I/O, and their sums."""
  other_cycles, other, io = _vector_and_io(workload, a)
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


def _check(workload: Workload, repeats: Scalar) -> None:
  if not workload.gemms:
    raise ValueError("the workload has no matrix product: nothing to run on an array")
  for g in workload.gemms:
    _check_sizes(g)
  if tree.is_concrete(repeats) and not np.all(np.asarray(repeats) >= 1):
    raise ValueError(f"repeats={repeats} executions: at least 1 is needed")


def exact(workload: Workload, accelerator: Accelerator, **options: Any) -> CostReport:
  """`evaluate` in float64, as NumPy numbers: for reports. Leaves must be concrete."""
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (accelerator, options))
    report = evaluate(workload, wide[0], **wide[1])
    return jax.tree.map(np.asarray, report)


class Folded(NamedTuple):
  """What the array does for each product, all its runs; [L]."""

  folds: jax.Array
  cycles: jax.Array  # stalls left out
  edges: dataflow.Traffic  # values, of all executions


def folded(
  workload: Workload, accelerator: Accelerator, *, policy: precision.Policy = ()
) -> Folded:
  """Folds, cycles and accesses of the array by itself, as `evaluate` counts them.

  Arguments and errors are those of `evaluate`.
  """
  a, s = _priceable(accelerator), dataflow.sizes(workload)
  step = steps(a.mac, *_operands(workload, a.mac, policy), native=not policy)
  edges = dataflow.traffic(_deep(a, step.lanes), s)
  high, wide, _ = along(a.dataflow, s.m, _covering(s.k, step.lanes), s.n)
  folds = ceil(high / a.rows, a.temperature) * ceil(wide / a.cols, a.temperature)
  cycles = fold_cycles(a, s.m, s.k, s.n, step.cycles, step.lanes)
  total = dataflow.Traffic(*(s.count * x for x in edges))
  return Folded(s.runs * folds, s.runs * cycles, total)


def fold_cycles(
  a: Accelerator, m: Any, k: Any, n: Any, step: Any, lanes: Any = 1
) -> jax.Array:
  """Cycles of all folds of products [m, k] x [n, k].

  Args:
    a: Its rows R, cols C, dataflow, accounting and temperature count.
    m: [...] sizes, likewise k and n.
    k: Contraction.
    n: Columns of the result.
    step: Cycles of one step of a cell, [...], see `steps`.
    lanes: Multiply-accumulates of a step: the contraction is ceil(k / lanes) steps.

  `folding` has what a fold takes beyond its steps of time, in both accountings.
  Both were measured on bit-parallel cells. That a serial cell passes operands on in one
  cycle, and so fills and drains in as many, is an assumption.
  """
  high, wide, time = along(a.dataflow, m, _covering(k, lanes), n)
  # In floating point: sums of small integers overflow.
  rows, cols = (jnp.asarray(x, jnp.result_type(float)) for x in (a.rows, a.cols))
  folds = ceil(high / rows, a.temperature) * ceil(wide / cols, a.temperature)
  return folds * (time * step + fill(a.dataflow, a.accounting, rows, cols))


def steps(mac: Mac, left: Operand, right: Operand, *, native: bool = False) -> Steps:
  """Cycles, width and energy of a step, for operands of some bits and terms.

  Args:
    mac: The cell.
    left: Activations.
    right: Weights.
    native: The operands are known to be as wide as the cell.

  The numbers of passes, chunks, fused cells and terms are whole at any temperature: an
  operand that fits the cell exactly is the usual case. Their derivatives are those of
  the line through full ones, a secant of the steps: 1 / W passes a bit beyond the W
  bits of the cell and none below, where one pass is the least, half as much at W. Of
  operands narrower than a parallel cell switched energy is smooth.
  """
  if mac.kind == "term_serial":
    cycles = left.terms * right.terms
  elif mac.kind == "chunk_serial":
    cycles = _chunks(right.bits, mac.weight_bits) * _chunks(
      left.bits, mac.activation_bits
    )
  else:
    over_weight = _passes(right.bits, mac.weight_bits)
    over_image = _passes(left.bits, mac.activation_bits)
    if mac.kind == "bit_serial":
      cycles = left.bits * over_weight
    else:
      cycles = over_weight * over_image
      if mac.kind == "parallel" and not native:
        products = right.bits / over_weight * left.bits / over_image
        full = jnp.sqrt(mac.weight_bits * mac.activation_bits)
        used = synthesis.share(jnp.sqrt(products), full)
        return Steps(cycles, mac.lanes, mac.idle_j + mac.dynamic_j() * used)
  lanes = mac.lanes
  if mac.kind == "fusible":
    lanes *= _fused(right.bits, mac.weight_bits) * _fused(
      left.bits, mac.activation_bits
    )
  return Steps(cycles, lanes, mac.energy_j)


def _priceable(accelerator: Accelerator) -> Accelerator:
  """Leaves as floating-point arrays, but for a temperature that may be known."""
  for name in ("ifmap", "weight", "ofmap"):
    getattr(accelerator, name).check(f"{accelerator.name}.{name}")
  a = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), accelerator)
  return dataclasses.replace(a, temperature=accelerator.temperature)


def _cells(
  a: Accelerator, s: dataflow.Sizes, step: Steps, cycles: jax.Array
) -> tuple[jax.Array, Any, Any]:
  """Cell cycles that multiply, joules of these and of the rest, each [L]."""
  results = s.runs * s.m * s.n
  taken = results * _covering(s.k, step.lanes)
  busy = taken * step.cycles
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


def _passes(bits: Any, width: Any) -> jax.Array:
  """Passes of a cell of `width` over operands of `bits`."""
  x = bits / width
  return straight_through(jnp.maximum(x, 1.0), jnp.maximum(jnp.ceil(x), 1.0))


def _chunks(bits: Any, width: Any) -> jax.Array:
  """Chunks of the magnitude, each of a sign and `width` - 1 bits."""
  return straight_through_ceil((bits - 1) / (width - 1))


def _fused(bits: Any, width: Any) -> jax.Array:
  """Multipliers of `bits` that one of `width` splits into, along one operand."""
  x = width / jnp.maximum(bits, 2.0)
  return straight_through(jnp.maximum(x, 1.0), jnp.maximum(jnp.floor(x), 1.0))


def _covering(k: Any, lanes: Any) -> Any:
  """Steps that cover a contraction."""
  one = isinstance(lanes, int) and lanes == 1
  return k if one else straight_through_ceil(k / lanes)


def _deep(a: Accelerator, lanes: Any) -> Accelerator:
  """The array as deep as it looks to a contraction that lies along its rows."""
  if a.dataflow == "os" or (isinstance(lanes, int) and lanes == 1):
    return a
  return dataclasses.replace(a, rows=a.rows * lanes)


def _operands(
  workload: Workload, mac: Mac, policy: precision.Policy
) -> tuple[Operand, Operand]:
  pairs = precision.assign(policy, workload.gemms)
  number = lambda x: jnp.asarray(x, jnp.result_type(float))
  bits = lambda fmt, native: number(native if fmt is None else _bits(fmt))
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


def _bits(fmt: Format) -> jax.Array:
  """Bits of a value; a mantissa, which is a leaf, has the derivative of a bit."""
  if isinstance(fmt, BlockFloat):
    bits = 1 + jnp.asarray(fmt.mantissa, jnp.result_type(float))
    return straight_through(bits, jnp.floor(bits))
  return jnp.asarray(fmt.bits_per_value(), jnp.result_type(float))


def _check_groups(left: Format | None, right: Format | None, g: Gemm) -> None:
  """Refuses what `quantize` would refuse."""
  for fmt, length, side in ((left, g.k // g.window, "left"), (right, g.k, "right")):
    try:
      if fmt is not None:
        fmt.check(length)
    except ValueError as error:
      raise ValueError(f"{g.name}, {side} operand: {error}") from error


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
