"""Everything that this library knows about the insides of a jaxpr.

jax changes these every few releases, so no other file imports `jax.extend` or
`jax._src`, or reads the parameters of an equation. The rest of the library sees a
`Program`: a list of `Step`s that read and write variables, some of which hold inner
programs (`Inner`). jax 0.10 (ClosedJaxpr, num_consts) to 0.12 (Jaxpr, ft_in).
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import math
import pathlib
import sys
import sysconfig
import traceback
from typing import Any, NamedTuple

import jax
from jax._src import source_info_util
import jax.extend.core as jex

from jaxcodesign import tree

PRODUCTS = ("dot_general", "conv_general_dilated")
# Products as well, but their sizes are data or their operands no plain arrays.
OPAQUE_PRODUCTS = (
  "ragged_dot", "ragged_dot_general", "scaled_dot", "scaled_matmul_wrapper",
  "dot_product_attention_fwd_wrapper", "dot_product_attention_fp8_fwd_wrapper",
)  # fmt: skip

_KINDS = {
  "call": ("jit", "pjit", "closed_call", "call", "eval_jaxpr", "composite"),
  "remat": ("remat", "remat2", "checkpoint"),
  "custom": ("custom_jvp_call", "custom_vjp_call", "custom_vmap_call"),
  "cond": ("cond",),
}
# Not the user's: installed packages, the standard library, and this folder.
_NOT_USER = (
  *(sysconfig.get_paths()[part] for part in ("purelib", "platlib", "stdlib")),
  str(pathlib.Path(__file__).parent),
  "<",
)
_UNTRACEABLE = (
  jax.errors.ConcretizationTypeError,  # TracerBoolConversionError is one
  jax.errors.TracerArrayConversionError,
  jax.errors.TracerIntegerConversionError,
  jax.errors.NonConcreteBooleanIndexError,
)


class Unsupported(ValueError):
  """A program that cannot be counted or rewritten; says where, and a way out."""


class Literal(NamedTuple):
  """A constant written into a step."""

  value: Any


class Inner(NamedTuple):
  """The programs inside one step, and how they run.

  A "while" has the programs (condition, body), a "cond" its branches, "other" any
  number, the kinds "call", "remat", "custom", "scan" and "shard_map" one.
  """

  kind: str
  programs: tuple["Program", ...]
  times: int = 1  # the length of a scan, the devices of a shard_map
  consts: tuple[int, ...] = ()  # inputs that stay, of a scan, of each part of a while
  carry: int = 0  # inputs of a scan body, after its consts, that it returns first


class Step(NamedTuple):
  """One equation: `writes = op(reads)`."""

  op: str
  reads: tuple[Any, ...]  # variables or Literals
  writes: tuple[Hashable, ...]
  ins: tuple[Any, ...]  # abstract values, with .shape .dtype .size
  outs: tuple[Any, ...]
  inner: Inner | None
  equation: Any  # opaque outside this file


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
  """A jaxpr as this library sees it.

  `notes` keeps what analyses found out, so that a program inside many loops is asked
  once; it is no part of the program.
  """

  steps: tuple[Step, ...]
  inputs: tuple[Hashable, ...]
  outputs: tuple[Any, ...]  # variables or Literals
  constants: tuple[tuple[Hashable, Any], ...]  # variable, value
  has_product: bool  # anywhere inside
  closed: Any  # opaque outside this file
  notes: dict[Hashable, Any] = dataclasses.field(default_factory=dict)


class Traced(NamedTuple):
  """A function made a program, with what is needed to call it again."""

  program: Program
  arrays: list[Any]  # the array leaves of the arguments, in order of program.inputs
  shape: Any  # tree of jax.ShapeDtypeStruct: what the function returns


class Dot(NamedTuple):
  """Dimension numbers of dot_general."""

  lhs_contract: tuple[int, ...]
  rhs_contract: tuple[int, ...]
  lhs_batch: tuple[int, ...]
  rhs_batch: tuple[int, ...]


class Conv(NamedTuple):
  """Parameters of conv_general_dilated; a spec is (batch or out, feature, *spatial)."""

  lhs_spec: tuple[int, ...]
  rhs_spec: tuple[int, ...]
  out_spec: tuple[int, ...]
  strides: tuple[int, ...]
  padding: tuple[tuple[int, int], ...]
  lhs_dilation: tuple[int, ...]
  rhs_dilation: tuple[int, ...]
  groups: int
  batch_groups: int


def trace_program(fn: Callable[..., Any], args: Sequence[Any], kwargs: dict) -> Traced:
  """Traces `fn(*args, **kwargs)` on abstract values; runs nothing.

  Leaves with a shape and a dtype (arrays, tracers, ShapeDtypeStructs) become inputs;
  all others (Python numbers, strings, functions) are held as they are.

  Raises:
    Unsupported: If the function needs the value of an array to go on.
  """
  leaves, structure = jax.tree.flatten((tuple(args), kwargs))
  is_array = [tree.is_array(leaf) for leaf in leaves]

  def flat(*arrays: Any) -> Any:
    rest = iter(arrays)
    filled = [next(rest) if hit else leaf for leaf, hit in zip(leaves, is_array)]
    args, kwargs = jax.tree.unflatten(structure, filled)
    return fn(*args, **kwargs)

  arrays = [leaf for leaf, hit in zip(leaves, is_array) if hit]
  try:
    closed, shape = jax.make_jaxpr(flat, return_shape=True)(*arrays)
  except _UNTRACEABLE as error:
    raise Unsupported(
      f"{getattr(fn, '__name__', fn)} cannot be traced: {_blamed(error)} needs the "
      "value of an array; branch with jnp.where or jax.lax.cond, loop with "
      "jax.lax.scan, or pass the value as a Python number"
    ) from error
  return Traced(read(closed, {}), arrays, shape)


def read(closed: Any, seen: dict[int, "Program"]) -> Program:
  """The `Program` of a (Closed)Jaxpr; `seen` keeps shared bodies shared."""
  if id(closed) not in seen:
    jaxpr = getattr(closed, "jaxpr", closed)
    steps = tuple(_step(eqn, seen) for eqn in jaxpr.eqns)
    inner = (p for step in steps if step.inner for p in step.inner.programs)
    seen[id(closed)] = Program(
      steps=steps,
      inputs=tuple(jaxpr.invars),
      outputs=tuple(_atom(v) for v in jaxpr.outvars),
      constants=tuple(zip(jaxpr.constvars, getattr(closed, "consts", ()))),
      has_product=any(step.op in PRODUCTS + OPAQUE_PRODUCTS for step in steps)
      or any(p.has_product for p in inner),
      closed=closed,
    )
  return seen[id(closed)]


def _atom(v: Any) -> Any:
  return Literal(v.val) if isinstance(v, jex.Literal) else v


def _step(eqn: Any, seen: dict[int, Program]) -> Step:
  return Step(
    op=eqn.primitive.name,
    reads=tuple(_atom(v) for v in eqn.invars),
    writes=tuple(eqn.outvars),
    ins=tuple(v.aval for v in eqn.invars),
    outs=tuple(v.aval for v in eqn.outvars),
    inner=_inner(eqn, seen),
    equation=eqn,
  )


def _inner(eqn: Any, seen: dict[int, Program]) -> Inner | None:
  name, params = eqn.primitive.name, eqn.params
  bodies = tuple(read(j, seen) for j in _jaxprs_in(params))
  if not bodies:
    return None
  if name == "scan":
    if "ft_in" in params:
      consts, carry = (len(part) for part in params["ft_in"].unpack()[:2])
    else:
      consts, carry = params["num_consts"], params["num_carry"]
    return Inner("scan", bodies, params["length"], (consts,), carry)
  if name == "while":
    pair = read(params["cond_jaxpr"], seen), read(params["body_jaxpr"], seen)
    return Inner("while", pair, 1, (params["cond_nconsts"], params["body_nconsts"]))
  if name == "shard_map":
    devices = math.prod(params["mesh"].shape[axis] for axis in _manual_axes(params))
    return Inner("shard_map", bodies, devices)
  kind = next((kind for kind, known in _KINDS.items() if name in known), "other")
  if kind == "other" and all(map(_is_combiner, bodies)):
    return None
  return Inner(kind, bodies)


def _is_combiner(program: Program) -> bool:
  # What scatter or reduce does to two scalars: no program that runs on its own.
  jaxpr = getattr(program.closed, "jaxpr", program.closed)
  atoms = (*jaxpr.invars, *jaxpr.outvars)
  return all(v.aval.shape == () for v in atoms) and not program.has_product


def _jaxprs_in(params: dict[str, Any]) -> list[Any]:
  found = []
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if hasattr(item, "eqns") or hasattr(getattr(item, "jaxpr", None), "eqns"):
        found.append(item)
  return found


def location(step: Step, otherwise: str = "<unknown>") -> str:
  """`file:line` of the user's code that made `step`, the call of a flax layer rather
  than the line of flax that multiplies; `otherwise` if nobody knows."""
  for frame in source_info_util.user_frames(step.equation.source_info.traceback):
    if not frame.file_name.startswith(_NOT_USER):
      return f"{frame.file_name}:{frame.start_line}"
  return otherwise


def caller() -> str:
  """`file:line` of the user's innermost call; a jaxpr knows no frame outside of it."""
  return next(_own(traceback.walk_stack(None)), "<unknown>")


