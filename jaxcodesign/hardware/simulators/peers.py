"""Bit-serial and bit-level accelerators by their cycle laws.

All share one schedule, that of the Toronto DNNsim, see `bricks`. They differ in the
cycles of a step, with p_a, p_w the bits of activations and weights:

  dadiannao         1, the bit-parallel baseline
  stripes           p_a, and a cycle for the sign
  dynamic_stripes   the highest set bit of the step's activations, counted from 1, and a
                    cycle for the sign if they are signed; from the lowest set bit of
                    them all if `trim`
  loom              ceil(that, not trimmed / bits_per_cycle) * p_w; if `dynamic_weights`
                    p_w is the highest set bit of the step's weights, and the sign,
                    at most the given p_w
  pragmatic         one-bits of the slowest activation; with first-stage shifters of B
                    bits a lane waits while its lowest bit is 2^B or more above the
                    lowest of its window's lanes; windows wait for the slowest, but for
                    `run_ahead` steps
  laconic           most pairs of a term of an activation and one of its weight
  shift_accumulate  p_a; weights are powers of two, so a bit is shifted, not multiplied
  bit_fusion        1 for floor(8/max(p_a, 2)) * floor(8/max(p_w, 2)) times the lanes,
                    one pixel at a time; a signed activation has p_a + 1 bits

Each takes at least one cycle a step. `peer_scan` has the ones whose cycles depend on
data as simulators that compute the product as well.

Set bits are those of magnitudes; Pragmatic and Laconic negate the terms of a negative
activation at no cost. Weights are two's complement of p_w bits in all of
them, -2^(p_w - 1) included and 2^(p_w - 1) not, also where a magnitude and a sign are
what multiplies (Laconic, shift-accumulate).

References: Judd et al., "Stripes", MICRO 2016; Delmas et al., "Dynamic Stripes", 2017;
Sharify et al., "Loom", DAC 2018; Albericio et al., "Bit-Pragmatic", MICRO 2017; Sharify
et al., "Laconic", ISCA 2019; Sharma et al., "Bit Fusion", ISCA 2018; McDanel et al.,
"Full-stack optimization for accelerating CNNs using powers-of-two weights", ICS 2019.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign.hardware.simulators.bricks import DNNSIM as DNNSIM
from jaxcodesign.hardware.simulators.bricks import Bricks, Tile
from jaxcodesign.hardware.simulators.bricks import bricks as bricks
from jaxcodesign.numerics.formats import terms


def cycles(name: str, cut: Bricks, tile: Tile | None = None) -> int:
  """Compute cycles of a convolution on the accelerator `name`, an exact integer.

  Args:
    name: One of PEERS.
    cut: From `bricks`.
    tile: With other options than the one of `cut`, of equal sizes and bits; None is
      that one.

  Raises:
    ValueError: If the accelerator does not exist, cannot hold the weights or signed
      activations, or `tile` has other sizes.
  """
  each = np.asarray(step_cycles(name, cut, tile), np.int64)
  return int(each.sum())


def step_cycles(name: str, cut: Bricks, tile: Tile | None = None) -> jax.Array:
  """Cycles of every step, int32 [groups, blocks, steps]; bit_fusion: [pixels, ...].

  Where windows run ahead, a step's are those until all have finished it, counted from
  when all had finished the one before.

  Raises:
    ValueError: As `cycles`.
  """
  if name not in PEERS:
    raise ValueError(f"accelerator {name!r} is none of {', '.join(PEERS)}")
  tile = cut.options(tile)
  if name == "shift_accumulate":
    if tile.signed:
      raise ValueError("shift_accumulate streams unsigned data: Tile.signed=True")
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


def span(x: jax.Array, axis: Any, trim: bool) -> tuple[jax.Array, jax.Array]:
  """Places [low, top) over `axis` that hold all set bits of the magnitudes of `x`.

  `low` is 0 unless `trim`; both are 0 if nothing is set.
  """
  magnitude = jnp.abs(x)
  top = jnp.max(precision(magnitude), axis=axis)
  if not trim:
    return jnp.zeros_like(top), top
  zeros = jax.lax.population_count((magnitude & -magnitude) - 1)  # 32 below 0 itself
  return jnp.minimum(jnp.min(zeros, axis=axis), top), top


def weight_width(w: jax.Array, axis: Any, tile: Tile) -> jax.Array:
  """p_w of Loom over `axis`: two's complement, so never more than `weight_bits`."""
  _, top = span(w, axis, False)
  needed = jnp.minimum(top + 1, tile.weight_bits)
  return needed if tile.dynamic_weights else jnp.full_like(top, tile.weight_bits)


def _dynamic_stripes(cut: Bricks, tile: Tile) -> jax.Array:
  low, top = span(cut.activations, (2, 3), tile.trim)
  return (top - low + tile.sign_bits)[:, None]


def _loom(cut: Bricks, tile: Tile) -> jax.Array:
  _, top = span(cut.activations, (2, 3), False)
  chunks = -(-jnp.maximum(top + tile.sign_bits, 1) // tile.bits_per_cycle)
  return chunks[:, None] * weight_width(cut.weights, (2, 3), tile)[None]


def _pragmatic(cut: Bricks, tile: Tile) -> jax.Array:
  x = jnp.abs(cut.activations)
  if tile.shift_bits is None:
    each = jnp.max(jax.lax.population_count(x), axis=3)
  else:
    reach = 1 << tile.shift_bits
    waits = partial(column_cycles, reach=reach, bits=tile.activation_bits)
    each = jax.jit(waits)(x)
  if not tile.run_ahead:
    return jnp.max(each, axis=2)[:, None]
  return jax.vmap(partial(ahead, steps_ahead=tile.run_ahead))(each)[:, None]


def ahead(each: jax.Array, *, steps_ahead: int) -> jax.Array:
  """Cycles from step to step, all windows through, where some run ahead.

  A window begins a step when it is through with the last and all windows are through
  with the one `steps_ahead + 1` before: a max-plus recurrence.

  Args:
    each: int32 [steps, windows] cycles, 0 counted as 1.
    steps_ahead: 0 makes all wait after every step.

  Returns:
    int32 [steps], at least 1 each.
  """

  def step(state: Any, cycles: jax.Array) -> Any:
    window, through = state  # when each is through, when all were, oldest first
    window = jnp.maximum(window, through[0]) + jnp.maximum(cycles, 1)
    through = jnp.concatenate([through[1:], jnp.max(window)[None]])
    return (window, through), through[-1]

  kept = min(steps_ahead + 1, each.shape[0])
  start = (jnp.zeros_like(each[0]), jnp.zeros(kept, each.dtype))
  _, through = jax.lax.scan(step, start, each)
  return jnp.diff(through, prepend=0)


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
  bits = tile.activation_bits + tile.sign_bits
  joined = fused(bits) * fused(tile.weight_bits)
  if joined == 0:
    raise ValueError(f"bit_fusion fuses up to 8 bits, not {bits} x {tile.weight_bits}")
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
