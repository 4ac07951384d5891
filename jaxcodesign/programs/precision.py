"""Any JAX function with the operands of its matrix products rounded to formats.

`quantize(fn, policy)` is the function, `describe(fn, policy)` a table of what it does;
`policy.Rule`s say which product gets which formats, forward and backward.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax

from jaxcodesign import tree
from jaxcodesign.numerics.formats import noise
from jaxcodesign.programs import backward, jaxprs, operands, precision_view
from jaxcodesign.programs.backward import Backward
from jaxcodesign.programs.operands import round_operand
from jaxcodesign.programs.policy import (
  Operand,
  Policy,
  Rule,
  assign,
  choose,
  literal,
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
    rounds = _Quantizer(policy, operands.source_of(key), args)
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
    rounds = _Quantizer(policy, None, args)
    rows = []

    def rule(gemm: Gemm, lhs: jax.Array, rhs: jax.Array, dot: Dot) -> jax.Array:
      out = rounds.rule(gemm, lhs, rhs, dot)
      rows.append(_row(policy, *rounds.seen[-1], _layouts(gemm, lhs, rhs, dot)))
      return out

    jaxprs.trace_program(rewrite_gemms(fn, rule), args, kwargs)
    rounds.check()
    # A loop may trace its body more than once.
    return precision_view.Description(tuple(dict.fromkeys(rows)))

  return described


def _layouts(gemm: Gemm, lhs: jax.Array, rhs: jax.Array, dot: Dot) -> list[str]:
  """What the backward products of a convolution are summed over, by lhs and by rhs."""
  if gemm.kind == "dot" or gemm.role != "forward":
    return ["", ""]
  return [
    f" along {taps} taps x {channels}" if taps > 1 else f" along {channels}"
    for taps, channels in backward.contractions(dot, lhs, rhs)
  ]


def _row(
  policy: Policy, gemm: Gemm, index: int | None, layouts: Sequence[str]
) -> precision_view.Row:
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
    by_input, by_weight = by_input + layouts[0], by_weight + layouts[1]
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

  def __init__(self, policy: tuple[Rule, ...], key: Any, args: tuple[Any, ...]):
    self.policy, self.key = policy, key
    self.meant = literal(policy, tree.names(args[0]) if args else ())
    self.seen: list[tuple[Gemm, int | None]] = []

  def rule(self, gemm: Gemm, lhs: jax.Array, rhs: jax.Array, dot: Dot) -> jax.Array:
    """A rule for `rewrite_gemms`."""
    index = choose(self.meant, gemm)
    self.seen.append((gemm, index))
    if index is None:
      return dot(lhs, rhs)
    rule = self.policy[index]
    names: list[Operand] = ["activation", "weight" if gemm.rhs else "activation"]
    draw = operands.draws(self.key, len(self.seen), dot.loops, rule.stochastic)
    values = []
    for i, (x, fmt) in enumerate(zip((lhs, rhs), operand_formats(rule, gemm))):
      side = f"{('left', 'right')[i]} operand"
      source = draw(names[i], i)
      where = dot.across[i], dot.taps[i]
      values.append(round_operand(gemm, side, rule.clip, fmt, x, source, *where))
    if rule.gradient is None:
      return dot(*values)
    operands.refuse_backward(gemm)
    left, right = _sides(rule, gemm, (lhs, rhs), values, draw)
    rounded = functools.partial(round_operand, gemm, "backward operand", False)
    return backward.product(dot, values[0], values[1], left, right, rounded)

  def check(self) -> None:
    """Raises a ValueError if a rule or the key was of no use."""
    refuse_idle(self.policy, {i for _, i in self.seen}, [g for g, _ in self.seen])
    if self.key is not None and not any(map(_is_random, self.policy)):
      raise ValueError(
        "key is given, but no rule rounds stochastically: give a rule a gradient "
        "format, or stochastic=('weight', 'activation')"
      )


def _is_random(rule: Rule) -> bool:
  back = rule.backward or Backward().after(None, None)
  formats = {
    "weight": rule.weight or back.weight,
    "activation": rule.activation or back.activation,
    "gradient": back.input_gradient or back.weight_gradient,
  }
  return any(formats[operand] is not None for operand in rule.stochastic)


def _sides(
  rule: Rule,
  gemm: Gemm,
  exact: tuple[jax.Array, jax.Array],
  values: Sequence[jax.Array],
  draw: operands.Draw,
) -> tuple[backward.Side, backward.Side]:
  """How the gradients by the left and by the right operand are computed."""
  back = rule.backward
  assert back is not None
  weighted = bool(gemm.rhs)
  by_right = back.weight_gradient if weighted else back.input_gradient
  names: tuple[Operand, Operand] = (
    "activation",
    "weight" if weighted else "activation",
  )
  return backward.sides(
    operand_formats(rule, gemm),
    (back.activation, back.weight if weighted else back.activation),
    (back.input_gradient, by_right),
    exact,
    values,
    [(draw("gradient", 2 + i), draw(names[1 - i], 4 + i)) for i in range(2)],
  )
