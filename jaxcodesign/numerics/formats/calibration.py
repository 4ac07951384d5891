"""Scales from data seen before: chosen once, then the same for every batch.

`maximum`, `percentile` and `mse` look at an array and return a scale for `fmt.round`.
`Calibrated` is a format with such a scale built in, so that a policy can hold it: the
static activation scales of integer accelerators.

  scale = calibration.mse(Fixed(8), activations)
  Rule("dense1/kernel", Fixed(8, "channel"), Calibrated(Fixed(8), scale))
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxcodesign import tree
from jaxcodesign.numerics.formats import noise
from jaxcodesign.numerics.formats.format import Format, floats


def maximum(fmt: Format, x: jax.Array) -> Any:
  """The scale that the format takes itself: the largest magnitudes just fit."""
  return fmt.scale(floats(x))


def percentile(fmt: Format, x: jax.Array, percent: float = 99.9) -> Any:
  """The scale of `x` [..., N] with its largest magnitudes left to saturate.

  Args:
    fmt: Any format; one without a scale returns what its `scale` does.
    x: Floating point.
    percent: Share of the magnitudes that must fit, in (0, 100]; of each row where
      `fmt` has a scale for each channel, else of the whole array.

  Raises:
    ValueError: If `percent` is outside.
  """
  if not 0 < percent <= 100:
    raise ValueError(f"percent={percent} is outside (0, 100]; 99.9 is usual")
  x = floats(x)
  axis = -1 if getattr(fmt, "share", None) == "channel" else None
  limit = jnp.percentile(jnp.abs(x), percent, axis=axis, keepdims=True)
  return fmt.scale(jnp.clip(x, -limit, limit))


def mse(fmt: Format, x: jax.Array, *, grid: int = 40, least: float = 0.3) -> Any:
  """The scale, of `grid` shrunk ones, that rounds `x` with the least squared error.

  Args:
    fmt: Any format. Where all parts of its scale have one shape, each is chosen for
      the values that share it; a scale of several levels is chosen as a whole.
    x: [..., N] floating point.
    grid: Scales tried: those of x times 1, ..., `least`, evenly spaced.
    least: In (0, 1].

  Raises:
    ValueError: If `grid` < 1 or `least` is outside.
  """
  if grid < 1 or not 0 < least <= 1:
    raise ValueError(f"grid={grid} must be at least 1 and least={least} in (0, 1]")
  x = floats(x)
  shapes = {leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(fmt.scale, x))}
  shape = shapes.pop() if len(shapes) == 1 else ()

  def tried(ratio: jax.Array) -> tuple[Any, jax.Array]:
    scale = fmt.scale(x * ratio)
    return scale, _shared((fmt.round(x, scale) - x) ** 2, shape)

  scales, errors = jax.lax.map(tried, jnp.linspace(1.0, least, grid))
  best = jnp.argmin(errors, axis=0)
  if not shape:
    return jax.tree.map(lambda leaf: leaf[best], scales)
  return jax.tree.map(lambda s: jnp.take_along_axis(s, best[None], 0)[0], scales)


def _shared(error: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Sums of `error` [..., N] over the values that share a scale of `shape`."""
  if not shape:
    return jnp.sum(error)
  if shape == error.shape[:-1]:
    return jnp.sum(error, axis=-1)
  groups = shape[-1]
  width = math.ceil(error.shape[-1] / groups)
  missing = groups * width - error.shape[-1]
  error = jnp.pad(error, [(0, 0)] * (error.ndim - 1) + [(0, missing)])
  return jnp.sum(error.reshape(*shape, width), axis=-1)


@tree.pytree
class Calibrated(Format):
  """A format whose scale is known: `scale(x)` looks at no data but its shape.

  A NaN stays one when rounded, alone: the scale does not know of it. Integer codes have
  none, so pack finite values only.

  Attributes:
    format: How values are rounded.
    stored: Its scale, a leaf or a tree of them; what lies beyond saturates.
  """

  format: Format
  stored: Any

  def scale(self, x: jax.Array) -> Any:
    wanted = jax.eval_shape(self.format.scale, x)
    given = jax.tree.map(jnp.shape, self.stored)
    if given != jax.tree.map(lambda leaf: leaf.shape, wanted):
      raise ValueError(
        f"the stored scale has shape {given}, but {self.format!r} scales an array of "
        f'{x.shape} otherwise; share by "tensor", or calibrate on this shape'
      )
    return self.stored

  def round(self, x: jax.Array, scale: Any, key: Any = None) -> jax.Array:
    return self.format.round(x, scale, key)

  def elements(self, x: jax.Array, scale: Any, source: noise.Noise | None) -> jax.Array:
    return self.format.elements(x, scale, source)

  def values(self, elements: jax.Array, scale: Any) -> jax.Array:
    return self.format.values(elements, scale)

  def store(self, elements: jax.Array) -> jax.Array:
    return self.format.store(elements)

  def load(self, codes: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return self.format.load(codes, shape)

  def store_scale(self, scale: Any) -> Any:
    return self.format.store_scale(scale)

  def load_scale(self, stored: Any) -> Any:
    return self.format.load_scale(stored)

  def bits_per_value(self) -> Any:
    return self.format.bits_per_value()

  def terms_per_value(self) -> Any:
    return self.format.terms_per_value()

  def most_terms(self) -> Any:
    return self.format.most_terms()

  @property
  def pointwise(self) -> bool:
    return self.format.pointwise

  @property
  def static(self) -> bool:
    return True

  def ends(self, x: jax.Array, scale: Any) -> jax.Array:
    return self.format.ends(x, scale)

  def check(self, length: int) -> None:
    self.format.check(length)
