"""Integers in as few bytes as they need: two to a byte where 4 bits suffice.

Not jax's int4 and float4: XLA:CPU keeps one of those to the byte and takes 50 times as
long to convert as these shifts (12 to 18 ms against 0.25 ms for 1024^2 values).
"""

from typing import Any

import jax
import jax.numpy as jnp


def signed_type(magnitude: int) -> Any:
  """The smallest signed integer type, a byte or more, for -magnitude ... magnitude."""
  for dtype in (jnp.int8, jnp.int16):
    if magnitude <= jnp.iinfo(dtype).max:
      return dtype
  return jnp.int32


def store_integers(q: jax.Array, magnitude: int) -> jax.Array:
  """Whole numbers `q` [..., N], -magnitude - 1 <= q <= magnitude, stored.

  Returns:
    uint8 [..., ceil(N / 2)] `nibbles` up to magnitude 7, else `signed_type` [..., N].
  """
  if magnitude <= 7:
    return nibbles(q.astype(jnp.int8))
  return q.astype(signed_type(magnitude))


def load_integers(codes: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """float32 `shape`: the inverse of `store_integers`."""
  if codes.dtype == jnp.uint8:
    unsigned = from_nibbles(codes, shape)
    return ((unsigned ^ 8) - 8).astype(jnp.float32)
  return codes.astype(jnp.float32)


def nibbles(q: jax.Array) -> jax.Array:
  """uint8 [..., ceil(N / 2)]: the low 4 bits of int8 `q` [..., N], the first lowest."""
  q = jnp.atleast_1d(q)
  if q.shape[-1] % 2:
    q = jnp.pad(q, [(0, 0)] * (q.ndim - 1) + [(0, 1)])
  pairs = q.reshape(*q.shape[:-1], q.shape[-1] // 2, 2)
  both = jax.lax.bitcast_convert_type(pairs, jnp.uint16)
  return (both & 0xF | both >> 4 & 0xF0).astype(jnp.uint8)


def from_nibbles(codes: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """int32 `shape` in 0 ... 15: the inverse of `nibbles`."""
  pairs = jnp.stack([codes & 0xF, codes >> 4], axis=-1).astype(jnp.int32)
  flat = pairs.reshape(*codes.shape[:-1], 2 * codes.shape[-1])
  return flat[..., : shape[-1] if shape else 1].reshape(shape)
