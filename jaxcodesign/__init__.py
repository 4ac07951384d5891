"""Design efficient AI models and their accelerators together."""

from jaxcodesign.hardware.cost import evaluate
from jaxcodesign.programs.precision import quantize
from jaxcodesign.programs.rewrite import rewrite_gemms
from jaxcodesign.programs.workload import trace

__all__ = ["evaluate", "quantize", "rewrite_gemms", "trace"]
__version__ = "0.1.0"
