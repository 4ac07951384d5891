"""Seconds and joules of one training iteration in a number system.

The workload is that of the gradient, `trace(jax.grad(loss))(params, batch)`: forward,
input-gradient and weight-gradient products of every layer. Every system runs them as
the FAST array does, see `fmac_array`:

  forward          weight stationary: contraction along rows, outputs along columns
  input gradient   the same cells of the weight: contraction along columns, outputs
                   along rows; no transposed copy is read
  weight gradient  output stationary; both operands stream

which favours systems whose arrays would have to transpose. Products of two activations
run alike, the right operand in the place of the weight; both of their gradients run as
input gradients.

Compute is that of `cost`, but that a mean number of passes need not be whole. Bytes are
those of `dataflow` at the bits that are stored: a group of g values has e bits of
exponent and, for each value and each chunk of c mantissa bits, c + 1 bits, as a chunk
has its own sign: e + g (m / 2) 3 bits for FAST. The sizes of other formats are those of
their values. What is no product (normalization, activation functions, the gradients
that leave for the optimizer) is in float32 in every system.

Everything is jnp on leaves: vmap over the iterations of a run, grad by the machine.
"""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.hardware.machines.number_systems import NumberSystem
from jaxcodesign.hardware.machines.spec import Accelerator
from jaxcodesign.hardware.mapping import dataflow
from jaxcodesign.hardware.mapping.dataflow import Operand, Sizes
from jaxcodesign.hardware.mapping.steps import Steps, covering, operands, steps
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.hardware.pricing.backward_products import (
  BY_RIGHT,
  FORWARD,
  Belongs,
  belongs,
  forward,
  in_place,
)
from jaxcodesign.hardware.pricing.report import CostReport
from jaxcodesign.hardware.simulators.fmac_array import MODES, overhead
from jaxcodesign.numerics.formats.block_float import BlockFloat
from jaxcodesign.numerics.smooth import ceil, exceeds, maximum
from jaxcodesign.programs import precision
from jaxcodesign.programs.fast_plan import Plan
from jaxcodesign.programs.workload import Workload

WEIGHT, ACTIVATION, GRADIENT = range(3)
_FLOAT_BYTES = 4.0
_MODES = {"input_gradient": 1, "weight_gradient": 2}


@tree.pytree
class Passes:
  """What the products of a run ran at, means over the executions of a step or many.

  Rows are the F forward products in order of execution; a product of two activations
  has its right operand as the weight.

  Attributes:
    names: Of the products, as `Gemm.name`.
    bits: [F, 3] mantissa bits of weight, activation and incoming gradient, as stored: 3
      bits take two chunks and count as 4.
    mean: [F, 3] passes of the forward, input-gradient and weight-gradient product; at
      least 1 for those that run, anything for those that do not.
  """

  names: tuple[str, ...] = tree.static()
  bits: jax.Array
  mean: jax.Array


def measured(plan: Plan, telemetry: jax.Array, *, steps: float = 1) -> Passes:
  """The passes of a run that `fast.quantize` has measured.

  Args:
    plan: Of the same function, under a schedule of even bits: the mean of others does
      not tell how many chunks were stored.
    telemetry: [F, 6], see `Plan`.
    steps: Training steps that it sums over; microbatches of a step count as steps.
  """
  executions = jnp.asarray(plan.counts, jnp.float32)[:, None] * steps
  return Passes(
    plan.names, plan.bits(telemetry, steps=steps), telemetry[:, 3:] / executions
  )


