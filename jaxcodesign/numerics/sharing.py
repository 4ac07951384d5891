"""Which values share a scale, and the arrays reshaped so that they lie together.

Rows, groups and blocks run along the last axis, the contraction of every canonical
operand. A group of integers must divide that axis: a remainder would get a scale of
its own size. The block of a block format need not: it is filled up with zeros, which
no shared exponent sees, and cut off again.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxcodesign.numerics import terms

Share = int | Literal["tensor", "channel"]


def check_share(share: object) -> None:
  """Raises a ValueError unless `share` is "tensor", "channel" or a group size."""
  if share not in ("tensor", "channel") and not (isinstance(share, int) and share >= 1):
    raise ValueError(
      f'share={share!r} is neither "tensor", "channel" nor a group size >= 1'
    )


def check_group(share: Share | None, length: int) -> None:
  """Raises a ValueError if `share` is a group that does not divide `length`."""
  if isinstance(share, int):
    terms.check_group(share, (length,))


def lanes(x: jax.Array, share: Share) -> jax.Array:
  """`x` [..., N] reshaped so that what shares a scale is all of it, or its last axis.

  Raises:
    ValueError: If a group does not divide N.
  """
  if share == "tensor":
    return x
  if share == "channel":
    check_axis(x)
    return x
  terms.check_group(share, x.shape)
  return x.reshape(*x.shape[:-1], x.shape[-1] // share, share)


def axis_of(share: Share) -> int | None:
  """The axis of `lanes` that a scale is reduced over; None for all of them."""
  return None if share == "tensor" else -1


def spread(scale: jax.Array, share: Share) -> jax.Array:
  """`scale` in a shape that broadcasts against `lanes`."""
  return scale if share == "tensor" else scale[..., None]


def blocks(x: jax.Array, block: int) -> jax.Array:
  """`x` [..., N] as [..., ceil(N / block), block], the last block filled with zeros."""
  check_axis(x)
  missing = -x.shape[-1] % block
  if missing:
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
  return x.reshape(*x.shape[:-1], x.shape[-1] // block, block)


def unblock(y: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The inverse of `blocks` for an array that had `shape`."""
  return y.reshape(*shape[:-1], -1)[..., : shape[-1]]


def check_block(block: object) -> None:
  """Raises a ValueError unless `block` is a whole number of values."""
  if not isinstance(block, int) or block < 1:
    raise ValueError(f"block={block!r} is no number of neighbours >= 1")


def check_axis(x: jax.Array) -> None:
  """Raises a ValueError if `x` has no last axis to share scales along."""
  if not x.ndim:
    raise ValueError(
      "x of shape () has no last axis to share scales along; reshape it to (1,) or "
      'share by "tensor"'
    )
