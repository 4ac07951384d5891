"""Steps run: as they are, or with their inner programs replaced."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
from typing import Any

import jax
from jax._src import source_info_util
import jax.numpy as jnp

from jaxcodesign.programs.jaxprs.program import Inner, Step, manual_axes


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


def varying(x: jax.Array) -> tuple[str, ...]:
  """Mesh axes along which `x`, inside a shard_map, differs from device to device."""
  aval = jax.typeof(x)
  axes = getattr(aval, "vma", None)
  if axes is None:
    axes = getattr(getattr(aval, "mat", None), "varying", ())
  return tuple(sorted(axes))


def bind(step: Step, values: Sequence[Any]) -> list[Any]:
  """Runs `step` as it is."""
  primitive, params = step.equation.primitive, step.equation.params
  out = primitive.bind(*values, **primitive.get_bind_params(params))
  return list(out) if primitive.multiple_results else [out]


def execute(
  step: Step,
  values: Sequence[Any],
  run: Sequence[Callable[..., list[Any]]],
  *,
  count: bool = False,
) -> Sequence[Any]:
  """Runs `step` with its inner programs replaced by `run`, one function a program.

  Built on jax's public transformations, so that the functions may close over tracers
  (a learned scale, a scheduled budget). Each takes and returns a flat list of arrays
  of the types of its program. An inner jit is inlined; its shardings are kept.

  Args:
    step: With inner programs of any kind but "custom" and "other".
    values: Its inputs.
    run: One function for each inner program.
    count: Whether the body of a scan or while is called with the keyword `index`, the
      traced number of the iteration.
  """
  inner, params = step.inner, step.equation.params
  assert inner is not None
  if inner.kind == "call":
    out = run[0](*_constrain(values, params.get("in_shardings", ())))
    return _constrain(out, params.get("out_shardings", ()))
  if inner.kind == "remat":
    return _remat(step, values, run[0])
  if inner.kind == "scan":
    return _scan(inner, params, values, run[0], count)
  if inner.kind == "while":
    return _while(inner, values, run[0], run[1], count)
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


def _scan(
  inner: Inner, params: dict, values: Sequence[Any], run: Any, count: bool
) -> Sequence[Any]:
  n, m = inner.consts[0], inner.consts[0] + inner.carry
  consts, init, xs = values[:n], tuple(values[n:m]), tuple(values[m:])
  length = params["length"]

  def body(carry, x):
    x, index = x if count else (x, None)
    out = run(*consts, *carry, *x, **({"index": index} if count else {}))
    return tuple(out[: inner.carry]), tuple(out[inner.carry :])

  over = (xs, jnp.arange(length)) if count else xs
  how = {"length": length, "reverse": params["reverse"], "unroll": params["unroll"]}
  carry, ys = jax.lax.scan(body, init, over, **how)
  return [*carry, *ys]


def _while(
  inner: Inner, values: Sequence[Any], test: Any, body: Any, count: bool
) -> Sequence[Any]:
  n, m = inner.consts[0], sum(inner.consts)
  before, consts, init = values[:n], values[n:m], tuple(values[m:])
  if not count:
    go_on = lambda carry: test(*before, *carry)[0]
    return jax.lax.while_loop(go_on, lambda c: tuple(body(*consts, *c)), init)
  _, out = jax.lax.while_loop(
    lambda c: test(*before, *c[1])[0],
    lambda c: (c[0] + 1, tuple(body(*consts, *c[1], index=c[0]))),
    (jnp.int32(0), init),
  )
  return out


def _shard_map(params: dict, values: Sequence[Any], run: Any) -> Sequence[Any]:
  how = {name: params[name] for name in ("mesh", "out_specs", "check_vma")}
  how |= {"in_specs": tuple(params["in_specs"]), "axis_names": manual_axes(params)}
  return jax.shard_map(lambda *v: tuple(run(*v)), **how)(*values)


def _remat(step: Step, values: Sequence[Any], run: Any) -> Sequence[Any]:
  # Not jax.checkpoint: it would forget whether the body is a recomputation already,
  # and drop its barrier against common subexpressions.
  closed = jax.make_jaxpr(lambda *v: tuple(run(*v)))(*values)
  jaxpr, eqn = closed.jaxpr, step.equation
  opened = jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])
  return eqn.primitive.bind(*closed.consts, *values, **{**eqn.params, "jaxpr": opened})
