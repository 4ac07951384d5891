"""Floating point in few bits: float8, float6, float4 and any (exponent, mantissa).

References: Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433; the
OCP Microscaling specification 1.0 for e2m3, e3m2 and e2m1.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.numerics.formats import exponents, noise, rounding, terms
from jaxcodesign.numerics.formats.compiled import compiled
from jaxcodesign.numerics.formats.format import Format, floats, unflushed
from jaxcodesign.numerics.formats.sharing import (
  Share,
  axis_of,
  check_axis_number,
  check_group,
  check_share,
  check_whole,
  lanes,
  spread,
)
from jaxcodesign.numerics.formats.steps import in_steps, step_of
from jaxcodesign.numerics.formats.storage import from_nibbles, nibbles

Specials = Literal["ieee", "fn", "none"]
SPECIALS: tuple[Specials, ...] = ("ieee", "fn", "none")
Overflow = Literal["saturate", "special"]

_DTYPES: dict[tuple[int, int, str], Any] = {
  (3, 4, "ieee"): jnp.float8_e3m4,
  (4, 3, "fn"): jnp.float8_e4m3fn,
  (4, 3, "ieee"): jnp.float8_e4m3,
  (5, 2, "ieee"): jnp.float8_e5m2,
  (5, 10, "ieee"): jnp.float16,
  (8, 7, "ieee"): jnp.bfloat16,
}


@tree.pytree
class Minifloat(Format):
  """Sign, exponent and mantissa; subnormals kept, bias 2^(exponent-1) - 1.

  The highest codes, by `specials`:
    "ieee"  the top exponent is infinity and NaN (e5m2, float16)
    "fn"    only the code of all ones is no number: NaN (e4m3fn)
    "none"  all codes are numbers (e2m3, e3m2, e2m1)

  What rounds beyond the largest number, infinity included, saturates to it, or becomes
  the format's infinity ("ieee") or NaN ("fn") with overflow="special", as plain casts
  do. A NaN stays NaN; where the format has no code for it and the values no scale,
  `pack` stores -0, as ml_dtypes does.

  Attributes:
    exponent: Bits of the exponent, 1 to 7, or 8 with "ieee". With 8 there are no
      subnormals: they would be those of float32.
    mantissa: Bits after the leading one, 0 to 23; at least 1 except for "none".
    specials: See above.
    overflow: "saturate" or "special".
    share: None rounds `x` as it is; else max|x| of each share becomes the largest
      number, by a float32 scale. A group must divide the axis.
    rule: Where values between numbers go without noise.
    axis: Where scales run, as in `Fixed`.
  """

  exponent: int = tree.static(default=4)
  mantissa: int = tree.static(default=3)
  specials: Specials = tree.static(default="fn")
  overflow: Overflow = tree.static(default="saturate")
  share: Share | None = tree.static(default=None)
  rule: rounding.Rule = tree.static(default="even")
  axis: int = tree.static(default=-1)

  def __post_init__(self):
    check_whole(exponent=self.exponent, mantissa=self.mantissa)
    if self.specials not in SPECIALS:
      raise ValueError(f"specials={self.specials!r} is none of {', '.join(SPECIALS)}")
    most = 8 if self.specials == "ieee" else 7
    if not 1 + (self.specials == "ieee") <= self.exponent <= most:
      raise ValueError(
        f"exponent={self.exponent} bits with specials={self.specials!r} do not fit a "
        f"float32: at most {most}, at least 1 (ieee: 2)"
      )
    if not (self.specials != "none") <= self.mantissa <= 23:
      raise ValueError(f"mantissa={self.mantissa} is outside 1..23 (0 only for none)")
    if self.overflow not in ("saturate", "special"):
      raise ValueError(f"overflow={self.overflow!r} is neither saturate nor special")
    if self.overflow == "special" and self.specials == "none":
      raise ValueError(
        'overflow="special" needs a format with inf or NaN; use saturate'
      )
    if self.share is not None:
      check_share(self.share)
    check_axis_number(self.axis)
    rounding.check_rule(self.rule)

  @property
  def lowest(self) -> int:
    """Exponent of the smallest normal number."""
    return 2 - 2 ** (self.exponent - 1)

  @property
  def top(self) -> int:
    """Exponent of the largest number."""
    codes = 2**self.exponent - 1 - (self.specials == "ieee")
    return codes + self.lowest - 1 - (self.specials == "fn" and self.mantissa == 0)

  @property
  def largest(self) -> float:
    """The largest number."""
    gap = 2.0 ** (-self.mantissa + (self.specials == "fn"))
    return (2.0 - gap) * 2.0**self.top

  @compiled
  def scale(self, x: jax.Array) -> jax.Array:
    if self.share is None:
      floats(x)
      return jnp.ones((), jnp.float32)
    values = lanes(unflushed(x), self.share, self.axis)
    return step_of(exponents.peak(values, axis_of(self.share, self.axis)), self.largest)

  def elements(self, x: jax.Array, scale: Any, source: noise.Noise | None) -> jax.Array:
    share = self.share or "tensor"
    number = self._nearby(
      in_steps(lanes(x, share, self.axis), spread(scale, share, self.axis)), source
    )
    if self.overflow == "saturate":
      number = jnp.clip(number, -self.largest, self.largest)
    else:
      over = jnp.float32(jnp.inf if self.specials == "ieee" else jnp.nan)
      beyond = jnp.abs(number) > self.largest
      number = jnp.where(beyond, jnp.copysign(over, number), number)
    return number.reshape(x.shape)

  def _nearby(self, v: jax.Array, source: noise.Noise | None) -> jax.Array:
    """`v` rounded as if exponents had no upper end."""
    power = exponents.exponent_bits(v, self.lowest)
    if self.mantissa and self.lowest - self.mantissa >= -126:
      gap = power - (self.mantissa << 23)  # both the gap and 1 / gap are normal
      ulp, per_ulp = exponents.of_bits(gap), exponents.of_bits((254 << 23) - gap)
      return rounding.to_integer(v * per_ulp, source, self.rule) * ulp
    e = (power >> 23) - 127 - self.mantissa
    steps = exponents.times_power_of_two(v, -e)
    return exponents.times_power_of_two(
      rounding.to_integer(steps, source, self.rule), e
    )

  def values(self, elements: jax.Array, scale: Any) -> jax.Array:
    share = self.share or "tensor"
    return (
      lanes(elements, share, self.axis) * spread(scale, share, self.axis)
    ).reshape(elements.shape)

  @property
  def _dtype(self) -> Any:
    return _DTYPES.get((self.exponent, self.mantissa, self.specials))

  def store(self, elements: jax.Array) -> jax.Array:
    if self._dtype is not None:
      return elements.astype(self._dtype)
    width = 1 + self.exponent + self.mantissa
    if width <= 4:
      return nibbles(self.codes(elements).astype(jnp.int8))
    return self.codes(elements).astype(
      jnp.uint8 if width <= 8 else jnp.uint16 if width <= 16 else jnp.uint32
    )

  def load(self, codes: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if self._dtype is not None:
      return codes.astype(jnp.float32)
    if 1 + self.exponent + self.mantissa <= 4:
      return self.numbers(from_nibbles(codes, shape))
    return self.numbers(codes.astype(jnp.int32))

  def codes(self, elements: jax.Array) -> jax.Array:
    """int32 codes, sign first, of float32 `elements` [...] that lie on the grid."""
    bits = exponents.bits_of(elements)
    magnitude = bits & 0x7FFFFFFF
    normal = (magnitude >> (23 - self.mantissa)) - (
      (self.lowest + 126) << self.mantissa
    )
    unit = 2.0 ** (self.mantissa - self.lowest) if self.exponent < 8 else 0.0
    small = jnp.abs(elements) < 2.0**self.lowest
    code = jnp.where(small, (jnp.abs(elements) * unit).astype(jnp.int32), normal)
    ones = 2 ** (self.exponent + self.mantissa) - 1
    infinite = ones - (2**self.mantissa - 1)
    code = jnp.where(magnitude == 0x7F800000, infinite, code)
    nan = 0 if self.specials == "none" else ones
    code = jnp.where(magnitude > 0x7F800000, nan, code)
    negative = (bits < 0) | ((magnitude > 0x7F800000) & (self.specials == "none"))
    return code | jnp.where(negative, jnp.int32(ones + 1), jnp.int32(0))

  def numbers(self, codes: jax.Array) -> jax.Array:
    """float32 numbers with the given int32 codes [...]."""
    ones = 2 ** (self.exponent + self.mantissa) - 1
    code = codes & ones
    normal = (code << (23 - self.mantissa)) + ((self.lowest + 126) << 23)
    small = code.astype(jnp.float32) * np.float32(2.0 ** (self.lowest - self.mantissa))
    number = jnp.where(code >> self.mantissa == 0, small, exponents.of_bits(normal))
    infinite = ones - (2**self.mantissa - 1)
    if self.specials == "ieee":
      number = jnp.where(code >= infinite, jnp.float32(jnp.inf), number)
      number = jnp.where(code > infinite, jnp.float32(jnp.nan), number)
    if self.specials == "fn":
      number = jnp.where(code == ones, jnp.float32(jnp.nan), number)
    return jnp.where(codes > ones, -number, number)

  def bits_per_value(self) -> float:
    return float(1 + self.exponent + self.mantissa)

  @property
  def pointwise(self) -> bool:
    return self.share in (None, "tensor")

  def check(self, length: int) -> None:
    check_group(self.share, length)

  def terms_per_value(self) -> Any:
    return float(terms.most_terms(self.mantissa + 1))


E4M3 = Minifloat(4, 3, "fn")
E5M2 = Minifloat(5, 2, "ieee")
E2M3 = Minifloat(2, 3, "none")
E3M2 = Minifloat(3, 2, "none")
E2M1 = Minifloat(2, 1, "none")
