"""Powers of two, and of roots of two: weights whose products are shifts.

With `fraction=0` a weight is a sign and a shift: a shift-accumulate MAC needs no
multiplier. Each further bit of fraction halves the step in the logarithm, and costs a
table of as many constants beside the shifter.

References: Miyashita, Lee, Murmann, "Convolutional Neural Networks using Logarithmic
Data Representation", arXiv 1603.01025; Zhou et al., "Incremental Network Quantization",
ICLR 2017.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.numerics.formats import exponents, noise
from jaxcodesign.numerics.formats.compiled import compiled
from jaxcodesign.numerics.formats.format import Format, unflushed
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
from jaxcodesign.numerics.formats.storage import store_integers

_POISON = exponents.INFINITE << 3  # above every logarithm of a float32, in eighths


@tree.pytree
class Logarithmic(Format):
  """+-2^(n / F) with F = 2^fraction steps in an octave, and zero.

  The K = 2^(bits-1) - 1 logarithms end at that of the largest magnitude of a share.
  Without noise a value goes to the nearer of its neighbours, away from zero on ties;
  the neighbour of the smallest number is zero. The scale is the top logarithm n as
  int32, 1024 where the share holds NaN or infinity. A group must divide the axis.

  Attributes:
    bits: 2 to 8, the sign included.
    fraction: Bits of the logarithm's fraction, 0 (powers of two) to 3.
    share: Values with one scale, as in `Fixed`.
    axis: Where scales run, as in `Fixed`.
  """

  bits: int = tree.static(default=4)
  fraction: int = tree.static(default=0)
  share: Share = tree.static(default="tensor")
  axis: int = tree.static(default=-1)

  def __post_init__(self):
    check_whole(bits=self.bits, fraction=self.fraction)
    if not 2 <= self.bits <= 8:
      raise ValueError(f"Logarithmic has 2 to 8 bits: bits={self.bits}")
    if not 0 <= self.fraction <= 3:
      raise ValueError(f"fraction={self.fraction} is outside 0..3")
    check_share(self.share)
    check_axis_number(self.axis)

  @property
  def _most(self) -> int:
    return 2 ** (self.bits - 1) - 1

  @compiled
  def scale(self, x: jax.Array) -> jax.Array:
    peak = exponents.peak(
      lanes(unflushed(x), self.share, self.axis), axis_of(self.share, self.axis)
    )
    n = self._logarithm(peak, None)
    # 2^128 is no float32: what would round up to it stays one step below.
    n = jnp.minimum(n, (exponents.INFINITE << self.fraction) - 1)
    return jnp.where(jnp.isfinite(peak), n, _POISON)

  def elements(self, x: jax.Array, scale: Any, source: noise.Noise | None) -> jax.Array:
    values = lanes(x, self.share, self.axis)
    top = spread(scale, self.share, self.axis)
    magnitude = jnp.abs(values)
    index = self._logarithm(magnitude, source) - top + self._most
    index = jnp.clip(index, 1, self._most)
    least = self._power(top - (self._most - 1))
    share = magnitude / jnp.where(least == 0, jnp.float32(1), least)
    below = share >= 0.5 if source is None else source.up(jnp.minimum(share, 1))
    index = jnp.where(magnitude < least, below.astype(jnp.int32), index)
    index = jnp.where(magnitude == 0, 0, index).astype(jnp.float32)
    signed = jnp.where(values < 0, -index, index)
    return jnp.where(jnp.isnan(values), values, signed).reshape(x.shape)

  def values(self, elements: jax.Array, scale: Any) -> jax.Array:
    index = lanes(elements, self.share, self.axis)
    top = spread(scale, self.share, self.axis)
    n = top - self._most + jnp.abs(index).astype(jnp.int32)
    power = jnp.where(index == 0, jnp.float32(0), self._power(n))
    number = jnp.where(index < 0, -power, power)
    poisoned = (top == _POISON) | jnp.isnan(index)
    return jnp.where(poisoned, jnp.float32(jnp.nan), number).reshape(elements.shape)

  def _octave(self) -> np.ndarray:
    """float32 2^(j / F) for j = 0 ... F."""
    steps = 2**self.fraction
    return (2.0 ** (np.arange(steps + 1) / steps)).astype(np.float32)

  def _logarithm(self, magnitude: jax.Array, source: noise.Noise | None) -> jax.Array:
    """int32 n so that 2^(n / F) is the neighbour that float32 `magnitude` goes to."""
    bits = exponents.bits_of(magnitude)
    base = exponents.floor_log2(bits) << self.fraction
    leading = exponents.of_bits(bits & 0x7FFFFF | 0x3F800000)  # in [1, 2)
    octave = self._octave()
    if source is None:
      middles = (octave[1:] + octave[:-1]) / 2
      return base + sum((leading >= m).astype(jnp.int32) for m in middles)
    low = sum((leading >= p).astype(jnp.int32) for p in octave[1:-1])
    low = jnp.asarray(low, jnp.int32)
    floor, ceiling = _pick(octave[:-1], low), _pick(octave[1:], low)
    up = source.up((leading - floor) / (ceiling - floor))
    return base + low + up.astype(jnp.int32)

  def _power(self, n: jax.Array) -> jax.Array:
    """float32 2^(n / F), zero where that is subnormal."""
    leading = _pick(self._octave()[:-1], n & (2**self.fraction - 1))
    e = jnp.clip(n >> self.fraction, -252, 127)
    return exponents.flush(exponents.times_power_of_two(leading, e))

  def store(self, elements: jax.Array) -> jax.Array:
    return store_integers(elements, self._most)

  def store_scale(self, scale: jax.Array) -> jax.Array:
    return scale.astype(jnp.int16)

  def load_scale(self, stored: jax.Array) -> jax.Array:
    return stored.astype(jnp.int32)

  def bits_per_value(self) -> float:
    return float(self.bits)

  @property
  def pointwise(self) -> bool:
    return self.share == "tensor"

  def check(self, length: int) -> None:
    check_group(self.share, length)

  def terms_per_value(self) -> float:
    """One shift; with a fraction, one product with a constant of the table as well."""
    return 1.0


def _pick(table: np.ndarray, index: jax.Array) -> jax.Array:
  """table[index] by comparisons: a gather would break up the fused loop."""
  value = jnp.full(index.shape, table[0], jnp.float32)
  for j, constant in enumerate(table[1:], 1):
    value = jnp.where(index >= j, constant, value)
  return value
