"""Bit-serial and bit-level accelerators by their cycle laws.

All share one schedule, that of the Toronto DNNsim: a step is one kernel position times
a brick of `lanes` input channels, for a group of `windows` output pixels (row by row)
and a block of `filters` output channels at once. They differ in the cycles of a step,
with p_a, p_w the bits of activations and weights:

  dadiannao         1, the bit-parallel baseline
  stripes           p_a, and a cycle for the sign
  dynamic_stripes   the highest set bit of the step's activations, counted from 1
  loom              ceil(that / bits_per_cycle) * p_w
  pragmatic         one-bits of the slowest activation; with first-stage shifters of B
                    bits a lane waits while its lowest bit is 2^B or more above the
                    lowest of its window's lanes
  laconic           most pairs of a term of an activation and one of its weight
  shift_accumulate  p_a; weights are powers of two, so a bit is shifted, not multiplied
  bit_fusion        1 for floor(8/max(p_a, 2)) * floor(8/max(p_w, 2)) times the lanes,
                    one pixel at a time

Each takes at least one cycle a step. `peer_scan` has the ones whose cycles depend on
data as simulators that compute the product as well.

References: Judd et al., "Stripes", MICRO 2016; Delmas et al., "Dynamic Stripes", 2017;
Sharify et al., "Loom", DAC 2018; Albericio et al., "Bit-Pragmatic", MICRO 2017; Sharify
et al., "Laconic", ISCA 2019; Sharma et al., "Bit Fusion", ISCA 2018; McDanel et al.,
"Full-stack optimization for accelerating CNNs using powers-of-two weights", ICS 2019.
"""

from collections.abc import Callable
import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign.numerics import terms


@dataclasses.dataclass(frozen=True)
class Tile:
  """How much an accelerator does in a step; DNNsim's sizes by default.

  Attributes:
    lanes: Input channels.
    windows: Output pixels.
    filters: Output channels.
    activation_bits: p_a.
    weight_bits: p_w, the sign included.
    bits_per_cycle: Activation bits that Loom takes at once.
    shift_bits: B of Pragmatic's first stage; None is a full shifter (1-stage).
    encoding: Terms of Laconic, one of `terms.ENCODINGS`.
  """

  lanes: int = 16
  windows: int = 16
  filters: int = 256
  activation_bits: int = 8
  weight_bits: int = 8
  bits_per_cycle: int = 1
  shift_bits: int | None = None
  encoding: terms.Encoding = "binary"

  def __post_init__(self):
    for field in ("lanes", "windows", "filters", "activation_bits", "weight_bits"):
      if getattr(self, field) < 1:
        raise ValueError(f"Tile.{field}={getattr(self, field)}: at least 1 is needed")
    if self.bits_per_cycle < 1:
      raise ValueError(f"Tile.bits_per_cycle={self.bits_per_cycle}: at least 1")
    if self.shift_bits is not None and self.shift_bits < 0:
      raise ValueError(f"Tile.shift_bits={self.shift_bits}: 0 or more, or None")


DNNSIM = Tile()


class Bricks(NamedTuple):
  """A convolution cut into steps; padding is zero.

  Attributes:
    activations: int32 [groups, steps, windows, lanes], not negative.
    weights: int32 [blocks, steps, filters, lanes].
    pixels: Windows that are none of the padding.
    channels: Input channels that are none of the padding.
  """

  activations: jax.Array
  weights: jax.Array
  pixels: int
  channels: int