def _blamed(error: BaseException) -> str:
  return ["<unknown>", *_own(traceback.walk_tb(error.__traceback__))][-1]


def _own(frames: Iterable[tuple[Any, int]]) -> Iterator[str]:
  for frame, line in frames:
    if not frame.f_code.co_filename.startswith(_NOT_USER):
      yield f"{frame.f_code.co_filename}:{line}"


def is_foreign(step: Step) -> bool:
  """Whether a package other than jax defined what `step` does."""
  if step.op not in _native():
    _native.cache_clear()  # jax imports some of its modules late
  return step.op not in _native()


@functools.cache
def _native() -> frozenset[str]:
  modules = [m for name, m in sys.modules.items() if name.startswith("jax._src.")]
  values = (v for module in modules for v in list(vars(module).values()))
  return frozenset(v.name for v in values if isinstance(v, jex.Primitive))


def passes(step: Step) -> tuple[bool, bool]:
  """Whether jax.grad made `step` while transposing; jax.checkpoint, to recompute."""
  stack = str(step.equation.source_info.name_stack)
  return "transpose(" in stack, "rematted_computation" in stack


def dot_numbers(step: Step) -> Dot:
  """Dimension numbers of a `dot_general` step."""
  contract, batch = step.equation.params["dimension_numbers"]
  return Dot(*map(tuple, (*contract, *batch)))


