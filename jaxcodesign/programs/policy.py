"""Rules that say which format each operand of each product has.

A policy is a sequence of rules; the first one that matches a product decides. The same
policy quantizes a function (`precision.quantize`), prints what that does
(`precision.describe`), and prices a workload (`cost.evaluate`), so accuracy
and cost speak of the same thing.
"""

from collections.abc import Collection, Sequence
import dataclasses
import fnmatch
from typing import Literal

from jaxcodesign import tree
from jaxcodesign.numerics.formats.format import Format
from jaxcodesign.programs.backward import Backward
from jaxcodesign.programs.workload import Gemm

Operand = Literal["weight", "activation", "gradient"]
OPERANDS: tuple[Operand, ...] = ("weight", "activation", "gradient")


@tree.pytree
class Rule:
  """Formats for the products whose weight's name and kind match.

  Attributes:
    leaf: Shell-style glob on the name of the weight leaf, "conv1/*", or a name as it
      is printed, brackets and all; a product of two activations has the name "". "*"
      matches everything.
    weight: Format of the weight, None to leave it. Scales, channels and groups run
      along the contraction, the last axis of the canonical [batch, n, k].
    activation: Format of the other operand, or of both where neither is a weight. For
      a convolution that is the image, channels last. Scaled by the batch at hand.
    gradient: Formats of the backward products. A Format is that of the incoming
      gradient in both; `Backward` tells them apart. None: the gradient is that of the
      unrounded operands at the rounded ones (straight-through).
    kind: Glob on the kind of product: "dot", "conv", "transposed_conv".
    clip: Whether the gradient of an operand is zero where it saturates, that is lies
      beyond the last value of its grid by more than 4 ulp, instead of straight through.
      The gradient by a learned step or limit is the format's own.
    stochastic: Which operands are rounded stochastically when `quantize` has a key.
  """

  leaf: str = tree.static(default="*")
  weight: Format | None = None
  activation: Format | None = None
  gradient: Format | Backward | None = None
  kind: str = tree.static(default="*")
  clip: bool = tree.static(default=False)
  stochastic: tuple[Operand, ...] = tree.static(default=("gradient",))

  def __post_init__(self):
    back = self.backward or Backward().after(None, None)
    backward = (back.input_gradient, back.weight_gradient, back.weight, back.activation)
    for fmt in (self.weight, self.activation, *backward):
      if isinstance(fmt, str | int | float):
        raise TypeError(f"{fmt!r} is no number format; Fixed(8) is one")
      if getattr(fmt, "axis", -1) != -1:
        raise ValueError(
          f"{fmt!r}: a rule's formats run along the contraction, axis=-1, however the "
          "operand lies in the program"
        )
    for operand in self.stochastic:
      if operand not in OPERANDS:
        raise ValueError(
          f"stochastic={self.stochastic!r}: {operand!r} is none of "
          f"{', '.join(OPERANDS)}; it is a tuple of them, ('gradient',)"
        )

  @property
  def backward(self) -> Backward | None:
    """The formats of the backward products with nothing left to the forward ones."""
    given = self.gradient
    if given is None:
      return None
    if not isinstance(given, Backward):
      given = Backward(given, given)
    return given.after(self.weight, self.activation)


Policy = Sequence[Rule]


def literal(policy: Policy, names: Collection[str]) -> tuple[Rule, ...]:
  """The rules, those that name one of `names` as it is selecting nothing else."""
  return tuple(
    dataclasses.replace(rule, leaf=tree.literal(rule.leaf, names)) for rule in policy
  )


def choose(policy: Policy, gemm: Gemm) -> int | None:
  """Index of the first rule that matches a product, None if none does."""
  name = gemm.rhs or gemm.lhs or gemm.output
  match = fnmatch.fnmatchcase
  hits = (
    i
    for i, rule in enumerate(policy)
    if match(name, rule.leaf) and match(gemm.kind, rule.kind)
  )
  return next(hits, None)


def operand_formats(
  rule: Rule | None, gemm: Gemm
) -> tuple[Format | None, Format | None]:
  """Formats of the left and the right operand of a product under `rule`.

  A weight gradient has no weight among its operands: as autodiff writes it, the
  incoming gradient is the right operand of a convolution and the left one of a dot.
  """
  if rule is None:
    return None, None
  back = rule.backward
  if back is None or gemm.role in ("forward", "recompute"):
    # The weight is the right operand of every canonical product that has one.
    return rule.activation, rule.weight if gemm.rhs else rule.activation
  if gemm.role == "input_gradient":
    return back.input_gradient, back.weight if gemm.rhs else back.activation
  if gemm.kind == "dot":
    return back.weight_gradient, back.activation
  return back.activation, back.weight_gradient


def assign(
  policy: Policy, gemms: Sequence[Gemm]
) -> list[tuple[Format | None, Format | None]]:
  """Formats of (left, right) operands for each product.

  Raises:
    ValueError: If a rule decides no product: it matches none, or rules before it
      took all it matches.
  """
  meant = literal(policy, {g.rhs or g.lhs or g.output for g in gemms})
  chosen = [choose(meant, g) for g in gemms]
  refuse_idle(policy, set(chosen), gemms)
  return [
    operand_formats(None if i is None else policy[i], g) for i, g in zip(chosen, gemms)
  ]


def refuse_idle(policy: Policy, used: set[int | None], gemms: Sequence[Gemm]) -> None:
  """Raises a ValueError if a rule of `policy` is not among the `used` indices."""
  for i, rule in enumerate(policy):
    if i in used:
      continue
    kinds = {g.kind for g in gemms}
    if not any(fnmatch.fnmatchcase(kind, rule.kind) for kind in kinds):
      raise ValueError(
        f"rule {i}: kind={rule.kind!r} matches no product; there are "
        f"{', '.join(sorted(kinds)) or 'none'}"
      )
    # Names the nearest weights if it matches none.
    tree.match(rule.leaf, [g.rhs or g.lhs or g.output for g in gemms])
    raise ValueError(
      f"rule {i} ({rule.leaf!r}) decides nothing: rules before it take every product "
      "it matches; put the more specific rule first"
    )
