"""Design efficient AI models and their accelerators together."""

from typing import TYPE_CHECKING

from jaxcodesign.faces import face

if TYPE_CHECKING:
  from jaxcodesign import data as data
  from jaxcodesign import experiments as experiments
  from jaxcodesign import figures as figures
  from jaxcodesign import hardware as hardware
  from jaxcodesign import models as models
  from jaxcodesign import numerics as numerics
  from jaxcodesign import programs as programs
  from jaxcodesign import runs as runs
  from jaxcodesign import training as training
  from jaxcodesign import tree as tree
  from jaxcodesign.hardware.pricing.cost import evaluate as evaluate
  from jaxcodesign.programs.precision import quantize as quantize
  from jaxcodesign.programs.rewrite import rewrite_gemms as rewrite_gemms
  from jaxcodesign.programs.workload import trace as trace

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = face(  # pyright: ignore[reportUnsupportedDunderAll]
  __name__,
  data="data",
  evaluate="hardware.pricing.cost:evaluate",
  experiments="experiments",
  figures="figures",
  hardware="hardware",
  models="models",
  numerics="numerics",
  programs="programs",
  quantize="programs.precision:quantize",
  runs="runs",
  rewrite_gemms="programs.rewrite:rewrite_gemms",
  trace="programs.workload:trace",
  training="training",
  tree="tree",
)
