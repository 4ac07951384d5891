"""Number formats: what a value becomes when it is stored in few bits.

  Fixed         integers, 1 to 24 bits: symmetric, two's complement or affine
  Minifloat     floating point: E4M3, E5M2, E2M3, E3M2, E2M1, any (exponent, mantissa)
  BlockFloat    integers under a shared exponent: FAST, MSFP, HBFP
  Microscaling  OCP MX: MXFP8_E4M3, MXFP8_E5M2, MXFP6_E2M3, MXFP6_E3M2, MXFP4, MXINT8
  ScaledBlocks  minifloats under two levels of scales: NVFP4
  Logarithmic   powers of two, and of roots of two
  NormalFloat   the sixteen values of NF4, filled evenly by a normal distribution
  Terms         integers under a budget of powers of two
  Width         integers whose bits a gradient moves
  Calibrated    any of them with a scale from data seen before
  LSQ PACT DoReFa   integers whose range is learned, or bounded by a function

Each is defined, with its laws, by `Format` in numerics/formats/format.py.
"""

from typing import TYPE_CHECKING

from jaxcodesign.faces import face

if TYPE_CHECKING:
  from jaxcodesign.numerics.formats.block_float import BlockFloat as BlockFloat
  from jaxcodesign.numerics.formats.calibration import Calibrated as Calibrated
  from jaxcodesign.numerics.formats.fixed import Fixed as Fixed
  from jaxcodesign.numerics.formats.format import Format as Format
  from jaxcodesign.numerics.formats.format import Packed as Packed
  from jaxcodesign.numerics.formats.learned import LSQ as LSQ
  from jaxcodesign.numerics.formats.learned import PACT as PACT
  from jaxcodesign.numerics.formats.learned import DoReFa as DoReFa
  from jaxcodesign.numerics.formats.logarithmic import Logarithmic as Logarithmic
  from jaxcodesign.numerics.formats.microscaling import MXFP4 as MXFP4
  from jaxcodesign.numerics.formats.microscaling import MXFP6_E2M3 as MXFP6_E2M3
  from jaxcodesign.numerics.formats.microscaling import MXFP6_E3M2 as MXFP6_E3M2
  from jaxcodesign.numerics.formats.microscaling import MXFP8_E4M3 as MXFP8_E4M3
  from jaxcodesign.numerics.formats.microscaling import MXFP8_E5M2 as MXFP8_E5M2
  from jaxcodesign.numerics.formats.microscaling import MXINT8 as MXINT8
  from jaxcodesign.numerics.formats.microscaling import NVFP4 as NVFP4
  from jaxcodesign.numerics.formats.microscaling import Microscaling as Microscaling
  from jaxcodesign.numerics.formats.microscaling import ScaledBlocks as ScaledBlocks
  from jaxcodesign.numerics.formats.minifloat import E2M1 as E2M1
  from jaxcodesign.numerics.formats.minifloat import E2M3 as E2M3
  from jaxcodesign.numerics.formats.minifloat import E3M2 as E3M2
  from jaxcodesign.numerics.formats.minifloat import E4M3 as E4M3
  from jaxcodesign.numerics.formats.minifloat import E5M2 as E5M2
  from jaxcodesign.numerics.formats.minifloat import Minifloat as Minifloat
  from jaxcodesign.numerics.formats.normal_float import NF4 as NF4
  from jaxcodesign.numerics.formats.normal_float import NormalFloat as NormalFloat
  from jaxcodesign.numerics.formats.sharing import Share as Share
  from jaxcodesign.numerics.formats.term_budget import Terms as Terms
  from jaxcodesign.numerics.formats.width import Width as Width

__getattr__, __dir__, __all__ = face(  # pyright: ignore[reportUnsupportedDunderAll]
  __name__,
  BlockFloat="block_float:BlockFloat",
  Calibrated="calibration:Calibrated",
  DoReFa="learned:DoReFa",
  E2M1="minifloat:E2M1",
  E2M3="minifloat:E2M3",
  E3M2="minifloat:E3M2",
  E4M3="minifloat:E4M3",
  E5M2="minifloat:E5M2",
  Fixed="fixed:Fixed",
  Format="format:Format",
  LSQ="learned:LSQ",
  Logarithmic="logarithmic:Logarithmic",
  MXFP4="microscaling:MXFP4",
  MXFP6_E2M3="microscaling:MXFP6_E2M3",
  MXFP6_E3M2="microscaling:MXFP6_E3M2",
  MXFP8_E4M3="microscaling:MXFP8_E4M3",
  MXFP8_E5M2="microscaling:MXFP8_E5M2",
  MXINT8="microscaling:MXINT8",
  Microscaling="microscaling:Microscaling",
  Minifloat="minifloat:Minifloat",
  NF4="normal_float:NF4",
  NVFP4="microscaling:NVFP4",
  NormalFloat="normal_float:NormalFloat",
  PACT="learned:PACT",
  Packed="format:Packed",
  ScaledBlocks="microscaling:ScaledBlocks",
  Share="sharing:Share",
  Terms="term_budget:Terms",
  Width="width:Width",
)