def conv_numbers(step: Step) -> Conv:
  """Parameters of a `conv_general_dilated` step."""
  p = step.equation.params
  specs = p["dimension_numbers"]
  return Conv(
    *(tuple(s) for s in (specs.lhs_spec, specs.rhs_spec, specs.out_spec)),
    strides=tuple(p["window_strides"]),
    padding=tuple((int(a), int(b)) for a, b in p["padding"]),
    lhs_dilation=tuple(p["lhs_dilation"]),
    rhs_dilation=tuple(p["rhs_dilation"]),
    groups=p["feature_group_count"],
    batch_groups=p["batch_group_count"],
  )


def accuracy(step: Step) -> dict[str, Any]:
  """What a product step asks of its arithmetic, as arguments of lax.dot_general."""
  p = step.equation.params
  return {"precision": p["precision"], "preferred_element_type": step.outs[0].dtype}


@contextlib.contextmanager
def standing_in(step: Step) -> Iterator[None]:
  """What runs inside has the source location, name stack and context of `step`."""
  info = step.equation.source_info
  stack = source_info_util.current_name_stack() + info.name_stack
  with (
    source_info_util.user_context(info.traceback, name_stack=stack),
    step.equation.ctx.manager,
  ):
    yield


def bind(step: Step, values: Sequence[Any]) -> list[Any]:
  """Runs `step` as it is."""
  primitive, params = step.equation.primitive, step.equation.params
  out = primitive.bind(*values, **primitive.get_bind_params(params))
  return list(out) if primitive.multiple_results else [out]


