"""Which format each operand of each product has, and functions quantized that way.

A policy is a sequence of rules; the first one whose glob matches a product's weight
decides. The same policy quantizes a function (`quantize`) and prices a workload
(`hardware.cost.evaluate`), so accuracy and cost speak of the same thing.
"""

from collections.abc import Callable, Sequence
import fnmatch
from typing import Any

import jax

from jaxcodesign import tree
from jaxcodesign.numerics.formats import Format
from jaxcodesign.programs.rewrite import Dot, rewrite_gemms
from jaxcodesign.programs.workload import Gemm


@tree.pytree
class Rule:
  """Formats for the products whose weight's name matches a glob.

  Attributes:
    leaf: Shell-style glob on the name of the weight leaf, "conv1/*"; a product of two
      activations has the name "". "*" matches everything.
    weight: Format of the weight, None to leave it. Scales, channels and groups run
      along the contraction, the last axis of the canonical [batch, n, k].
    activation: Format of the other operand, or of both where neither is a weight. For
      a convolution that is the image, channels last. Scaled by the batch at hand.
  """

  leaf: str = tree.static(default="*")
  weight: Format | None = None
  activation: Format | None = None


Policy = Sequence[Rule]


def choose(policy: Policy, gemm: Gemm) -> int | None:
  """Index of the first rule that matches a product, None if none does."""
  name = gemm.rhs or gemm.lhs
  hits = (i for i, r in enumerate(policy) if fnmatch.fnmatchcase(name, r.leaf))
  return next(hits, None)


def operand_formats(
  rule: Rule | None, gemm: Gemm
) -> tuple[Format | None, Format | None]:
  """Formats of the left and the right operand of a product under `rule`."""
  if rule is None:
    return None, None
  # The weight is the right operand of every canonical product that has one.
  return rule.activation, rule.weight if gemm.rhs else rule.activation


def assign(
  policy: Policy, gemms: Sequence[Gemm]
) -> list[tuple[Format | None, Format | None]]:
  """Formats of (left, right) operands for each product.

  Raises:
    ValueError: If a rule decides no product: it matches none, or rules before it
      took all it matches.
  """
  chosen = [choose(policy, g) for g in gemms]
  refuse_idle(policy, set(chosen), gemms)
  return [
    operand_formats(None if i is None else policy[i], g) for i, g in zip(chosen, gemms)
  ]


def refuse_idle(policy: Policy, used: set[int | None], gemms: Sequence[Gemm]) -> None:
  """Raises a ValueError if a rule of `policy` is not among the `used` indices."""
  names = [g.rhs or g.lhs for g in gemms]
  for i, rule in enumerate(policy):
    if i not in used:
      tree.match(rule.leaf, names)  # names the nearest weights if it matches none
      raise ValueError(
        f"rule {i} ({rule.leaf!r}) decides nothing: rules before it take every product "
        "it matches; put the more specific rule first"
      )


def quantize(fn: Callable[..., Any], policy: Policy) -> Callable[..., Any]:
  """Returns `fn` with the operands of its matrix products rounded to formats.

  Args:
    fn: Any JAX function, parameters first; see `rewrite_gemms` for what it may hold.
    policy: Rules, first match wins. Products that no rule matches stay as they are.
      Budgets and other leaves of formats may be traced: close over them, or pass the
      policy through jit as an argument.

  Returns:
    A function of the same arguments. Its gradient is straight-through: that of the
    unrounded operands, at the rounded ones.

  Raises:
    ValueError: When called, if a rule decides no product, or a group does not divide
      a contraction; the message names the product.
  """
  policy = tuple(policy)

  def quantized(*args: Any, **kwargs: Any) -> Any:
    used: set[int | None] = set()
    seen: list[Gemm] = []

    def rule(gemm: Gemm, lhs: jax.Array, rhs: jax.Array, dot: Dot) -> jax.Array:
      index = choose(policy, gemm)
      used.add(index)
      seen.append(gemm)
      left, right = operand_formats(None if index is None else policy[index], gemm)
      return dot(_round(left, lhs, gemm, "left"), _round(right, rhs, gemm, "right"))

    out = rewrite_gemms(fn, rule)(*args, **kwargs)
    refuse_idle(policy, used, seen)
    return out

  quantized.__name__ = f"quantized_{getattr(fn, '__name__', 'function')}"
  quantized.__doc__ = fn.__doc__
  return quantized


def _round(fmt: Format | None, x: jax.Array, gemm: Gemm, side: str) -> jax.Array:
  if fmt is None:
    return x
  try:
    return fmt.quantize(x)
  except ValueError as error:
    raise ValueError(
      f"{gemm.name} ({gemm.source}), {side} operand {list(x.shape)}: {error}"
    ) from error
