"""Training with rounded products, as a method: rules of `quantize`, or FAST."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, Literal

from jaxcodesign.programs import precision
from jaxcodesign.programs.fast import Fast
from jaxcodesign.programs.policy import Rule
from jaxcodesign.training.fast_method import FastMethod
from jaxcodesign.training.method import At, Method

Precision = Fast | tuple[Rule, ...] | None
Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Rounded(Method):
  """All three products of a step in the formats of rules, see `precision.quantize`."""

  rules: tuple[Rule, ...]

  def change(self, loss: Callable[..., Any], at: At, probe: Any) -> Callable[..., Any]:
    del probe
    noisy = any(
      getattr(r, side) is not None for r in self.rules for side in r.stochastic
    )
    return precision.quantize(loss, self.rules, key=at.key if noisy else None)


def method_of(how: Precision) -> tuple[Method, ...]:
  """The method of a precision, () for none."""
  if how is None:
    return ()
  return (FastMethod(how) if isinstance(how, Fast) else Rounded(tuple(how)),)


def describe(how: Precision, dtype: Dtype) -> str:
  """A precision in a few words."""
  if isinstance(how, Fast):
    return f"FAST, {how.schedule}"
  if isinstance(how, Sequence):
    return "; ".join(f"{rule.leaf}: {_formats(rule)}" for rule in how)
  return dtype


def _formats(rule: Rule) -> str:
  back = rule.backward
  sides = {
    "W": rule.weight,
    "A": rule.activation,
    "G": back.input_gradient if back else None,
  }
  return ", ".join(
    f"{side} {type(fmt).__name__} {float(fmt.bits_per_value()):g} bit"
    for side, fmt in sides.items()
    if fmt is not None
  )
