"""Which values share a scale, and the arrays reshaped so that they lie together.

Rows, groups and blocks run along one axis: the last, which is the contraction of every
canonical operand, or another one counted from the end, for arrays that lie otherwise in
memory. What follows shapes writes [..., N] for that axis, wherever it is. A group of
integers must divide it: a remainder would get a scale of its own size. The block of a
block format need not: it is filled up with zeros, which no shared exponent sees, and
cut off again.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from jaxcodesign.numerics.formats import terms

Share = int | Literal["tensor", "channel"]


def check_share(share: object) -> None:
  """Raises a ValueError unless `share` is "tensor", "channel" or a group size."""
  if share not in ("tensor", "channel") and not (isinstance(share, int) and share >= 1):
    raise ValueError(
      f'share={share!r} is neither "tensor", "channel" nor a group size >= 1'
    )


def check_axis_number(axis: object) -> None:
  """Raises a ValueError unless `axis` counts from the end: -1, -2, ..."""
  if not isinstance(axis, int) or axis >= 0:
    raise ValueError(
      f"axis={axis!r}: scales run along an axis counted from the end, -1 for the last"
    )


def check_group(share: Share | None, length: int) -> None:
  """Raises a ValueError if `share` is a group that does not divide `length`."""
  if isinstance(share, int):
    terms.check_group(share, (length,))


def lanes(x: jax.Array, share: Share, axis: int = -1) -> jax.Array:
  """`x` [..., N] reshaped so that what shares a scale is all of it, or its `axis`.

  Raises:
    ValueError: If a group does not divide N, or `x` has no such axis.
  """
  if share == "tensor":
    return x
  check_axis(x, axis)
  if share == "channel":
    return x
  terms.check_group(share, x.shape, axis)
  return _cut(x, share, axis)


def axis_of(share: Share, axis: int = -1) -> int | None:
  """The axis of `lanes` that a scale is reduced over; None for all of them."""
  return None if share == "tensor" else axis


def spread(scale: jax.Array, share: Share, axis: int = -1) -> jax.Array:
  """`scale` in a shape that broadcasts against `lanes`."""
  return scale if share == "tensor" else jnp.expand_dims(scale, axis)


def blocks(x: jax.Array, block: int, axis: int = -1) -> jax.Array:
  """`x` [..., N] as [..., ceil(N / block), block], the last block filled with zeros."""
  check_axis(x, axis)
  missing = -x.shape[axis] % block
  if missing:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    x = jnp.pad(x, widths)
  return _cut(x, block, axis)


def unblock(y: jax.Array, shape: tuple[int, ...], axis: int = -1) -> jax.Array:
  """The inverse of `blocks` for an array that had `shape`."""
  at = axis % len(shape)
  length = math.prod(y.shape[at : at + 2])
  whole = y.reshape(*shape[:at], length, *shape[at + 1 :])
  if whole.shape == shape:
    return whole
  return jax.lax.slice_in_dim(whole, 0, shape[at], axis=at)


def _cut(x: jax.Array, size: int, axis: int) -> jax.Array:
  """`axis` as two, of which the second is in its place and has `size`."""
  at = axis % x.ndim
  return x.reshape(*x.shape[:at], x.shape[at] // size, size, *x.shape[at + 1 :])


def check_whole(**values: object) -> None:
  """Raises a TypeError naming a static field that is no int; True and 4.0 are none."""
  for name, value in values.items():
    if isinstance(value, bool) or not isinstance(value, int):
      raise TypeError(f"{name}={value!r} is no int: write it as a whole number")


def check_block(block: object) -> None:
  """Raises a ValueError unless `block` is a whole number of values."""
  if not isinstance(block, int) or block < 1:
    raise ValueError(f"block={block!r} is no number of neighbours >= 1")


def check_axis(x: jax.Array, axis: int = -1) -> None:
  """Raises a ValueError if `x` has no such axis to share scales along."""
  if x.ndim and not -x.ndim <= axis < 0:
    raise ValueError(f"axis={axis} is out of range for x of shape {x.shape}")
  if not x.ndim:
    raise ValueError(
      "x of shape () has no last axis to share scales along; reshape it to (1,) or "
      'share by "tensor"'
    )
