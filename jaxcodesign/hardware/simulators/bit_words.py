"""Bits of many cells in one machine word, and the bit streams at an array's edges.

Bit r of a word belongs to row r of its group of 8, 16 or 32 rows; a bitwise operation
on words is a gate in all of them. Streams are skewed: column m and row n begin m and n
cycles late, MAC i of a cell 8 i cycles.
"""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.hardware.simulators.array_scan import pad, skew, unskew

DATA_BITS = 8


def _word(rows: int) -> Any:
  return jnp.uint8 if rows <= 8 else jnp.uint16 if rows <= 16 else jnp.uint32


def packed(bits: jax.Array) -> jax.Array:
  """bool [..., rows] as words [..., words], row 0 the lowest bit."""
  rows = bits.shape[-1]
  word = _word(rows)
  width = jnp.dtype(word).itemsize * 8
  count = -(-rows // width)
  wide = pad(bits, bits.ndim - 1, count * width).reshape(*bits.shape[:-1], count, width)
  places = jnp.arange(width, dtype=word).reshape((1,) * (wide.ndim - 1) + (width,))
  return jnp.sum(wide.astype(word) << places, axis=-1, dtype=word)


def unpacked(words: jax.Array, rows: int) -> jax.Array:
  """Words [..., words] as bits [..., rows]."""
  width = words.dtype.itemsize * 8
  places = jnp.arange(width, dtype=words.dtype).reshape((1,) * words.ndim + (width,))
  bits = (words[..., None] >> places & 1).astype(jnp.uint8)
  return bits.reshape(*words.shape[:-1], -1)[..., :rows]


def data_bits(x: jax.Array, steps: int) -> jax.Array:
  """[alpha, cols, pixels] as it enters: [steps, alpha, cols] bits, skewed by column."""
  alpha, cols, pixels = x.shape
  places = jnp.arange(DATA_BITS, dtype=x.dtype).reshape(1, 1, 1, -1)
  bits = (x[..., None] >> places & 1).reshape(alpha, cols, pixels * DATA_BITS)
  return jax.vmap(lambda lane: skew(lane, steps, 1), out_axes=1)(bits)


def control(
  steps: int, rows: int, pixels: int, macs: int
) -> tuple[jax.Array, jax.Array]:
  """Which MAC takes data and which starts, as words [steps, macs, words]."""
  late = (jnp.arange(steps)[:, None] - jnp.arange(rows)[None])[:, None]
  mine = late // DATA_BITS % macs == jnp.arange(macs).reshape(1, -1, 1)
  takes = mine & (late >= 0) & (late < DATA_BITS * pixels)
  return packed(takes), packed(takes & (late % DATA_BITS == 0))


def sum_bits(sums: jax.Array, steps: int, length: int) -> jax.Array:
  """[pixels, rows] as it enters, lowest bit first: words [steps, macs, words]."""
  pixels, rows = sums.shape
  macs = length // DATA_BITS
  turns = -(-pixels // macs)
  places = jnp.arange(length).reshape(1, 1, 1, -1)
  bits = pad(sums, 0, turns * macs).reshape(turns, macs, rows, 1) >> places & 1
  stream = bits.astype(jnp.uint8).transpose(1, 2, 0, 3).reshape(macs, rows, -1)
  # Bits of padded pixels run past the last step and are cut off.
  room = max(steps, stream.shape[2] + DATA_BITS * macs)

  def enter(i: int) -> jax.Array:
    late = DATA_BITS * i
    lane = jnp.pad(stream[i], ((0, 0), (late, room - late - stream.shape[2])))
    return skew(lane, room + rows, 1)[:steps]

  return packed(jnp.stack([enter(i) for i in range(macs)], axis=1).astype(bool))


def sums_of(
  out: jax.Array, rows: int, cols: int, pixels: int, length: int
) -> jax.Array:
  """Words [steps, macs, words] that leave, as signed numbers [pixels, rows]."""
  macs = length // DATA_BITS
  turns = -(-pixels // macs)
  need = turns * length + DATA_BITS * macs
  bits = unpacked(out, rows)
  bits = pad(bits, 0, max(out.shape[0], need + cols + rows))
  lanes = jax.vmap(lambda lane: unskew(lane, cols - 1, need), in_axes=1)(bits)
  own = [
    lanes[i, :, DATA_BITS * i : DATA_BITS * i + turns * length] for i in range(macs)
  ]
  lanes = jnp.stack(own).reshape(macs, rows, turns, length)
  places = jnp.arange(length, dtype=jnp.uint32).reshape(1, 1, 1, -1)
  value = jnp.sum(lanes.astype(jnp.uint32) << places, axis=3, dtype=jnp.uint32)
  value = lax.bitcast_convert_type(value << (32 - length), jnp.int32) >> (32 - length)
  return value.transpose(2, 0, 1).reshape(turns * macs, rows)[:pixels]


def check_magnitude(name: str, x: Any, bits: int) -> None:
  """Raises a ValueError if values that are known have more than `bits` bits."""
  if tree.is_concrete(x) and np.size(x):
    most = int(np.max(np.abs(np.asarray(x, np.int64))))
    if most >= 1 << bits:
      raise ValueError(
        f"{name} holds a magnitude of {most}: it has more than {bits} bits"
      )
