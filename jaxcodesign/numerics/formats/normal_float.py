"""Sixteen values that a normal distribution fills evenly, times an absolute maximum.

Reference: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS
2023, appendix E.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.numerics.formats import exponents, noise, terms
from jaxcodesign.numerics.formats.compiled import compiled
from jaxcodesign.numerics.formats.format import Format, unflushed
from jaxcodesign.numerics.formats.sharing import (
  Share,
  axis_of,
  check_axis_number,
  check_group,
  check_share,
  lanes,
  spread,
)
from jaxcodesign.numerics.formats.steps import in_steps, step_of
from jaxcodesign.numerics.formats.storage import from_nibbles, nibbles

LEVELS = (
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
  -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
  0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
  0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_LEVELS = np.array(LEVELS, np.float32)


@tree.pytree
class NormalFloat(Format):
  """NF4, 4 bits with the sign: the nearest of `LEVELS` times max|x| of a share.

  Not odd: there is a level more above zero than below. A value in the middle of two
  goes to the lower one.

  Attributes:
    share: Values with one float32 scale, as in `Fixed`: 64 neighbours in QLoRA. A
      group must divide the axis.
    axis: Where scales run, as in `Fixed`.
  """

  share: Share = tree.static(default=64)
  axis: int = tree.static(default=-1)

  def __post_init__(self):
    check_share(self.share)
    check_axis_number(self.axis)

  @compiled
  def scale(self, x: jax.Array) -> jax.Array:
    values = lanes(unflushed(x), self.share, self.axis)
    step = step_of(exponents.peak(values, axis_of(self.share, self.axis)), 1.0)
    # A level is stored for a NaN as well: the scale says that it is none.
    return jnp.where(jnp.isfinite(step), step, jnp.float32(jnp.nan))

  def elements(self, x: jax.Array, scale: Any, source: noise.Noise | None) -> jax.Array:
    step = spread(scale, self.share, self.axis)
    v = in_steps(lanes(x, self.share, self.axis), step)
    if source is None:
      middles = (_LEVELS[1:] + _LEVELS[:-1]) / 2
      found = _pick(_LEVELS, _above(v, middles))
    else:
      below = _above(v, np.nextafter(_LEVELS[1:-1], np.float32(-2)))  # v >= a level
      low, high = _pick(_LEVELS[:-1], below), _pick(_LEVELS[1:], below)
      share = jnp.clip((v - low) / (high - low), 0, 1)
      found = jnp.where(source.up(share), high, low)
    return jnp.where(jnp.isnan(v), v, found).reshape(x.shape)

  def values(self, elements: jax.Array, scale: Any) -> jax.Array:
    step = spread(scale, self.share, self.axis)
    return (lanes(elements, self.share, self.axis) * step).reshape(elements.shape)

  def store(self, elements: jax.Array) -> jax.Array:
    return nibbles(_above(elements, _LEVELS[:-1]).astype(jnp.int8))

  def load(self, codes: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return _pick(_LEVELS, from_nibbles(codes, shape))

  def bits_per_value(self) -> float:
    return 4.0

  def terms_per_value(self) -> float:
    """A level is multiplied as the float32 number that it is looked up to."""
    return float(terms.most_terms(24))

  @property
  def pointwise(self) -> bool:
    return self.share == "tensor"

  def check(self, length: int) -> None:
    check_group(self.share, length)


def _above(v: jax.Array, bounds: np.ndarray) -> jax.Array:
  """How many of the ascending `bounds` are below each of `v`, int32."""
  return sum(((v > b).astype(jnp.int32) for b in bounds), jnp.zeros(v.shape, jnp.int32))


def _pick(table: np.ndarray, index: jax.Array) -> jax.Array:
  """table[index] by comparisons: a gather of a few values is slower."""
  found = jnp.full(index.shape, table[0])
  for i, value in enumerate(table[1:], start=1):
    found = jnp.where(index >= i, value, found)
  return found


NF4 = NormalFloat()
