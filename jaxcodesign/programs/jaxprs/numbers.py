"""Dimension numbers of products."""

from typing import Any, NamedTuple

from jaxcodesign.programs.jaxprs.program import Step


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
