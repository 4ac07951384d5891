"""How a product is cut for an array, and what moves: tilings, and the best of them."""

from typing import TYPE_CHECKING

from jaxcodesign.faces import face

if TYPE_CHECKING:
  from jaxcodesign.hardware.mapping.loops import ORDERS as ORDERS
  from jaxcodesign.hardware.mapping.loops import Mapping as Mapping
  from jaxcodesign.hardware.mapping.tilings import Cost as Cost
  from jaxcodesign.hardware.mapping.tilings import Found as Found
  from jaxcodesign.hardware.mapping.tilings import Objective as Objective
  from jaxcodesign.hardware.mapping.tilings import evaluate as evaluate
  from jaxcodesign.hardware.mapping.tilings import one_fold as one_fold
  from jaxcodesign.hardware.mapping.tilings import search as search
  from jaxcodesign.hardware.mapping.tilings import simulate as simulate

__getattr__, __dir__, __all__ = face(  # pyright: ignore[reportUnsupportedDunderAll]
  __name__,
  Cost="tilings:Cost",
  Found="tilings:Found",
  Objective="tilings:Objective",
  evaluate="tilings:evaluate",
  one_fold="tilings:one_fold",
  search="tilings:search",
  simulate="tilings:simulate",
  Mapping="loops:Mapping",
  ORDERS="loops:ORDERS",
)
