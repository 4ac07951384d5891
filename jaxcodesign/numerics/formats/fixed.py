"""Uniform integers: the format of integer MACs.

References: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018; for one bit, Rastegari et al.,
"XNOR-Net", ECCV 2016.
"""

from typing import Any, Literal, NamedTuple

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
from jaxcodesign.numerics.formats.steps import HUGE, in_steps, step_of
from jaxcodesign.numerics.formats.storage import (
  load_integers,
  signed_type,
  store_integers,
)

Grid = Literal["symmetric", "full", "affine"]
GRIDS: tuple[Grid, ...] = ("symmetric", "full", "affine")


class Affine(NamedTuple):
  """Scale of an affine grid: a code q means (q - zero) * step."""

  step: jax.Array
  zero: jax.Array  # a whole number among the codes, so that zero is exact


@tree.pytree
class Fixed(Format):
  """Uniform integers of a fixed width; a group must divide the axis.

  Grids, with B = bits and the step so that the largest magnitude just fits:
    "symmetric"  -(2^(B-1) - 1) ... 2^(B-1) - 1 steps of max|x| / (2^(B-1) - 1)
    "full"       -2^(B-1) ... 2^(B-1) - 1 steps of max|x| / (2^(B-1) - 1/2): two's
                 complement as torchao and qwix; the positive end clips
    "affine"     codes 0 ... 2^B - 1 over [min(x, 0), max(x, 0)]; zero is a code

  One symmetric bit is a sign: +-mean|x|, zero goes to plus, an all-zero share stays
  zero; stochastically it is plus with probability (1 + x / mean|x|) / 2, clipped.

  Attributes:
    bits: 1 to 24, the sign included; a full grid has at least 2.
    share: Values with one scale: the whole "tensor", each "channel" (row along the
      last axis), or a group of that many neighbours, which must divide the axis.
    grid: See above.
    rule: Where values between steps go without noise; see `rounding.to_integer`.
    axis: Where scales run, counted from the end: -1, the last, is the contraction of
      canonical operands.
  """

  bits: int = tree.static(default=8)
  share: Share = tree.static(default="tensor")
  grid: Grid = tree.static(default="symmetric")
  rule: rounding.Rule = tree.static(default="even")
  axis: int = tree.static(default=-1)

  def __post_init__(self):
    if self.grid not in GRIDS:
      raise ValueError(f"grid={self.grid!r} is none of {', '.join(GRIDS)}")
    least = 2 if self.grid == "full" else 1
    check_whole(bits=self.bits)
    if not least <= self.bits <= 24:
      raise ValueError(
        f"Fixed has {least} to 24 bits on a {self.grid} grid: bits={self.bits}"
      )
    check_share(self.share)
    check_axis_number(self.axis)
    rounding.check_rule(self.rule)

  def limits(self) -> tuple[int, int]:
    """The lowest and the highest element."""
    half = 2 ** (self.bits - 1)
    if self.bits == 1 and self.grid == "symmetric":
      return -1, 1
    if self.grid == "affine":
      return 0, 2 * half - 1
    return (1 - half if self.grid == "symmetric" else -half), half - 1

  @compiled
  def scale(self, x: jax.Array) -> Any:
    values, axis = (
      lanes(floats(x), self.share, self.axis),
      axis_of(self.share, self.axis),
    )
    if self.grid == "affine":
      low, high = exponents.span(values, axis)
      most = 2**self.bits - 1
      step = step_of(high / 2 - low / 2, most / 2)
      return Affine(step, jnp.clip(jnp.round(in_steps(-low, step)), 0, most))
    if self.bits == 1:
      mean = _mean(jnp.abs(values), axis)
      return jnp.where(jnp.isfinite(mean), mean, jnp.float32(jnp.nan))
    most = 2.0 ** (self.bits - 1) - (1 if self.grid == "symmetric" else 0.5)
    peak = exponents.peak(lanes(unflushed(x), self.share, self.axis), axis)
    return step_of(peak, most, reach=2.0 ** (self.bits - 1))

  def elements(self, x: jax.Array, scale: Any, source: noise.Noise | None) -> jax.Array:
    values = lanes(x, self.share, self.axis)
    step, zero = scale if self.grid == "affine" else (scale, None)
    step = spread(step, self.share, self.axis)
    if self.grid == "symmetric" and self.bits == 1:
      return _signs(values, step, source).reshape(x.shape)
    codes = rounding.to_integer(in_steps(values, step), source, self.rule)
    if zero is not None:
      codes += spread(zero, self.share, self.axis)
    return jnp.clip(codes, *self.limits()).reshape(x.shape)

  def values(self, elements: jax.Array, scale: Any) -> jax.Array:
    step, zero = scale if self.grid == "affine" else (scale, None)
    steps = lanes(elements, self.share, self.axis)
    step = spread(step, self.share, self.axis)
    if zero is None:
      return (steps * step).reshape(elements.shape)
    # A rounded zero moves the ends by half a step, past the largest float32 at worst.
    values = jnp.clip((steps - spread(zero, self.share, self.axis)) * step, -HUGE, HUGE)
    return jnp.where(step < jnp.inf, values, jnp.float32(jnp.nan)).reshape(
      elements.shape
    )

  def store(self, elements: jax.Array) -> jax.Array:
    if self.bits == 1:
      return jnp.packbits(jnp.atleast_1d(elements > 0), axis=-1)
    middle = 2 ** (self.bits - 1) if self.grid == "affine" else 0
    return store_integers(elements - middle, 2 ** (self.bits - 1) - 1)

  def load(self, codes: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if self.bits == 1:
      if not codes.size:
        return jnp.zeros(shape, jnp.float32)
      size = shape[-1] if shape else 1
      plus = jnp.unpackbits(codes, axis=-1, count=size).reshape(shape)
      return jnp.where(plus == 1, jnp.float32(1), jnp.float32(self.limits()[0]))
    middle = 2 ** (self.bits - 1) if self.grid == "affine" else 0
    return load_integers(codes, shape) + middle

  def store_scale(self, scale: Any) -> Any:
    if self.grid != "affine":
      return scale
    middle = 2 ** (self.bits - 1)
    return Affine(
      scale.step, (scale.zero - middle).astype(signed_type(max(middle - 1, 1)))
    )

  def load_scale(self, stored: Any) -> Any:
    if self.grid != "affine":
      return stored
    middle = 2 ** (self.bits - 1)
    return Affine(stored.step, stored.zero.astype(jnp.float32) + middle)

  @property
  def pointwise(self) -> bool:
    return self.share == "tensor"

  def check(self, length: int) -> None:
    check_group(self.share, length)

  def bits_per_value(self) -> float:
    return float(self.bits)

  def terms_per_value(self) -> Any:
    return float(terms.most_terms(max(self.bits - 1, 1)))


def _mean(x: jax.Array, axis: int | None) -> jax.Array:
  count = max(x.size if axis is None else x.shape[axis], 1)
  # Divided first: the sum of finite values may be infinite, their mean is not.
  return jnp.sum(x * np.float32(1 / count), axis=axis)


def _signs(x: jax.Array, step: jax.Array, source: noise.Noise | None) -> jax.Array:
  plus = x >= 0
  if source is not None:
    share = in_steps(x, jnp.where(step == 0, jnp.float32(1), step))
    share = jnp.clip(share, -1, 1)
    plus = source.up((share + 1) / 2)
  signs = jnp.where(plus, jnp.float32(1), jnp.float32(-1))
  return jnp.where(jnp.isnan(x), x, signs)
