"""What a program asks of a machine: its matrix products, and everything else.

`trace(fn)(params, *args)` walks the jaxpr of `fn` with trip counts multiplied in and
returns a `Workload`. Nothing is executed; arguments may be ShapeDtypeStructs. A product
is named by the parameter leaf that flows into it (see `provenance`), a weight gradient
by the leaf of the output it ends in, so gradients trace as well: the backward pass is
two more products of every layer.

What cannot be counted is refused with the user's file and line, never skipped.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any, Literal, NamedTuple

import jax

from jaxcodesign import tree
from jaxcodesign.programs import (
  jaxprs,
  matrix_view,
  products,
  provenance,
  refused,
)
from jaxcodesign.programs.jaxprs import Program, Step, Unsupported
from jaxcodesign.programs.provenance import Origin

Role = Literal["forward", "input_gradient", "weight_gradient", "recompute"]

# Views: no arithmetic and no traffic of their own on any machine.
_VIEWS = {
  "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "stop_gradient", "copy",
  "copy_p", "pvary", "pcast", "sharding_constraint", "mesh_cast", "reshard", "empty",
  "empty2", "optimization_barrier", "split", "name", "debug_callback", "debug_print",
}  # fmt: skip
# Reads of a part: what is returned and where it is; the rest of the array stays put.
_READS = {"gather", "slice", "dynamic_slice"}


@tree.pytree
class Gemm:
  """`count` times `batch` products [m, k] @ [k, n], the contraction last in both.

  Attributes:
    lhs: Leaf that flows into the left operand, "" for an activation.
    rhs: Leaf that flows into the right operand; the weight, if there is one.
    batch: Independent products: attention heads, feature groups.
    m: Rows of the left operand: pixels, tokens.
    k: Length of the contraction.
    n: Rows of the right operand: filters, output features.
    count: Executions: the product of the trip counts around it.
    kind: "dot", "conv" or "transposed_conv".
    role: "forward", "input_gradient", "weight_gradient" or "recompute".
    output: Parameter whose gradient this product computes, "" if none.
    lhs_elements: Distinct values of the left operand of all batches: fewer than
      batch m k for a convolution, whose windows overlap, and for copies that a
      broadcast made.
    rhs_elements: Distinct values of the right operand over all `count` executions: a
      weight that a loop uses again counts once, one that a scan slices counts all.
    out_elements: Values that are written: fewer than batch m n for a transposed
      convolution, whose products overlap.
    window: Taps of a convolution's kernel; k is window times channels.
    dtype: Of the left operand.
    custom: Whether it stands inside a function with a derivative of its own.
    source: `file:line` of the user's code.
    leaf_elements: Values of the whole leaf that `rhs` names, 0 if not known: products
      that use the same values of it again need not fetch them again.
  """

  lhs: str = tree.static()
  rhs: str = tree.static()
  batch: int = tree.static()
  m: int = tree.static()
  k: int = tree.static()
  n: int = tree.static()
  count: int = tree.static(default=1)
  kind: str = tree.static(default="dot")
  role: Role = tree.static(default="forward")
  output: str = tree.static(default="")
  lhs_elements: int = tree.static(default=0)
  rhs_elements: int = tree.static(default=0)
  out_elements: int = tree.static(default=0)
  window: int = tree.static(default=1)
  dtype: str = tree.static(default="float32")
  custom: bool = tree.static(default=False)
  source: str = tree.static(default="")
  leaf_elements: int = tree.static(default=0)

  @property
  def name(self) -> str:
    """The weight's leaf, else the gradient's, else the line it was written on."""
    return self.rhs or self.lhs or self.output or self.source.rsplit("/", 1)[-1]

  @property
  def macs(self) -> int:
    """Multiplications executed: batch m k n count."""
    return self.batch * self.m * self.k * self.n * self.count


@tree.pytree
class VectorOp:
  """Elementwise and data-moving work between the products.

  Attributes:
    op: jax's name of the primitive: "exp", "reduce_sum", "gather".
    elements: Values an execution handles: the largest array read or written, or the
      part of it that a gather, slice or scatter touches.
    bytes: Bytes an execution reads and writes.
    count: Executions.
  """

  op: str = tree.static()
  elements: int = tree.static()
  bytes: int = tree.static()
  count: int = tree.static(default=1)


@tree.pytree
class Workload:
  """Products and vector work of a program, in execution order.

  Attributes:
    gemms: One per product in the program.
    vector_ops: Merged where op and size are equal.
    parameters: Elements of the first argument.
    io_elements: Elements of all other arguments and of the result.
  """

  gemms: tuple[Gemm, ...] = tree.static()
  vector_ops: tuple[VectorOp, ...] = tree.static(default=())
  parameters: int = tree.static(default=0)
  io_elements: int = tree.static(default=0)

  @property
  def macs(self) -> int:
    """Multiplications executed in matrix products."""
    return sum(g.macs for g in self.gemms)

  def table(self) -> str:
    """The matrix view as text, one product a line."""
    return matrix_view.text(self._rows(), self._summary())

  def _repr_html_(self) -> str:
    return matrix_view.html(self._rows(), self._summary())

  def _rows(self) -> list[tuple[Any, ...]]:
    """One row a product, in the order of `matrix_view.HEADER`."""
    return [
      (g.name, g.kind, g.role, g.batch, g.m, g.k, g.n, g.count, g.macs)
      for g in self.gemms
    ]

  def _summary(self) -> str:
    elements = sum(v.elements * v.count for v in self.vector_ops)
    return (
      f"{len(self.gemms)} products, {self.macs:,} MAC, {self.parameters:,} parameters, "
      f"{elements:,} vector elements in {len(self.vector_ops)} kinds of operation"
    )


class Site(NamedTuple):
  """Where a step stands: how often it runs, in which pass, inside which user's line,
  and whether a custom derivative is around it."""

  times: int = 1
  backward: bool = False
  recomputed: bool = False
  source: str = "<unknown>"
  custom: bool = False

  def at(self, step: Step) -> "Site":
    """The site of `step` itself."""
    backward, recomputed = jaxprs.passes(step)
    return self._replace(
      backward=self.backward or backward,
      recomputed=self.recomputed or recomputed,
      source=jaxprs.location(step, self.source),
    )

  def inside(self, step: Step) -> "Site":
    """The site of the programs inside `step`."""
    assert step.inner is not None
    return self.at(step)._replace(
      times=self.times * step.inner.times,
      custom=self.custom or step.inner.kind == "custom",
    )


def trace(
  fn: Callable[..., Any], *, branches: Literal["max"] | None = None
) -> Callable[..., Workload]:
  """Makes `fn(params, *args)` into a function that returns its workload.

  Args:
    fn: Any JAX function, parameters first: a flax `apply`, `jax.grad` of a loss, a
      train step. It runs through jit, scan (times its length), remat, custom
      derivatives, vmap and shard_map (times its devices).
    branches: "max" counts the largest branch of every `cond`; None refuses a `cond`.

  Returns:
    A function of the same arguments, arrays or ShapeDtypeStructs, that returns a
    `Workload` and runs nothing.

  Raises:
    Unsupported: When the traced function branches on array values, or holds a `while`
      (its trip count is data), a `cond` (unless asked), a ragged product, a kernel or
      a factorization. The message names file and line, and the way out.
  """
  if branches not in (None, "max"):
    raise ValueError(f'branches={branches!r} is neither None nor "max"')

  @functools.wraps(fn)
  def traced(params: Any, *args: Any, **kwargs: Any) -> Workload:
    known = jaxprs.trace_program(fn, (params, *args), kwargs)
    origins = provenance.parameters(params, known)
    count = _Counter(branches)
    names = provenance.gradient_names(known.shape, params)
    count.program(known.program, origins, names, Site(source=jaxprs.caller()))
    vectors = count.vectors.items()
    io = [a for a, o in zip(known.arrays, origins) if not o.leaf]
    return Workload(
      gemms=tuple(count.gemms),
      vector_ops=tuple(VectorOp(*key, count=times) for key, times in vectors),
      parameters=sum(o.size for o in origins),
      io_elements=sum(math.prod(a.shape) for a in (*io, *jax.tree.leaves(known.shape))),
    )

  return traced


class _Counter:
  """The walk: what it has met so far."""

  def __init__(self, branches: str | None):
    self.branches = branches
    self.gemms: list[Gemm] = []
    self.vectors: dict[tuple[str, int, int], int] = {}

  def program(
    self, program: Program, ins: Sequence[Origin], names: Sequence[str], site: Site
  ) -> None:
    known = provenance.flow(program, ins)
    sinks = provenance.sinks(program, names)
    for step in program.steps:
      refused.check(step, site.source)
      if step.inner is None and step.op not in jaxprs.PRODUCTS:
        self.vector(step, site)
        continue
      origins = provenance.read(known, step)
      outputs = [sinks.get(v, "") for v in step.writes]
      if step.inner is None:
        self.gemms.append(gemm_of(step, origins, outputs[0], site))
      else:
        self.inside(step, origins, outputs, site.inside(step))

  def inside(
    self, step: Step, ins: Sequence[Origin], names: Sequence[str], site: Site
  ) -> None:
    assert step.inner is not None
    if step.inner.kind == "while":
      raise Unsupported(
        f"{site.source}: the trip count of a while loop is data; write it as "
        "jax.lax.scan or a fori_loop with fixed bounds, or trace its body alone"
      )
    if step.inner.kind == "other":
      raise Unsupported(
        f"{site.source}: what runs inside {step.op} is not known to the "
        "tracer; trace the function it wraps"
      )
    entered = provenance.enter(step, ins)
    if step.inner.kind == "cond":
      self.branch(step.inner.programs, entered, names, site)
    else:
      self.program(step.inner.programs[0], entered[0], names, site)

  def branch(
    self,
    programs: Sequence[Program],
    ins: list[list[Origin]],
    names: Sequence[str],
    site: Site,
  ) -> None:
    if self.branches != "max":
      raise Unsupported(
        f"{site.source}: which branch of a cond runs is data; "
        'trace(fn, branches="max") counts the largest'
      )
    tried = []
    for program, origins in zip(programs, ins):
      one = _Counter(self.branches)
      one.program(program, origins, names, site)
      elements = sum(e * times for (_, e, _), times in one.vectors.items())
      tried.append((sum(g.macs for g in one.gemms), elements, one))
    best = max(tried, key=lambda t: t[:2])[2]
    self.gemms += best.gemms
    for key, times in best.vectors.items():
      self.vectors[key] = self.vectors.get(key, 0) + times

  def vector(self, step: Step, site: Site) -> None:
    if step.op in _VIEWS:
      return
    arrays = [a for a in _touched(step) if tree.is_array(a)]
    elements = max((a.size for a in arrays), default=0)
    key = (step.op, elements, sum(a.size * _itemsize(a) for a in arrays))
    self.vectors[key] = self.vectors.get(key, 0) + site.times


def _touched(step: Step) -> Sequence[Any]:
  if step.op in _READS:
    return (*step.outs, *step.ins[1:], *step.outs)
  # Writes of a part happen in place, as compilers do it.
  if step.op == "dynamic_update_slice":
    return (*step.ins[1:], step.ins[1])
  if step.op.startswith("scatter"):
    part = step.ins[2]
    return (
      (*step.ins[1:], part) if step.op == "scatter" else (*step.ins[1:], part, part)
    )
  return (*step.ins, *step.outs)


def _itemsize(aval: Any) -> int:
  # A PRNG key has a dtype but no item size; its two words are not worth a rule.
  return getattr(aval.dtype, "itemsize", 8)


def gemm_of(step: Step, origins: Sequence[Origin], output: str, site: Site) -> Gemm:
  """The `Gemm` of a product step.

  Args:
    step: A dot_general or conv_general_dilated.
    origins: Of its operands.
    output: Parameter whose gradient its result flows into, "" if none.
    site: Of the program that holds it.
  """
  site = site.at(step)
  role: Role = "forward"
  if site.recomputed:
    role = "recompute"
  elif site.backward:
    weighted = any(o.rank == 2 for o in origins)
    role = "weight_gradient" if output and not weighted else "input_gradient"
  flip = products.flipped(step, origins)
  left, right = origins[::-1] if flip else origins
  size = products.dims(step, flip)
  uses = right.most * site.times
  return Gemm(
    left.leaf,
    right.leaf,
    *size,
    count=site.times,
    kind=products.kind(step, flip),
    role=role,
    output=output if role == "weight_gradient" else "",
    lhs_elements=left.most,
    rhs_elements=min(uses, right.size) if right.leaf else uses,
    window=products.window(step, flip),
    out_elements=step.outs[0].size,
    dtype=str(step.ins[1 if flip else 0].dtype),
    custom=site.custom,
    source=site.source,
    leaf_elements=right.size if right.leaf else 0,
  )
