"""What every number format is: a scale, elements on a fixed grid, and their storage.

A format is a frozen pytree. `scale(x)` looks at the data once; `round(x, scale)` puts
values on the grid that the scale spans. They are two methods because truncation lowers
the peak of a tensor: a format that looked again would move its grid and never come to
rest. In between stand the *elements*, the numbers that hardware stores and multiplies:

  x --elements(., scale)--> elements --values(., scale)--> what a fake quantizer returns
                               |  ^
                           store  load
                               v  |
                              codes, in their true storage type

Laws, checked in one table over all members:
  round(round(x, s), s) == round(x, s)      projection (Terms with booth4 excepted)
  round(-x, s) == -round(x, s)              odd, under one key too (two's complement
                                            and affine grids excepted)
  round(0, s) == 0                          zero stays zero: sparsity survives (one bit
                                            excepted: it has no zero)
  shape and dtype of the result are those of x
  unpack(pack(x)) == quantize(x)            bit for bit
  a NaN makes the values that share its scale NaN; so does an infinity, in the same way
  (a Minifloat without a scale keeps NaN and treats infinity as its overflow says)
  a magnitude below 2^-126 is zero, before and after, on every backend

Arithmetic is float32. Gradients are straight-through: `round` has derivative one with
respect to x (values that saturate included) and none with respect to the scale.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxcodesign import tree
from jaxcodesign.numerics.formats import exponents, noise, rounding, storage
from jaxcodesign.numerics.formats.compiled import compiled

Key = jax.Array | noise.Noise


@tree.pytree
class Packed:
  """An array in storage: codes, the scales they share, and what it was.

  Attributes:
    codes: The elements in their storage type, in the shape of the array (or of its
      bytes, where several codes share one).
    scale: The scales in their storage types, a pytree.
    shape: Shape of the array.
    dtype: Its dtype, which `unpack` returns.
  """

  codes: jax.Array
  scale: Any
  shape: tuple[int, ...] = tree.static()
  dtype: Any = tree.static()

  @property
  def nbytes(self) -> int:
    """Bytes of codes and scales."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(self))


class Format(abc.ABC):
  """A number format; see the laws in the module's docstring."""

  @abc.abstractmethod
  def scale(self, x: jax.Array) -> Any:
    """The scale or scales of `x` [..., N]: a pytree that `round` understands."""

  @compiled
  def round(self, x: jax.Array, scale: Any, key: Key | None = None) -> jax.Array:
    """`x` [..., N] on the grid of `scale`, straight-through.

    Args:
      x: Floating point.
      scale: What `scale` returned for `x` or for an array of its shape.
      key: A PRNG key or a source of `noise` rounds stochastically; None to nearest.

    Raises:
      TypeError: If `x` is not floating point, or `key` is no key.
    """
    elements = self.elements(floats(x), scale, noise.of(key))
    values = exponents.flush(self.values(elements, scale))
    return rounding.straight_through(x, _cast(values, x.dtype))

  @compiled
  def quantize(self, x: jax.Array, key: Key | None = None) -> jax.Array:
    """`round(x, scale(x), key)`."""
    return self.round(x, self.scale(x), key)

  @compiled
  def pack(self, x: jax.Array, key: Key | None = None) -> Packed:
    """`x` [..., N] as codes and scales in their storage types; no gradient."""
    scale = self.scale(x)
    codes = self.store(self.elements(floats(x), scale, noise.of(key)))
    return Packed(codes, self.store_scale(scale), tuple(x.shape), jnp.dtype(x.dtype))

  @compiled
  def unpack(self, packed: Packed) -> jax.Array:
    """The array that `pack` stored, equal to its `quantize` bit for bit."""
    elements = self.load(packed.codes, packed.shape)
    values = self.values(elements, self.load_scale(packed.scale))
    return _cast(exponents.flush(values), packed.dtype)

  @abc.abstractmethod
  def elements(self, x: jax.Array, scale: Any, source: noise.Noise | None) -> jax.Array:
    """float32 [..., N] on the grid of the elements, for float32 `x` [..., N]."""

  @abc.abstractmethod
  def values(self, elements: jax.Array, scale: Any) -> jax.Array:
    """float32 [..., N]: the elements with their scale applied."""

  @abc.abstractmethod
  def store(self, elements: jax.Array) -> jax.Array:
    """Codes of float32 `elements` [..., N], exactly."""

  def load(self, codes: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The float32 elements [..., N] of an array of `shape` that `store` encoded."""
    return storage.load_integers(codes, shape)

  def store_scale(self, scale: Any) -> Any:
    """The scale in its storage types."""
    return scale

  def load_scale(self, stored: Any) -> Any:
    """The inverse of `store_scale`."""
    return stored

  @abc.abstractmethod
  def bits_per_value(self) -> Any:
    """Bits that one value occupies in memory, its share of a scale not included."""

  @abc.abstractmethod
  def terms_per_value(self) -> Any:
    """Terms a term-serial MAC must be ready for, a group's share; may be traced."""

  def most_terms(self) -> Any:
    """Terms that a single value may have; may be traced."""
    return self.terms_per_value()

  def along(self, axis: int) -> "Format | None":
    """This format with its scales, groups and blocks along another axis.

    An array that lies transposed in memory is rounded several times faster where it
    lies than after a transposition, and to the same values without noise.

    Args:
      axis: Counted from the end, -1 the last.

    Returns:
      A format, itself if `pointwise`; None if its scales are known along one axis only.
    """
    if self.pointwise:
      return self
    if not hasattr(self, "axis"):
      return None
    return dataclasses.replace(self, axis=axis)  # pyright: ignore[reportCallIssue, reportArgumentType]

  @property
  def pointwise(self) -> bool:
    """Whether one scale, or none, serves the whole array: any layout has one grid."""
    return False

  @property
  def static(self) -> bool:
    """Whether the scales were chosen beforehand, for one layout of the array."""
    return False

  def ends(self, x: jax.Array, scale: Any) -> jax.Array:
    """The last value of the grid [..., N] on the side of each value of `x`.

    What the largest number of the dtype becomes; an infinity where nothing saturates.
    """
    return self.round(jnp.copysign(jnp.finfo(x.dtype).max, x), scale)

  def check(self, length: int) -> None:
    """Raises a ValueError if a last axis of `length` cannot be rounded."""
    del length  # blocks that do not divide are padded


def floats(x: jax.Array) -> jax.Array:
  """`x` [...] in float32, without gradient, subnormals flushed.

  Raises:
    TypeError: If `x` is no floating-point array.
  """
  return exponents.flush(unflushed(x))


def unflushed(x: jax.Array) -> jax.Array:
  """`x` [...] in float32, without gradient: enough for a peak, which is flushed itself.

  Raises:
    TypeError: If `x` is no floating-point array.
  """
  if not tree.is_array(x) or not jnp.issubdtype(x.dtype, jnp.floating):
    kind = x.dtype if tree.is_array(x) else type(x).__name__
    raise TypeError(
      f"a format rounds floating-point arrays; x is {kind}: cast it first, "
      "x.astype(jnp.float32), or its real and imaginary parts one by one"
    )
  return jax.lax.stop_gradient(jnp.asarray(x)).astype(jnp.float32)


def _cast(values: jax.Array, dtype: Any) -> jax.Array:
  """float32 `values` [...] in `dtype`; what was finite stays finite."""
  most = float(jnp.finfo(dtype).max)
  if most >= float(jnp.finfo(jnp.float32).max):
    return values.astype(dtype)
  finite = jnp.clip(values, -most, most)
  return jnp.where(jnp.isinf(values), values, finite).astype(dtype)
