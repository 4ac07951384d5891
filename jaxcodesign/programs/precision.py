"""Any JAX function with the operands of its matrix products rounded to formats.

`quantize(fn, policy)` is the function, `describe(fn, policy)` a table of what it does;
`policy.Rule`s say which product gets which formats, forward and backward.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxcodesign.numerics import noise
from jaxcodesign.numerics.formats import Format
from jaxcodesign.programs import backward, jaxprs, precision_view
from jaxcodesign.programs.backward import Backward, Side
from jaxcodesign.programs.policy import (
  Operand,
  Policy,
  Rule,
  assign,
  choose,
  operand_formats,
  refuse_idle,
)
from jaxcodesign.programs.rewrite import Dot, rewrite_gemms
from jaxcodesign.programs.workload import Gemm

__all__ = ["Backward", "Policy", "Rule", "assign", "describe", "quantize"]


def quantize(
  fn: Callable[..., Any], policy: Policy, *, key: noise.Noise | jax.Array | None = None
) -> Callable[..., Any]:
  """Returns `fn` with the operands of its matrix products rounded to formats.

  Args:
    fn: Any JAX function, parameters first; see `rewrite_gemms` for what it may hold.
    policy: Rules, first match wins. Products that no rule matches stay as they are.
      Budgets and other leaves of formats may be traced: close over them, or pass the
      policy through jit as an argument.
    key: A PRNG key, or a source of `noise` with one (`Lfsr(key)`), for the operands
      that rules call stochastic; None rounds all to nearest. Every product, operand
      and iteration of a loop draws its own noise. Under an outer vmap the examples
      share it; inside `shard_map(..., check_vma=False)` the devices do.

  Returns:
    A function of the same arguments. Its gradient is straight-through, that of the
    unrounded operands at the rounded ones, unless rules say otherwise; differentiate
    it in reverse mode where rules have gradient formats.

  Raises:
    ValueError: When called, if a rule decides no product, a group does not divide a
      contraction, or a key is given that no rule uses; the message names the product.
    TypeError: When called, for a product of integers, or a `key` that is none.
    Unsupported: When called, if a rule has gradient formats for a product whose
      backward pass is not autodiff's: one inside a custom derivative, or one that
      autodiff has already made.
  """
  policy = tuple(policy)

  @functools.wraps(fn)
  def quantized(*args: Any, **kwargs: Any) -> Any:
    rounds = _Quantizer(policy, _source(key))
    rewritten = rewrite_gemms(fn, rounds.rule, loops=key is not None)
    out = rewritten(*args, **kwargs)
    rounds.check()
    return out

  quantized.__name__ = f"quantized_{getattr(fn, '__name__', 'function')}"
  return quantized


def describe(
  fn: Callable[..., Any], policy: Policy
) -> Callable[..., precision_view.Description]:
  """Makes `fn(params, *args)` into a function that tells what `quantize` would do.

  Args:
    fn: As for `quantize`.
    policy: As for `quantize`.

  Returns:
    A function of the same arguments, arrays or ShapeDtypeStructs, that runs nothing
    and returns one row for each product: the formats on each side, forward and
    backward, the rule that decided, and what stays in full precision and why. Print
    it, or leave it at the end of a notebook cell.

  Raises:
    What `quantize` raises.
  """
  policy = tuple(policy)

  @functools.wraps(fn)
  def described(*args: Any, **kwargs: Any) -> precision_view.Description:
    rounds = _Quantizer(policy, None)
    jaxprs.trace_program(rewrite_gemms(fn, rounds.rule), args, kwargs)
    rounds.check()
    # A loop may trace its body more than once.
    unique = dict.fromkeys(rounds.seen)
    return precision_view.Description(tuple(_row(policy, *hit) for hit in unique))

  return described


def _row(policy: Policy, gemm: Gemm, index: int | None) -> precision_view.Row:
  rule = None if index is None else policy[index]
  label = functools.partial(precision_view.label, otherwise=gemm.dtype)
  formats = operand_formats(rule, gemm)
  back = rule.backward if rule else None
  note = ""
  if rule is None:
    note = "both operands: no rule matches"
  elif None in formats:
    names = ("activation", "weight" if gemm.rhs else "activation")
    missing = dict.fromkeys(n for n, fmt in zip(names, formats) if fmt is None)
    note = f"{' and '.join(missing)}: rule {index} has no format for it"
  right = "weight" if gemm.rhs else "activation"
  by_input = by_weight = "straight-through" if rule else "autodiff"
  if back is not None:
    by_input = f"{label(back.input_gradient)} x {label(getattr(back, right))}"
    by_weight = f"{label(back.weight_gradient)} x {label(back.activation)}"
  return precision_view.Row(
    gemm.name,
    gemm.kind,
    gemm.macs,
    label(formats[0]),
    label(formats[1]),
    by_input,
    by_weight if gemm.rhs else "",
    "-" if index is None else str(index),
    note,
  )


class _Quantizer:
  """The rule behind `quantize`, which remembers what it has met."""

  def __init__(self, policy: tuple[Rule, ...], key: Any):
    self.policy, self.key = policy, key
    self.seen: list[tuple[Gemm, int | None]] = []

  def rule(self, gemm: Gemm, lhs: jax.Array, rhs: jax.Array, dot: Dot) -> jax.Array:
    """A rule for `rewrite_gemms`."""
    index = choose(self.policy, gemm)
    self.seen.append((gemm, index))
    if index is None:
      return dot(lhs, rhs)
    rule = self.policy[index]
    names: list[Operand] = ["activation", "weight" if gemm.rhs else "activation"]
    draw = self.draws(rule, dot)
    values = []
    for i, (x, fmt) in enumerate(zip((lhs, rhs), operand_formats(rule, gemm))):
      side = f"{('left', 'right')[i]} operand"
      source = draw(names[i], i)
      values.append(_round(gemm, side, rule.clip, fmt, x, source, dot.across[i]))
    if rule.gradient is None:
      return dot(*values)
    _refuse_backward(gemm)
    left, right = _sides(rule, gemm, (lhs, rhs), values, draw)
    rounded = functools.partial(_round, gemm, "backward operand", False)
    return backward.product(dot, values[0], values[1], left, right, rounded)

  def draws(self, rule: Rule, dot: Dot) -> Callable[[Operand, int], noise.Noise | None]:
    """(operand, number) -> noise for it, None to round to nearest."""
    if self.key is None:
      return lambda operand, number: None
    key = jax.random.fold_in(self.key.key, len(self.seen))
    for index in dot.loops:
      key = jax.random.fold_in(key, index)

    def draw(operand: Operand, number: int) -> noise.Noise | None:
      if operand not in rule.stochastic:
        return None
      return dataclasses.replace(self.key, key=jax.random.fold_in(key, number))

    return draw

  def check(self) -> None:
    """Raises a ValueError if a rule or the key was of no use."""
    refuse_idle(self.policy, {i for _, i in self.seen}, [g for g, _ in self.seen])
    if self.key is not None and not any(map(_is_random, self.policy)):
      raise ValueError(
        "key is given, but no rule rounds stochastically: give a rule a gradient "
        "format, or stochastic=('weight', 'activation')"
      )


def _source(key: Any) -> Any:
  source = noise.of(key)
  if source is not None and not hasattr(source, "key"):
    raise TypeError(
      f"key={key!r} has no PRNG key to draw every product's noise from; pass "
      "jax.random.key(seed), Counter(key), Threefry(key) or Lfsr(key)"
    )
  return source


def _is_random(rule: Rule) -> bool:
  back = rule.backward or Backward()
  formats = {
    "weight": rule.weight or back.weight,
    "activation": rule.activation or back.activation,
    "gradient": back.input_gradient or back.weight_gradient,
  }
  return any(formats[operand] is not None for operand in rule.stochastic)


def _refuse_backward(gemm: Gemm) -> None:
  if gemm.custom:
    raise jaxprs.Unsupported(
      f"{gemm.source}: {gemm.name} is inside a custom derivative, whose backward pass "
      "is its author's; a rule with gradient formats cannot reach it: match it with a "
      "rule before, without gradient"
    )
  if gemm.role in ("input_gradient", "weight_gradient"):
    raise jaxprs.Unsupported(
      f"{gemm.source}: {gemm.name} is a product of a backward pass already; with "
      "gradient formats quantize the function, then differentiate it: "
      "jax.grad(quantize(loss, policy))"
    )


def _sides(
  rule: Rule,
  gemm: Gemm,
  exact: tuple[jax.Array, jax.Array],
  values: Sequence[jax.Array],
  draw: Callable[[Operand, int], noise.Noise | None],
) -> tuple[Side, Side]:
  """How the gradients by the left and by the right operand are computed."""
  back = rule.backward
  assert back is not None
  formats = operand_formats(rule, gemm)
  right_is: Operand = "weight" if gemm.rhs else "activation"
  others: tuple[Operand, Operand] = (right_is, "activation")
  by_right = back.weight_gradient if gemm.rhs else back.input_gradient
  gradients = (back.input_gradient, by_right)
  sides = []
  for i, other in enumerate(others):
    fmt = back.weight if other == "weight" else back.activation
    at = 1 - i  # of the operand that the gradient by operand i is made from
    # Rounded already, and on the same grid however the array lies?
    known = fmt is formats[at] and (fmt is None or fmt.pointwise)
    source = jax.lax.stop_gradient(values[at] if known else exact[at])
    keys = (draw("gradient", 2 + i), draw(other, 4 + i))
    sides.append(Side(gradients[i], None if known else fmt, source, keys))
  return sides[0], sides[1]


def _round(
  gemm: Gemm,
  side: str,
  clip: bool,
  fmt: Format | None,
  x: jax.Array,
  source: noise.Noise | None,
  across: bool,
) -> jax.Array:
  """`x` rounded to `fmt`, where it lies if `across`; errors name the product."""
  if fmt is None:
    return x
  moved = fmt.along(-2) if across else None
  turn = lambda y: y if moved is None else jnp.swapaxes(y, -1, -2)
  fmt, lying = moved or fmt, turn(x)
  try:
    scale = fmt.scale(lying)
    rounded = fmt.round(lying, scale, _local(source, x))
    return turn(_clipped(fmt, lying, scale, rounded) if clip else rounded)
  except (TypeError, ValueError) as error:
    raise type(error)(
      f"{gemm.name} ({gemm.source}), {side} {list(x.shape)}: {error}"
    ) from error


def _local(source: Any, x: jax.Array) -> Any:
  """The noise of a device's own part of `x` inside shard_map."""
  if source is None:
    return None
  for axis in jaxprs.varying(x):
    key = jax.random.fold_in(source.key, jax.lax.axis_index(axis))
    source = dataclasses.replace(source, key=key)
  return source


def _clipped(fmt: Format, x: jax.Array, scale: Any, rounded: jax.Array) -> jax.Array:
  # At the end of the grid: twice the value rounds to the same.
  nearest = fmt.round(x, scale)
  end = (fmt.round(2 * x, scale) == nearest) & (nearest != 0)
  saturated = end & (jnp.abs(x) > jnp.abs(nearest))
  return jnp.where(saturated, jax.lax.stop_gradient(rounded), rounded)
