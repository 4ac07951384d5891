"""Functions with derivatives of their own, their bodies replaced."""

from collections.abc import Callable, Sequence
import types
from typing import Any

import jax
from jax._src import ad_util

from jaxcodesign.programs.jaxprs.program import Program, Step, Unsupported, read
from jaxcodesign.programs.jaxprs.source import location

Run = Callable[..., list[Any]]


def can_rewrite(step: Step) -> bool:
  """Whether `execute_custom` knows how to replace the body of `step`."""
  params = step.equation.params
  known = step.op in ("custom_jvp_call", "custom_vjp_call")
  return known and not params.get("symbolic_zeros")


def execute_custom(
  step: Step, values: Sequence[Any], run: Run, again: Callable[[Program], Run]
) -> Sequence[Any]:
  """Runs a function with a custom derivative, its body replaced.

  A custom_vjp keeps its author's backward pass, on the residuals of the forward pass
  that `again` replaced. A custom_jvp has its value replaced; its derivative computes
  the value once more, in a program of its own, so differentiating it is refused.

  Args:
    step: For which `can_rewrite`.
    values: Its inputs.
    run: What its program is replaced by.
    again: Makes the replacement of the program that a custom_vjp runs when it is
      differentiated; it takes what `step` does, less constants in front.

  Raises:
    Unsupported: When a custom_jvp is differentiated.
  """
  if step.op == "custom_jvp_call":
    return _custom_jvp(step, run)(*values)
  return _custom_vjp(step, run, again)(*values)


def _custom_jvp(step: Step, run: Run) -> Callable[..., Any]:
  value = jax.custom_jvp(lambda *v: tuple(run(*v)))

  def refuse(primals: Any, tangents: Any) -> Any:
    del primals, tangents
    raise Unsupported(
      f"{location(step)}: a matrix product inside a jax.custom_jvp has no rewritten "
      "derivative; drop the custom derivative, or rewrite the gradient: "
      "rewrite_gemms(jax.grad(loss), rule)"
    )

  value.defjvp(refuse)
  return value


def _custom_vjp(
  step: Step, run: Run, again: Callable[[Program], Run]
) -> Callable[..., Any]:
  params, constants = step.equation.params, step.equation.params["num_consts"]
  value = jax.custom_vjp(lambda *v: tuple(run(*v)))

  def forward(*v: Any) -> Any:
    thunk = params["fwd_jaxpr_thunk"]
    jaxpr, held = thunk.call_wrapped(*[True] * (len(v) - constants))
    opened = types.SimpleNamespace(jaxpr=jaxpr, consts=held)
    out = again(read(opened, {}))(*v[constants:])
    _, residuals, inputs = params["out_trees"]()
    kept = residuals.num_leaves - sum(at is not None for at in inputs)
    saved = iter(out[:kept])
    # Residuals that are inputs are not returned twice.
    held = [next(saved) if at is None else v[at] for at in inputs]
    return tuple(out[kept:]), held

  def backward(saved: Any, cotangents: Any) -> Any:
    found = params["bwd"].call_wrapped(*saved, *cotangents)
    if len(found) == 2 and isinstance(found[0], (list, tuple)):
      found = found[0]  # jax 0.12 returns logs as well
    zero = lambda c: None if isinstance(c, ad_util.Zero) else c
    return (*[None] * constants, *map(zero, found))

  value.defvjp(forward, backward)
  return value