def fixed(workload: Workload, bits: int, *, chunk_bits: int = 2) -> Passes:
  """The passes of a run whose every operand had `bits` of mantissa."""
  names = tuple(g.name for g in forward(workload))
  chunks = float(-(-bits // chunk_bits))
  shape = (len(names), 3)
  return Passes(names, jnp.full(shape, chunk_bits * chunks), jnp.full(shape, chunks**2))


def iteration(
  workload: Workload, system: NumberSystem, *, passes: Passes | None = None
) -> CostReport:
  """Prices one iteration.

  Args:
    workload: From `trace(jax.grad(loss))(params, batch)`, without any quantizing.
    system: Leaves of its machine may be traced.
    passes: Of a run of an adaptive system; leaves may be traced, vmap for many steps.
      None prices the largest formats: FAST at 4 bits, 4 passes.

  Returns:
    A `CostReport` whose rows are the products of the workload. The vector unit, inputs
    and results are its `other_` numbers.

  Raises:
    ValueError: If the workload has no product or one of size zero, passes are given to
      a system that has no use for them, their names or shapes are not those of the
      workload's forward products, a product that runs has less than 1, or a backward
      product matches no forward one.
  """
  cost.check_workload(workload)
  a = cost.priceable(system.accelerator)
  kin = belongs(workload)
  if passes is not None:
    _check(workload, kin, system, passes)
  workload = in_place(workload, kin)
  left, right = operands(workload, a.mac, system.policy)
  step = steps(a.mac, left, right, native=not system.policy)
  if passes is not None:
    left, right, step = _as_run(workload, kin, passes, left, right, step)
  if a.mac.kind == "chunk_serial":
    each = zip((left, right), _exponent_bits(workload, system))
    left, right = (_stored(a, x, e, whole=passes is None) for x, e in each)
  products = _products(workload, a, left, right, step)
  return cost.report(workload, a, products, _FLOAT_BYTES)


def _as_run(
  workload: Workload,
  kin: Sequence[Belongs],
  passes: Passes,
  left: Operand,
  right: Operand,
  step: Steps,
) -> tuple[Operand, Operand, Steps]:
  """Operands and steps with the mean bits and passes of a run."""
  lefts, rights, cycles = [], [], []
  for g, (products, kinds) in zip(workload.gemms, kin):
    mean = lambda table, columns, rows=products: jnp.mean(
      jnp.asarray(table)[np.ix_(rows, columns)]
    )
    cycles.append(mean(passes.mean, kinds))
    others = [ACTIVATION if kind == BY_RIGHT else WEIGHT for kind in kinds]
    sides = [ACTIVATION] if FORWARD in kinds else [GRADIENT], others
    # As autodiff writes it, see `policy.operand_formats`.
    if g.role == "weight_gradient" and g.kind != "dot":
      sides = sides[::-1]
    lefts.append(1 + mean(passes.bits, sides[0]))
    rights.append(1 + mean(passes.bits, sides[1]))
  return (
    left._replace(bits=jnp.stack(lefts)),
    right._replace(bits=jnp.stack(rights)),
    step._replace(cycles=jnp.stack(cycles)),
  )


def _check(
  workload: Workload, kin: Sequence[Belongs], system: NumberSystem, passes: Passes
) -> None:
  if not system.adaptive:
    raise ValueError(
      f"passes are given, but the precision of {system.name} is fixed: leave them out"
    )
  names = tuple(g.name for g in forward(workload))
  if passes.names != names:
    unlike = sorted(set(passes.names) ^ set(names)) or ["their order"]
    raise ValueError(
      f"passes are of {len(passes.names)} products, the workload has {len(names)} "
      f"forward products; different: {', '.join(unlike)}; give a row for each, those "
      "that run in another format included"
    )
  for name in ("bits", "mean"):
    if np.shape(getattr(passes, name)) != (len(names), 3):
      raise ValueError(
        f"passes.{name} has shape {np.shape(getattr(passes, name))}: "
        f"{(len(names), 3)} is needed; vmap over steps"
      )
  if not all(tree.is_concrete(x) for x in (passes.bits, passes.mean)):
    return
  for g, (products, kinds) in zip(workload.gemms, kin):
    least = np.min(np.asarray(passes.mean)[np.ix_(products, kinds)])
    if not least >= 1:
      raise ValueError(
        f"product {g.name} ({g.role}) runs and has {least} passes: at least 1"
      )


def _exponent_bits(workload: Workload, system: NumberSystem) -> list[jax.Array]:
  """Bits of shared exponents for each value of left and right operands, [L] each."""
  pairs = precision.assign(system.policy, workload.gemms)
  each = lambda fmt: fmt.exponent / fmt.block if isinstance(fmt, BlockFloat) else 0.0
  return [
    jnp.asarray([each(fmt) for fmt in side], jnp.result_type(float))
    for side in zip(*pairs)
  ]


def _stored(
  a: Accelerator, x: Operand, exponents: jax.Array, *, whole: bool
) -> Operand:
  """The operand in chunks with a sign each, and its share of an exponent.

  A mean over steps need not be a `whole` number of chunks.
  """
  chunks = (x.bits - 1) / (a.mac.weight_bits - 1)
  chunks = jnp.ceil(chunks) if whole else chunks
  return x._replace(bits=chunks * a.mac.weight_bits + exponents)


def _products(
  workload: Workload, a: Accelerator, left: Operand, right: Operand, step: Steps
) -> cost.Products:
  s, t = dataflow.sizes(workload), a.temperature
  mode = np.array([_MODES.get(g.role, 0) for g in workload.gemms])
  by_mode = lambda *each: jnp.select([mode == 0, mode == 1], each[:2], each[2])
  dots, deep = covering(s.k, step.lanes), a.rows * step.lanes
  views = tuple(
    dataclasses.replace(a, dataflow=flow, rows=rows, cols=cols)
    for flow, rows, cols in (
      ("ws", deep, a.cols), ("ws", a.cols, deep), ("os", a.rows, a.cols)
    )
  )  # fmt: skip
  cuts = [_cuts(view, s) for view in views]
  moved = [_moved(*each, s, left, right) for each in zip(views, cuts)]
  sram_bytes, sram_j, dram = (by_mode(*x) for x in zip(*moved))
  up = lambda x, size: ceil(x / size, t)
  folds = by_mode(
    up(s.k, deep) * up(s.n, a.cols),
    up(s.k, a.cols) * up(s.n, deep),
    up(s.m, a.rows) * up(s.n, a.cols),
  )
  lead = [overhead(name, a.rows, a.cols, a.accounting) for name in MODES]
  taken = by_mode(s.m, s.m, dots) * step.cycles + by_mode(*cuts) * by_mode(*lead)
  fetch = dram / a.dram.bandwidth_bytes_s * a.clock_hz
  cycles = maximum(s.runs * folds * taken, fetch, t)
  results = s.runs * s.m * s.n
  busy = results * dots * step.cycles
  work = busy * step.active_j + results * (dots * a.mac.group_j + a.mac.output_j)
  idle = (a.rows * a.cols * cycles - busy) * a.mac.idle_j
  parts = {
    "mac": work + idle,
    "sram": sram_j,
    "dram": dram * a.dram.access_j,
    "leakage": cycles / a.clock_hz * a.leakage_w(),
  }
  return cost.Products(cycles, parts, busy, idle, sram_bytes, dram)


def _cuts(view: Accelerator, s: Sizes) -> jax.Array:
  """Parts that rows are cut into, so that sums which wait for a fold stay on chip."""
  if view.dataflow == "os":
    return jnp.ones_like(s.m)
  waiting = s.m * jnp.minimum(s.n, view.cols) * view.mac.accumulator_bytes
  parts = ceil(waiting / (view.ofmap.capacity_bytes / 2), view.temperature)
  return jnp.where(s.k > view.rows, jnp.minimum(parts, s.m), 1.0)


def _moved(
  view: Accelerator, cuts: jax.Array, s: Sizes, left: Operand, right: Operand
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Bytes through the buffers, their joules, bytes through DRAM, rows being cut."""
  parts = dataclasses.replace(s, m=s.m / cuts, batch=s.batch * cuts)
  once = jnp.ones((), jnp.result_type(float))
  through, joules, dram = dataflow.bytes_moved(view, parts, left, right, once)
  # There, every part fetches its weight; one that fits half of its buffer waits in it.
  t, matrix = view.temperature, s.n * s.k * right.bits / 8
  all_weights = jnp.sum(s.weighted * s.rhs_elements * s.own * right.bits / 8)
  fetched = exceeds(all_weights, view.weight.capacity_bytes, t) * s.weighted
  waits = 1 - exceeds(matrix, view.weight.capacity_bytes / 2, t)
  return through, joules, dram - fetched * waits * s.runs * (cuts - 1) * matrix
