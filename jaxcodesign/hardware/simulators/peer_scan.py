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
import numpy as np

from jaxcodesign import tree
from jaxcodesign.hardware.simulators import peers
from jaxcodesign.hardware.simulators.peers import Bricks, Tile
from jaxcodesign.numerics.formats import terms

Step = Callable[[jax.Array, jax.Array, Tile], tuple[jax.Array, jax.Array]]


def simulate(
  name: str, cut: Bricks, tile: Tile | None = None
) -> tuple[jax.Array, jax.Array]:
  """Runs a convolution, step by step and cycle by cycle.

  Args:
    name: "dynamic_stripes", "loom", "pragmatic" or "laconic".
    cut: From `peers.bricks`.
    tile: With other options than the one of `cut`, of equal sizes and bits; None is
      that one.

  Returns:
    int32 [pixels, blocks * filters], the convolution with a column for each filter of a
    padded block, and int32 [groups, blocks, steps] cycles, counted as `step_cycles`
    of `peers` counts them.

  Raises:
    ValueError: If there is no simulator of that name, `tile` has other sizes, or sums
      that are known may not fit int32.
  """
  if name not in SIMULATORS:
    raise ValueError(
      f"no simulator of {name!r}: cycles depend on data in {', '.join(SIMULATORS)}"
    )
  tile = cut.options(tile)
  if tree.is_concrete(cut.activations) and tree.is_concrete(cut.weights):
    size = lambda x: np.abs(np.asarray(x, np.int64))
    largest = size(cut.activations).max() * size(cut.weights).sum(axis=(1, 3)).max()
    if largest >= 2**31:
      raise ValueError(f"sums may reach {largest}, int32 does not: fewer bits or lanes")
  return _run(cut.activations, cut.weights, name, tile, cut.pixels)


@partial(jax.jit, static_argnames=("name", "tile", "pixels"))
def _run(x: jax.Array, w: jax.Array, name: str, tile: Tile, pixels: int) -> Any:
  simulator = SIMULATORS[name]
  runs_ahead = name == "pragmatic" and tile.run_ahead > 0

  def window_group(group: jax.Array) -> Any:
    def block(weights: jax.Array) -> Any:
      if runs_ahead:
        return _run_ahead(group, weights, tile)

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
  """A bit of all activations a cycle, lowest first, to the highest and the sign."""
  low, top = peers.span(x, None, tile.trim)
  needed = jnp.maximum(1, top - low + tile.sign_bits)

  def cycle(state: Any, t: jax.Array) -> Any:
    sums, passed = state
    going, place = t < needed, low + t
    weighs = jnp.where(place < top, 1, -1) if tile.signed else 1  # two's complement
    bit = jnp.where(going, x >> place & 1, 0) * weighs
    return (sums + (_products(bit, w) << place), passed + going.astype(jnp.int32)), None

  return _scan(cycle, x, w, tile.activation_bits + tile.sign_bits)


def _loom(x: jax.Array, w: jax.Array, tile: Tile) -> tuple[jax.Array, jax.Array]:
  """A bit of all weights against `bits_per_cycle` bits of all activations a cycle."""
  _, top = peers.span(x, None, False)
  needed = jnp.maximum(1, top + tile.sign_bits)
  wide, chunk = peers.weight_width(w, None, tile), tile.bits_per_cycle

  def cycle(state: Any, t: jax.Array) -> Any:
    sums, passed = state
    low, place = t // wide * chunk, t % wide
    going = low < needed
    # The last chunk is what is left, the sign with it.
    part = jnp.where(low + chunk < needed, (x >> low) & ((1 << chunk) - 1), x >> low)
    part = jnp.where(going, part, 0)
    weight = (w >> place & 1) * jnp.where(place == wide - 1, -1, 1)  # two's complement
    return (
      sums + (_products(part, weight) << (low + place)),
      passed + going.astype(jnp.int32),
    ), None

  chunks = -(-(tile.activation_bits + tile.sign_bits) // chunk)
  return _scan(cycle, x, w, chunks * tile.weight_bits)


def _pragmatic(x: jax.Array, w: jax.Array, tile: Tile) -> tuple[jax.Array, jax.Array]:
  """A one-bit of each activation a cycle; windows wait for the slowest."""
  sign = jnp.sign(x)

  def cycle(state: Any, _: jax.Array) -> Any:
    sums, passed, left = state
    left, cleared = peers.clear_lowest(left, _reach(tile))
    passed = passed + jnp.any(cleared > 0).astype(jnp.int32)
    return (sums + _products(sign * cleared, w), passed, left), None

  sums, passed = _scan(cycle, x, w, tile.activation_bits, jnp.abs(x))
  return sums, jnp.maximum(1, passed)


def _run_ahead(x: jax.Array, w: jax.Array, tile: Tile) -> tuple[jax.Array, jax.Array]:
  """Pragmatic over [steps, ...], each window at a step of its own.

  Returns sums [windows, filters] and cycles [steps].
  """
  steps, windows, _ = x.shape
  at = lambda done: (jnp.minimum(done, steps - 1), jnp.arange(windows))

  def cycle(state: Any, _: None) -> Any:
    sums, left, done = state  # done: steps that each window is through with
    slowest = jnp.min(done)
    works = (done < steps) & (done <= slowest + tile.run_ahead)
    after, cleared = peers.clear_lowest(left, _reach(tile))
    moved = jnp.where(works[:, None], jnp.sign(x[at(done)]) * cleared, 0)
    held = w[at(done)[0]]  # [windows, filters, lanes]
    sums += jnp.einsum("cl,cfl->cf", moved, held, preferred_element_type=jnp.int32)
    left = jnp.where(works[:, None], after, left)
    through = works & jnp.all(left == 0, axis=1)
    done += through.astype(jnp.int32)
    left = jnp.where(through[:, None], jnp.abs(x[at(done)]), left)
    return (sums, left, done), slowest

  start = (
    jnp.zeros((windows, w.shape[1]), jnp.int32),
    jnp.abs(x[0]),
    jnp.zeros(windows, jnp.int32),
  )
  most = steps * tile.activation_bits
  (sums, _, _), slowest = lax.scan(cycle, start, None, length=most)
  passed = slowest[:, None] == jnp.arange(steps)[None]
  return sums, jnp.sum(passed, axis=0, dtype=jnp.int32)


def _reach(tile: Tile) -> int:
  return 1 << (5 if tile.shift_bits is None else tile.shift_bits)


def _laconic(x: jax.Array, w: jax.Array, tile: Tile) -> tuple[jax.Array, jax.Array]:
  """A pair of terms in every cell [windows, filters, lanes] a cycle."""
  plus, minus = terms.signed_bits(jnp.abs(x), tile.encoding)
  wide = jnp.abs(w)
  up, down = terms.signed_bits(wide, tile.encoding)
  cells = (x.shape[0], *w.shape)
  at_left = lambda m: jnp.broadcast_to(m[:, None], cells)
  at_right = lambda m: jnp.broadcast_to(m[None], cells)
  full = at_right(up | down)
  minus, down = at_left(minus), at_right(down)
  sign = at_left(jnp.sign(x)) * at_right(jnp.sign(w))

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
