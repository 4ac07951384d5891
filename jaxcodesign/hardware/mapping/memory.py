"""Tiles of one product through DRAM, double buffers and the array, one scan step each.

The loops of `loops` bring tile after tile. One DRAM channel serves all transfers in a
fixed order, one after the other; for tile i

  result or sums of tile i - 2 leave,  ifmap i,  weight i,  partial sums i arrive

so that tile i is fetched while tile i - 1 is computed. What is there already is not
fetched. Each event starts at the latest of what it waits for (a max-plus recurrence):

  load     the channel; the half that its tile goes to: the tile before the one in use
           is done. An operand that stays has a place for every tile, and never waits
  compute  the array; the last byte of each operand, `latency_s` after it has passed the
           channel; a half of the result buffer: what was in it has left
  write    the channel; the tile is computed

The array takes what `folding` says for a tile of its real size, and nothing overlaps
within it. Times are in cycles of the array's clock, real numbers where DRAM decides.

Laws (tests): equal to an event-driven simulator; bytes equal to `loops.totals`; busy
cycles, stalls and the last write add up to all cycles; no buffer overflows.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcodesign.hardware.machines.spec import Accelerator
from jaxcodesign.hardware.mapping import loops
from jaxcodesign.hardware.mapping.fold_cycles import fold_cycles
from jaxcodesign.hardware.mapping.loops import (
  INDICES,
  REUSED,
  Leaf,
  Mapping,
  Moved,
  Nest,
)

STALLS = ("ifmap", "weight", "sums", "ofmap")


class Timeline(NamedTuple):
  """What happened when, T tiles in the order of the loops; times in cycles.

  Where nothing is loaded or written, start and end are the time the channel is at. A
  stall is charged to the first of ifmap, weight, partial sums and a half of the result
  buffer that is late, then to the next for what it is later still.
  """

  cycles: jax.Array  # until the last result is in DRAM
  load_start: jax.Array  # [T, 3] of ifmap, weight, partial sums
  load_end: jax.Array  # [T, 3] last byte through the channel
  compute_start: jax.Array  # [T]
  compute_end: jax.Array  # [T]
  write_start: jax.Array  # [T]
  write_end: jax.Array  # [T]
  stalls: jax.Array  # [T, 4] cycles that the array waits before a tile, see STALLS
  drain: jax.Array  # cycles from the last tile computed to the last byte written
  moved: Moved  # of the whole product
  held_bytes: jax.Array  # [T, 3] that tile t takes in ifmap, weight and result buffer
  held_from: jax.Array  # [T, 3]
  held_until: jax.Array  # [T, 3]

  def occupancy(self) -> tuple[jax.Array, jax.Array]:
    """Times [2T, 3] in ascending order, and bytes held from each to the next."""
    times = jnp.concatenate([self.held_until, self.held_from])
    changes = jnp.concatenate([-self.held_bytes, self.held_bytes])
    order = jnp.argsort(times, axis=0, stable=True)  # at one time, release before take
    take = partial(jnp.take_along_axis, indices=order, axis=0)
    return take(times), jnp.cumsum(take(changes), axis=0)


class Tile(NamedTuple):
  """What one tile asks for."""

  compute: jax.Array  # cycles
  loads: jax.Array  # [3] bytes of ifmap, weight, partial sums; 0 where it is there
  write: jax.Array  # bytes of results or partial sums
  fresh: jax.Array  # [3] takes a new place in ifmap, weight, result buffer
  held: jax.Array  # [3] bytes of that place


class Pending(NamedTuple):
  """A write that waits for its turn on the channel."""

  ready: jax.Array
  size: jax.Array  # bytes


class State(NamedTuple):
  """When everything is free, before tile i."""

  channel: jax.Array
  halves: jax.Array  # [2] the half of ifmap and weight that is not in use
  written: jax.Array  # end of the last write
  older: Pending  # of tile i - 2
  newer: Pending  # of tile i - 1, whose `ready` is when the array is free


def simulate(
  m: int,
  k: int,
  n: int,
  accelerator: Accelerator,
  mapping: Mapping,
  *,
  latency_s: Leaf = 0.0,
  cycles_per_mac: Leaf | None = None,
) -> tuple[jax.Array, Timeline]:
  """Runs one product [m, k] x [n, k] tile by tile.

  Args:
    m: Rows of the left operand, likewise k and n.
    k: Contraction.
    n: Rows of the right operand.
    accelerator: Simulated exactly, whatever its temperature. Leaves may be traced; only
      the number of tiles compiles anew.
    mapping: Tiles of known integers.
    latency_s: From the last byte through the channel to the array. May be traced. The
      channel serves others meanwhile. 0 unless given: `Dram` has none.
    cycles_per_mac: Of a serial cell, for these operands; 1 for a parallel cell.

  Returns:
    Seconds, and the `Timeline`. Differentiable with respect to bandwidth, clock,
    latency; whether a buffer is large enough has no slope. float32 rounds cycles above
    2^24: use `jax.enable_x64(True)` where they must be exact.

  Raises:
    ValueError: If sizes or tiles are no integers of at least 1, a buffer is known to be
      too small, or cycles_per_mac is missing. A capacity that is traced and too small
      takes infinitely long.
  """
  whole, a, step, latency_s = _prepare(
    (m, k, n), accelerator, mapping, cycles_per_mac, latency_s
  )
  steps = loops.count(m, k, n, mapping)
  return _run(whole, a, step, latency_s, steps=steps)


def steady_cycles(
  m: int,
  k: int,
  n: int,
  accelerator: Accelerator,
  mapping: Mapping,
  *,
  latency_s: Leaf = 0.0,
  cycles_per_mac: Leaf | None = None,
) -> jax.Array:
  """Cycles a tile takes while the innermost loop runs steadily, in closed form.

  The mean cycle of the recurrence: the array's own C, the channel's L + W, and, where a
  load waits for the tile two before it, C + W + L + latency for every two tiles. L and
  W are those in the middle of all three loops. The simulator takes as long for tiles
  that are alike, once it has forgotten how the loop began. Arguments as for `simulate`.
  """
  whole, a, step, latency_s = _prepare(
    (m, k, n), accelerator, mapping, cycles_per_mac, latency_s
  )
  return _steady(whole, a, step, latency_s)


def _prepare(
  sizes: tuple[int, int, int], accelerator: Accelerator, mapping: Mapping, *options: Any
) -> tuple[Nest, Accelerator, jax.Array, jax.Array]:
  """Arguments of `simulate`, checked, as arrays; temperature 0."""
  loops.check(*sizes, accelerator, mapping)
  step, latency_s = loops.options(accelerator, *options)
  a = dataclasses.replace(loops.numbers(accelerator), temperature=0.0)
  return loops.nest(*sizes, mapping, jnp.int32), a, step, latency_s


@jax.jit
def _steady(
  whole: Nest, a: Accelerator, step: jax.Array, latency_s: jax.Array
) -> jax.Array:
  a = dataclasses.replace(a, temperature=0.0)
  stay, counts = loops.stays(whole, a) > 0, -(-whole.sizes // whole.tiles)
  middle = jnp.sum(counts // 2 * _strides(whole, counts), dtype=jnp.int32)
  tile, _ = visit(whole, a, step, stay, middle)
  rate = loops.rate(a)
  load, write = jnp.sum(tile.loads) / rate, tile.write / rate
  waits = (write > 0) | jnp.any((tile.loads[:2] > 0) & ~stay[:2])
  round_trip = (tile.compute + load + write + latency_s * a.clock_hz) / 2
  round_trip = jnp.where((load > 0) & waits, round_trip, 0.0)
  return jnp.maximum(jnp.maximum(tile.compute, load + write), round_trip)


@partial(jax.jit, static_argnames="steps")
def _run(
  whole: Nest, a: Accelerator, step: jax.Array, latency_s: jax.Array, *, steps: int
) -> tuple[jax.Array, Timeline]:
  # A number that is known leaves the smooth model out.
  a = dataclasses.replace(a, temperature=0.0)
  latency, stay = latency_s * a.clock_hz, loops.stays(whole, a) > 0
  rate = loops.rate(a)

  def advance(state: State, i: jax.Array):
    tile, moved = visit(whole, a, step, stay, i)
    state, events = serve(state, tile, stay, rate, latency)
    return state, (tile, moved, events)

  last, (tiles, moved, events) = jax.lax.scan(
    advance, idle(), jnp.arange(steps, dtype=jnp.int32)
  )
  (loads, compute, early, stalls), (late, end) = events, drain(last, rate)
  # The write of a tile is served two steps later.
  start, stop = (jnp.concatenate([x[2:], y])[-steps:] for x, y in zip(early, late))
  cycles = jnp.where(jnp.all(loops.fits(whole, a)), end, jnp.inf)
  held_from, held_until = _held(tiles, stay, loads, compute, stop, end)
  return cycles / a.clock_hz, Timeline(
    cycles, loads[0], loads[1], compute[0], compute[1], start, stop, stalls,
    drain=end - last.newer.ready,
    moved=jax.tree.map(jnp.sum, moved),
    held_bytes=tiles.held,
    held_from=held_from,
    held_until=held_until,
  )  # fmt: skip


def idle() -> State:
  """Before the first tile: everything is free, nothing is in a buffer."""
  zero = jnp.zeros((), jnp.result_type(float))
  none = Pending(zero, zero)
  return State(zero, jnp.zeros(2, zero.dtype), zero, none, none)


def visit(
  whole: Nest, a: Accelerator, step: jax.Array, stay: jax.Array, i: jax.Array
) -> tuple[Tile, Moved]:
  """What tile `i` asks for and moves.

  Args:
    whole: Of int32.
    a: From `loops.numbers`, at temperature 0.
    step: Cycles of a multiply-accumulate.
    stay: [3] whether all of an operand stays in its buffer.
    i: int32, below the number of tiles.
  """
  counts = -(-whole.sizes // whole.tiles)
  stride = _strides(whole, counts)
  # Of the tile before, this one, and the one after.
  tiles = (i + jnp.arange(-1, 2, dtype=i.dtype))[:, None]
  places = tiles // stride[None] % counts[None]  # [3, loops]
  at = places[1]
  extent = jnp.minimum(whole.tiles, whole.sizes - at * whole.tiles)
  extent = extent.astype(jnp.result_type(float))
  used = places[:, jnp.array(INDICES)]  # [3, buffers, 2]
  change = jnp.any(used[1:] != used[:-1], axis=2)
  moved_on = change[0] | (i == 0)
  first = at[jnp.array(REUSED)] == 0
  fresh = moved_on & (~stay | first)
  final = at[1] == counts[1] - 1
  resumes = moved_on[2] & ~stay[2] & (at[1] > 0)
  spills = ~final & ~stay[2] & change[1, 2]

  act, weight, wide = loops.widths(a)
  held = loops.areas(extent) * loops.widths(a)
  loads = jnp.where(jnp.stack([fresh[0], fresh[1], resumes]), held, 0.0)
  spilled = jnp.where(spills, held[2], 0.0)
  results = jnp.where(final, extent[0] * extent[2] * act, 0.0)
  edges = loops.at_edges(extent, a)
  continued = edges.ofmap_reads * wide + jnp.where(at[1] > 0, held[2], 0.0)
  moved = Moved(
    loads[0], loads[1], loads[2], spilled, results,
    ifmap_read=edges.ifmap_reads * act,
    weight_read=edges.weight_reads * weight,
    ofmap_read=continued + spilled + jnp.where(final, held[2], 0.0),
    ofmap_written=edges.ofmap_writes * wide + loads[2],
  )  # fmt: skip
  compute = fold_cycles(a, extent[0], extent[1], extent[2], step)
  return Tile(
    compute, loads, spilled + results, fresh, jnp.where(fresh, held, 0.0)
  ), moved


def _strides(whole: Nest, counts: jax.Array) -> jax.Array:
  """[3] tiles from one turn of each loop to its next."""
  inside = whole.depth[None, :] > whole.depth[:, None]  # [loop, loops that run inside]
  return jnp.prod(jnp.where(inside, counts[None], 1), axis=1, dtype=jnp.int32)


def serve(
  state: State, tile: Tile, stay: jax.Array, rate: jax.Array, latency: jax.Array
) -> tuple[State, Any]:
  """The recurrence: one tile through channel and array.

  Returns:
    The next state, and the events: start and end of loads [3], of the computation, of
    the write that was older; stalls [4].
  """
  array = state.newer.ready
  leaves, left = _transfer(state.channel, *state.older, rate)
  written, channel = jnp.where(state.older.size > 0, left, state.written), left
  starts, ends = [], []
  for j in range(3):
    # Partial sums come after all older writes, so that their half is free.
    half = jnp.where(stay[j], 0.0, state.halves[j]) if j < 2 else 0.0
    start, channel = _transfer(channel, half, tile.loads[j], rate)
    starts, ends = [*starts, start], [*ends, channel]
  begin, stalls = array, []
  waits = [jnp.where(b > 0, e + latency, 0.0) for b, e in zip(tile.loads, ends)]
  waits += [jnp.where(tile.fresh[2] & ~stay[2], written, 0.0)]
  for ready in waits:
    stalls, begin = (
      [*stalls, jnp.maximum(ready - begin, 0.0)],
      jnp.maximum(begin, ready),
    )
  end = begin + tile.compute
  # A new tile: the one before was in use until the array was done with it.
  halves = jnp.where(tile.fresh[:2], array, state.halves)
  following = State(channel, halves, written, state.newer, Pending(end, tile.write))
  loads = (jnp.stack(starts), jnp.stack(ends))
  return following, (loads, (begin, end), (leaves, left), jnp.stack(stalls))


def drain(state: State, rate: jax.Array) -> tuple[Any, jax.Array]:
  """Starts and ends [2] of the last two writes, and when the last byte has left."""
  start, channel = _transfer(state.channel, *state.older, rate)
  final, end = _transfer(channel, *state.newer, rate)
  return (jnp.stack([start, final]), jnp.stack([channel, end])), end


def _transfer(
  channel: jax.Array, ready: Any, size: jax.Array, rate: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Start and end on the channel; nothing to move takes and waits for nothing."""
  start = jnp.where(size > 0, jnp.maximum(channel, ready), channel)
  return start, start + size / rate


def _held(
  tiles: Tile,
  stay: jax.Array,
  loads: tuple[jax.Array, jax.Array],
  compute: tuple[jax.Array, jax.Array],
  written: jax.Array,
  end: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """From when until when each tile holds its places, [T, 3] each."""
  steps = tiles.fresh.shape[0]
  place = jnp.where(tiles.fresh, jnp.arange(steps)[:, None], steps)
  following = jnp.concatenate([place[1:], jnp.full((1, 3), steps)])
  last = jax.lax.cummin(following, reverse=True) - 1  # tile that uses the place last
  begin = jnp.where(tiles.loads[:, 2] > 0, loads[0][:, 2], compute[0])
  done = jnp.stack([compute[1], compute[1], written], axis=1)
  until = jnp.take_along_axis(done, last, axis=0)
  held_from = jnp.concatenate([loads[0][:, :2], begin[:, None]], axis=1)
  return held_from, jnp.where(stay[None], end, until)