def bricks(
  activations: jax.Array,
  weights: jax.Array,
  *,
  stride: int = 1,
  padding: int = 0,
  tile: Tile = DNNSIM,
) -> Bricks:
  """Cuts a convolution into steps.

  Args:
    activations: [channels, height, width] integers, none negative.
    weights: [filters, channels, kernel height, kernel width] integers.
    stride: Of the window, both ways.
    padding: Zeros around the image.
    tile: Sizes of a step.

  Raises:
    ValueError: If shapes or values do not fit.
  """
  if activations.ndim != 3 or weights.ndim != 4:
    raise ValueError(
      f"activations {activations.shape} and weights {weights.shape}: [channels, "
      "height, width] and [filters, channels, height, width] are needed"
    )
  if activations.shape[0] != weights.shape[1]:
    raise ValueError(
      f"{activations.shape[0]} channels of activations, {weights.shape[1]} of weights"
    )
  _check_range(activations, weights, tile)
  x = np.asarray(activations, np.int32)
  w = np.asarray(weights, np.int32)
  x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
  kernel = w.shape[2:]
  if any(size < k for size, k in zip(x.shape[1:], kernel)):
    raise ValueError(f"a kernel of {kernel} is larger than the image {x.shape[1:]}")
  seen = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))
  seen = seen[:, ::stride, ::stride]  # [channels, out height, out width, *kernel]
  channels, high, wide = seen.shape[:3]
  # Windows row by row, steps by kernel position and brick.
  seen = seen.transpose(1, 2, 3, 4, 0).reshape(high * wide, -1, channels)
  seen = _cut(_cut(seen, 0, tile.windows), 3, tile.lanes)
  seen = seen.transpose(0, 2, 3, 1, 4)
  held = _cut(_cut(w.transpose(0, 2, 3, 1), 0, tile.filters), 4, tile.lanes)
  held = held.transpose(0, 2, 3, 4, 1, 5)
  steps = seen.shape[1] * seen.shape[2]
  return Bricks(
    jnp.asarray(seen.reshape(seen.shape[0], steps, *seen.shape[3:])),
    jnp.asarray(held.reshape(held.shape[0], steps, *held.shape[4:])),
    high * wide,
    channels,
  )


def cycles(name: str, cut: Bricks, tile: Tile = DNNSIM) -> int:
  """Compute cycles of a convolution on the accelerator `name`, an exact integer.

  Raises:
    ValueError: If the accelerator does not exist, or cannot hold the weights.
  """
  each = np.asarray(step_cycles(name, cut, tile), np.int64)
  return int(each.sum())


def step_cycles(name: str, cut: Bricks, tile: Tile = DNNSIM) -> jax.Array:
  """Cycles of every step, int32 [groups, blocks, steps]; bit_fusion: [pixels, ...].

  Raises:
    ValueError: As `cycles`.
  """
  if name not in PEERS:
    raise ValueError(f"accelerator {name!r} is none of {', '.join(PEERS)}")
  if name == "shift_accumulate":
    magnitude = np.abs(np.asarray(cut.weights))
    if np.any(magnitude & (magnitude - 1)):
      raise ValueError("shift_accumulate holds powers of two: round the weights first")
  found = jnp.maximum(PEERS[name](cut, tile), 1)
  if name == "bit_fusion":
    return found
  shape = (cut.activations.shape[0], cut.weights.shape[0], cut.weights.shape[1])
  return jnp.broadcast_to(found, shape)


def precision(x: jax.Array) -> jax.Array:
  """Bits up to the highest set one of non-negative integers."""
  return 32 - jax.lax.clz(x.astype(jnp.int32))


def _one(cut: Bricks, tile: Tile) -> jax.Array:
  del cut, tile
  return jnp.ones((1, 1, 1), jnp.int32)


def _stripes(cut: Bricks, tile: Tile) -> jax.Array:
  return _one(cut, tile) * (tile.activation_bits + 1)


def _serial(cut: Bricks, tile: Tile) -> jax.Array:
  return _one(cut, tile) * tile.activation_bits


def _dynamic_stripes(cut: Bricks, tile: Tile) -> jax.Array:
  del tile
  return jnp.max(precision(cut.activations), axis=(2, 3))[:, None]


