"""Number formats: what a value becomes when it is stored in few bits.

  Fixed         integers, 1 to 24 bits: symmetric, two's complement or affine
  Minifloat     floating point: E4M3, E5M2, E2M3, E3M2, E2M1, any (exponent, mantissa)
  BlockFloat    integers under a shared exponent: FAST, MSFP, HBFP
  Microscaling  OCP MX: MXFP8_E4M3, MXFP8_E5M2, MXFP6_E2M3, MXFP6_E3M2, MXFP4, MXINT8
  ScaledBlocks  minifloats under two levels of scales: NVFP4
  Logarithmic   powers of two, and of roots of two
  Terms         integers under a budget of powers of two
  Calibrated    any of them with a scale from data seen before
  LSQ PACT DoReFa   integers whose range is learned, or bounded by a function

Each is defined, with its laws, by `Format` in numerics/format.py.
"""

from jaxcodesign.numerics.block_float import BlockFloat
from jaxcodesign.numerics.calibration import Calibrated
from jaxcodesign.numerics.fixed import Fixed
from jaxcodesign.numerics.format import Format, Packed
from jaxcodesign.numerics.learned import LSQ, PACT, DoReFa
from jaxcodesign.numerics.logarithmic import Logarithmic
from jaxcodesign.numerics.microscaling import (
  MXFP4,
  MXFP6_E2M3,
  MXFP6_E3M2,
  MXFP8_E4M3,
  MXFP8_E5M2,
  MXINT8,
  NVFP4,
  Microscaling,
  ScaledBlocks,
)
from jaxcodesign.numerics.minifloat import E2M1, E2M3, E3M2, E4M3, E5M2, Minifloat
from jaxcodesign.numerics.sharing import Share
from jaxcodesign.numerics.term_budget import Terms

__all__ = [
  "E2M1",
  "E2M3",
  "E3M2",
  "E4M3",
  "E5M2",
  "LSQ",
  "MXFP4",
  "MXFP6_E2M3",
  "MXFP6_E3M2",
  "MXFP8_E4M3",
  "MXFP8_E5M2",
  "MXINT8",
  "NVFP4",
  "PACT",
  "BlockFloat",
  "Calibrated",
  "DoReFa",
  "Fixed",
  "Format",
  "Logarithmic",
  "Microscaling",
  "Minifloat",
  "Packed",
  "ScaledBlocks",
  "Share",
  "Terms",
]