def execute(
  step: Step, values: Sequence[Any], run: Sequence[Callable[..., list[Any]]]
) -> Sequence[Any]:
  """Runs `step` with its inner programs replaced by `run`, one function a program.

  Built on jax's public transformations, so that the functions may close over tracers
  (a learned scale, a scheduled budget). Each takes and returns a flat list of arrays
  of the types of its program. An inner jit is inlined; its shardings are kept.
  """
  inner, params = step.inner, step.equation.params
  assert inner is not None
  if inner.kind == "call":
    out = run[0](*_constrain(values, params.get("in_shardings", ())))
    return _constrain(out, params.get("out_shardings", ()))
  if inner.kind == "remat":
    return _remat(step, values, run[0])
  if inner.kind == "scan":
    return _scan(inner, params, values, run[0])
  if inner.kind == "while":
    return _while(inner, values, *run)
  if inner.kind == "cond":
    return jax.lax.switch(values[0], list(run), *values[1:])
  assert inner.kind == "shard_map", f"{step.op} has no rule; refuse it before"
  return _shard_map(params, values, run[0])


def _constrain(values: Sequence[Any], shardings: Sequence[Any]) -> list[Any]:
  kept = [s if isinstance(s, jax.sharding.Sharding) else None for s in shardings]
  return [
    v if s is None else jax.lax.with_sharding_constraint(v, s)
    for v, s in zip(values, kept or [None] * len(values))
  ]


def _scan(inner: Inner, params: dict, values: Sequence[Any], run: Any) -> Sequence[Any]:
  n, m = inner.consts[0], inner.consts[0] + inner.carry
  consts, init, xs = values[:n], tuple(values[n:m]), tuple(values[m:])

  def body(carry, x):
    out = run(*consts, *carry, *x)
    return tuple(out[: inner.carry]), tuple(out[inner.carry :])

  how = {name: params[name] for name in ("length", "reverse", "unroll")}
  carry, ys = jax.lax.scan(body, init, xs, **how)
  return [*carry, *ys]


def _while(inner: Inner, values: Sequence[Any], test: Any, body: Any) -> Sequence[Any]:
  n, m = inner.consts[0], sum(inner.consts)
  before, consts, init = values[:n], values[n:m], tuple(values[m:])
  go_on = lambda carry: test(*before, *carry)[0]
  return jax.lax.while_loop(go_on, lambda c: tuple(body(*consts, *c)), init)


def _shard_map(params: dict, values: Sequence[Any], run: Any) -> Sequence[Any]:
  how = {name: params[name] for name in ("mesh", "out_specs", "check_vma")}
  how |= {"in_specs": tuple(params["in_specs"]), "axis_names": _manual_axes(params)}
  return jax.shard_map(lambda *v: tuple(run(*v)), **how)(*values)


def _manual_axes(params: dict) -> frozenset[str]:
  return params.get("newly_manual_axes", params.get("manual_axes", frozenset()))


def _remat(step: Step, values: Sequence[Any], run: Any) -> Sequence[Any]:
  # Not jax.checkpoint: it would forget whether the body is a recomputation already,
  # and drop its barrier against common subexpressions.
  closed = jax.make_jaxpr(lambda *v: tuple(run(*v)))(*values)
  jaxpr, eqn = closed.jaxpr, step.equation
  opened = jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])
  return eqn.primitive.bind(*closed.consts, *values, **{**eqn.params, "jaxpr": opened})