def _loom(cut: Bricks, tile: Tile) -> jax.Array:
  bits = jnp.maximum(_dynamic_stripes(cut, tile), 1)
  return -(-bits // tile.bits_per_cycle) * tile.weight_bits


def _pragmatic(cut: Bricks, tile: Tile) -> jax.Array:
  if tile.shift_bits is None:
    ones = jax.lax.population_count(cut.activations)
    return jnp.max(ones, axis=(2, 3))[:, None]
  waits = partial(column_cycles, reach=1 << tile.shift_bits, bits=tile.activation_bits)
  return jnp.max(jax.jit(waits)(cut.activations), axis=2)[:, None]


def column_cycles(x: jax.Array, *, reach: int, bits: int) -> jax.Array:
  """Cycles in which lanes [..., lanes] clear their bits, `reach` places at a time."""

  def cycle(state: Any, _: None) -> Any:
    left, passed = state
    left, cleared = clear_lowest(left, reach)
    return (left, passed + jnp.any(cleared > 0, axis=-1).astype(jnp.int32)), None

  passed = jnp.zeros(x.shape[:-1], jnp.int32)
  (_, passed), _ = jax.lax.scan(cycle, (x, passed), None, length=bits)
  return passed


def clear_lowest(x: jax.Array, reach: int) -> tuple[jax.Array, jax.Array]:
  """One cycle of Pragmatic's lanes [..., lanes]: what is left, and the bits cleared.

  The lowest one-bit of all lanes sets an offset; a lane clears its own lowest one-bit
  when that is less than `reach` places above the offset.
  """
  lowest = x & -x
  far = jnp.iinfo(jnp.int32).max
  offset = jnp.min(jnp.where(x > 0, lowest, far), axis=-1, keepdims=True)
  # lowest < offset << reach, without overflow.
  near = (x > 0) & (lowest >> min(reach, 31) < offset)
  cleared = jnp.where(near, lowest, 0)
  return x - cleared, cleared


def _laconic(cut: Bricks, tile: Tile) -> jax.Array:
  most = lambda x: jnp.max(terms.count(x, tile.encoding), axis=2)
  pairs = most(cut.activations)[:, None] * most(cut.weights)[None]
  return jnp.max(pairs, axis=3)


def _bit_fusion(cut: Bricks, tile: Tile) -> jax.Array:
  """Fewer bits join more lanes: fewer steps of one cycle."""
  fused = lambda bits: 8 // max(bits, 2)
  joined = fused(tile.activation_bits) * fused(tile.weight_bits)
  if joined == 0:
    raise ValueError(
      f"bit_fusion fuses up to 8 bits, not {tile.activation_bits} x {tile.weight_bits}"
    )
  blocks, steps = cut.weights.shape[:2]
  kernel = steps // -(-cut.channels // tile.lanes)
  steps = kernel * -(-cut.channels // (tile.lanes * joined))
  return jnp.ones((cut.pixels, blocks, steps), jnp.int32)


PEERS: dict[str, Callable[[Bricks, Tile], jax.Array]] = {
  "dadiannao": _one,
  "stripes": _stripes,
  "dynamic_stripes": _dynamic_stripes,
  "loom": _loom,
  "pragmatic": _pragmatic,
  "laconic": _laconic,
  "shift_accumulate": _serial,
  "bit_fusion": _bit_fusion,
}


def _cut(x: np.ndarray, axis: int, size: int) -> np.ndarray:
  """`axis` as two, of which the second has `size`; zeros fill the last."""
  count = -(-x.shape[axis] // size)
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, count * size - x.shape[axis])
  padded = np.pad(x, widths)
  return padded.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])


def _check_range(activations: Any, weights: Any, tile: Tile) -> None:
  for name, x in (("activations", activations), ("weights", weights)):
    if not np.issubdtype(np.asarray(x).dtype, np.integer):
      raise ValueError(f"{name} are {np.asarray(x).dtype}: integers are needed")
  top = 1 << tile.activation_bits
  if np.min(activations) < 0 or np.max(activations) >= top:
    raise ValueError(f"activations must be 0 .. {top - 1}: not negative, below 2^p_a")
  reach = 1 << (tile.weight_bits - 1)
  if np.max(np.abs(np.asarray(weights, np.int64))) > reach:
    raise ValueError(f"weights must be {-reach} .. {reach}: {tile.weight_bits} bits")
