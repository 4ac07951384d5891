"""Bit-level accelerators cycle by cycle, where the cycles depend on the data.

One step of the scan is one clock cycle of one tile: every lane takes in its next bit or
term until the slowest is done. Both answers come out, the partial products of a step
and the cycles it took; `peers` has the same cycles in closed form.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxcodesign.hardware import peers
from jaxcodesign.hardware.peers import DNNSIM, Bricks, Tile
from jaxcodesign.numerics import terms

Step = Callable[[jax.Array, jax.Array, Tile], tuple[jax.Array, jax.Array]]


def simulate(
  name: str, cut: Bricks, tile: Tile = DNNSIM
) -> tuple[jax.Array, jax.Array]:
  """Runs a convolution, step by step and cycle by cycle.

  Args:
    name: "dynamic_stripes", "loom", "pragmatic" or "laconic".
    cut: From `peers.bricks`.
    tile: The tile it was cut with.

  Returns:
    int32 [pixels, blocks * filters], the convolution with a column for each filter of a
    padded block, and int32 [groups, blocks, steps] cycles.

  Raises:
    ValueError: If there is no simulator of that name.
  """
  if name not in SIMULATORS:
    raise ValueError(
      f"no simulator of {name!r}: cycles depend on data in {', '.join(SIMULATORS)}"
    )
  return _run(cut.activations, cut.weights, name, tile, cut.pixels)


@partial(jax.jit, static_argnames=("name", "tile", "pixels"))
def _run(x: jax.Array, w: jax.Array, name: str, tile: Tile, pixels: int) -> Any:
  simulator = SIMULATORS[name]

  def window_group(group: jax.Array) -> Any:
    def block(weights: jax.Array) -> Any:
      def next_step(sums: jax.Array, operands: Any) -> Any:
        product, cycles = simulator(operands[0], operands[1], tile)
        return sums + product, cycles

      sums = jnp.zeros((group.shape[1], weights.shape[1]), jnp.int32)
      return lax.scan(next_step, sums, (group, weights))

    return lax.map(block, w)

  sums, cycles = lax.map(window_group, x)
  groups, blocks, windows, filters = sums.shape
  sums = sums.swapaxes(1, 2).reshape(groups * windows, blocks * filters)
  return sums[:pixels], cycles


def _products(x: jax.Array, w: jax.Array) -> jax.Array:
  return jnp.matmul(x, w.T, preferred_element_type=jnp.int32)


def _dynamic_stripes(
  x: jax.Array, w: jax.Array, tile: Tile
) -> tuple[jax.Array, jax.Array]:
  """A bit of all activations a cycle, lowest first, to the highest that is set."""
  top = jnp.maximum(1, jnp.max(peers.precision(x)))

  def cycle(state: Any, t: jax.Array) -> Any:
    sums, passed = state
    going = t < top
    bit = jnp.where(going, x >> t & 1, 0)
    return (sums + (_products(bit, w) << t), passed + going.astype(jnp.int32)), None

  return _scan(cycle, x, w, tile.activation_bits)


def _loom(x: jax.Array, w: jax.Array, tile: Tile) -> tuple[jax.Array, jax.Array]:
  """A bit of all weights against `bits_per_cycle` bits of all activations a cycle."""
  top = jnp.maximum(1, jnp.max(peers.precision(x)))
  chunk, sign = tile.bits_per_cycle, tile.weight_bits - 1

  def cycle(state: Any, t: jax.Array) -> Any:
    sums, passed = state
    low, place = t // tile.weight_bits * chunk, t % tile.weight_bits
    going = low < top
    part = jnp.where(going, (x >> low) & ((1 << chunk) - 1), 0)
    weight = (w >> place & 1) * jnp.where(place == sign, -1, 1)  # two's complement
    return (
      sums + (_products(part, weight) << (low + place)),
      passed + going.astype(jnp.int32),
    ), None

  chunks = -(-tile.activation_bits // chunk)
  return _scan(cycle, x, w, chunks * tile.weight_bits)


def _pragmatic(x: jax.Array, w: jax.Array, tile: Tile) -> tuple[jax.Array, jax.Array]:
  """A one-bit of each activation a cycle; windows wait for the slowest."""
  reach = 1 << (5 if tile.shift_bits is None else tile.shift_bits)

  def cycle(state: Any, _: jax.Array) -> Any:
    sums, passed, left = state
    left, cleared = peers.clear_lowest(left, reach)
    passed = passed + jnp.any(cleared > 0).astype(jnp.int32)
    return (sums + _products(cleared, w), passed, left), None

  sums, passed = _scan(cycle, x, w, tile.activation_bits, x)
  return sums, jnp.maximum(1, passed)


def _laconic(x: jax.Array, w: jax.Array, tile: Tile) -> tuple[jax.Array, jax.Array]:
  """A pair of terms in every cell [windows, filters, lanes] a cycle."""
  plus, minus = terms.signed_bits(x, tile.encoding)
  wide = jnp.abs(w)
  up, down = terms.signed_bits(wide, tile.encoding)
  cells = (x.shape[0], *w.shape)
  at_left = lambda m: jnp.broadcast_to(m[:, None], cells)
  at_right = lambda m: jnp.broadcast_to(m[None], cells)
  full = at_right(up | down)
  minus, down = at_left(minus), at_right(down)
  sign = at_right(jnp.sign(w))

  def cycle(state: Any, _: jax.Array) -> Any:
    sums, passed, (left, right) = state
    one, other = left & -left, right & -right
    live = (left > 0) & (full > 0)
    negative = ((one & minus) > 0) ^ ((other & down) > 0)
    pair = jnp.where(live, one * other * sign * jnp.where(negative, -1, 1), 0)
    right = right - other
    # The weight's terms are through: the activation's next term meets them again.
    left = jnp.where(right == 0, left - one, left)
    right = jnp.where(right == 0, full, right)
    passed = passed + jnp.any(live).astype(jnp.int32)
    return (sums + jnp.sum(pair, axis=2), passed, (left, right)), None

  most = terms.most_terms(tile.activation_bits, tile.encoding)
  most *= terms.most_terms(tile.weight_bits, tile.encoding)
  sums, passed = _scan(cycle, x, w, most, (at_left(plus) | minus, full))
  return sums, jnp.maximum(1, passed)


def _scan(
  cycle: Any, x: jax.Array, w: jax.Array, most: int, extra: Any = None
) -> tuple[jax.Array, jax.Array]:
  """Sums [windows, filters] and cycles after `most` cycles, idle ones not counted."""
  sums = jnp.zeros((x.shape[0], w.shape[0]), jnp.int32)
  state = (sums, jnp.zeros((), jnp.int32))
  if extra is not None:
    state = (*state, extra)
  final, _ = lax.scan(cycle, state, jnp.arange(most))
  return final[0], final[1]


SIMULATORS: dict[str, Step] = {
  "dynamic_stripes": _dynamic_stripes,
  "loom": _loom,
  "pragmatic": _pragmatic,
  "laconic": _laconic,
}
