"""Functions to functions, functions to data: tracing and rewriting JAX programs."""

from typing import TYPE_CHECKING

from jaxcodesign.faces import face

if TYPE_CHECKING:
  from jaxcodesign.programs import backward as backward
  from jaxcodesign.programs import fast as fast
  from jaxcodesign.programs import fast_plan as fast_plan
  from jaxcodesign.programs import im2col as im2col
  from jaxcodesign.programs import operands as operands
  from jaxcodesign.programs import policy as policy
  from jaxcodesign.programs import precision as precision
  from jaxcodesign.programs import products as products
  from jaxcodesign.programs import provenance as provenance
  from jaxcodesign.programs import rewrite as rewrite
  from jaxcodesign.programs import workload as workload
  from jaxcodesign.programs.policy import Rule as Rule
  from jaxcodesign.programs.precision import describe as describe
  from jaxcodesign.programs.precision import quantize as quantize
  from jaxcodesign.programs.rewrite import rewrite_gemms as rewrite_gemms
  from jaxcodesign.programs.workload import trace as trace

__getattr__, __dir__, __all__ = face(  # pyright: ignore[reportUnsupportedDunderAll]
  __name__,
  Rule="policy:Rule",
  backward="backward",
  describe="precision:describe",
  fast="fast",
  fast_plan="fast_plan",
  im2col="im2col",
  operands="operands",
  policy="policy",
  precision="precision",
  products="products",
  provenance="provenance",
  quantize="precision:quantize",
  rewrite="rewrite",
  rewrite_gemms="rewrite:rewrite_gemms",
  trace="workload:trace",
  workload="workload",
)
