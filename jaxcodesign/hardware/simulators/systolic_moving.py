"""Output-stationary folds: both operands move, sums stay and then drain downwards."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxcodesign.hardware.simulators.array_scan import (
  Trace,
  busy_cells,
  entering,
  flips,
  map_folds,
  moved_down,
  moved_right,
  pad,
  scan_cycles,
  selected,
  skew,
  sum_dtype,
  wavefront,
)

_WIDE = 64  # columns from which on `_moved` has its other form: 1.6 times as fast


def moving(
  a: jax.Array,
  b: jax.Array,
  channel: jax.Array | None,
  rows: int,
  cols: int,
  accounting: str,
  toggles: bool,
) -> tuple[jax.Array, Trace]:
  """a [alpha, m, k] and b [n, k] stream through; a fold makes [rows, cols] results."""
  (_, m, k), n = a.shape, b.shape[0]
  steps = k + rows + cols - 2
  enter = jax.vmap(lambda lanes: skew(lanes, steps, 1))
  left = jnp.stack([enter(_tiles(lane, rows)) for lane in a], axis=2)
  right = enter(_tiles(b, cols))
  select = None if channel is None else enter(_tiles(channel, cols))
  tall, wide = left.shape[0], right.shape[0]

  def fold(index: jax.Array) -> Any:
    i, j = index // wide, index % wide
    high, broad = jnp.minimum(rows, m - i * rows), jnp.minimum(cols, n - j * cols)
    size = lax.optimization_barrier((high, broad))  # or XLA counts while compiling
    chosen = None if select is None else select[j]
    return _os_fold(left[i], right[j], chosen, size, k, accounting, toggles)

  product, trace = map_folds(fold, tall * wide, rows * cols)
  product = product.reshape(tall, wide, rows, cols).swapaxes(1, 2)
  return product.reshape(tall * rows, wide * cols)[:m, :n], trace


def _os_fold(
  a: jax.Array,
  b: jax.Array,
  channel: jax.Array | None,
  size: tuple[jax.Array, jax.Array],
  k: int,
  accounting: str,
  toggles: bool,
) -> tuple[jax.Array, Trace]:
  """Edges a [steps, alpha, rows], b and channel [steps, cols]; `size` is wanted."""
  (steps, alpha, rows), cols, (high, broad) = a.shape, b.shape[1], size
  total = sum_dtype(a.dtype, b.dtype)
  # Lanes apart: as one array even a single one takes a fifth longer.
  lanes = tuple(a[:, i] for i in range(alpha))
  feed = (lanes, b, channel, wavefront(steps, rows, high, 1, k) if toggles else None)

  def cycle(state: Any, edge: Any) -> Any:
    left, right, sums, select, live = state
    left = tuple(_moved(enters, x) for enters, x in zip(edge[0], left))
    right = moved_down(edge[1], right)
    if select is not None:
      select = moved_down(edge[2], select)
    seen = left[0] if select is None else selected(left, select)
    new = (left, right, sums + seen.astype(total) * right.astype(total))
    if not toggles:
      return (*new, select, live), (None, None)
    live = moved_right(edge[3], live)
    busy = jnp.sum(live & (jnp.arange(cols)[None, :] < broad), dtype=jnp.int32)
    return (*new, select, live), (busy, flips(state[:3], new))

  cells = (rows, cols)
  state = (
    (jnp.zeros(cells, a.dtype),) * alpha,
    jnp.zeros(cells, b.dtype),
    jnp.zeros(cells, total),
    None if channel is None else jnp.zeros(cells, channel.dtype),
    jnp.zeros(cells, bool) if toggles else None,
  )
  last, (busy, flipped) = scan_cycles(cycle, state, feed, steps)
  if busy is None:
    busy = busy_cells(steps, rows, high, broad, 1, k)
  written = jnp.zeros(steps, jnp.int32).at[-1].add((high * broad).astype(jnp.int32))
  lefts, rights = alpha * entering(steps, high, 1, k), entering(steps, broad, 1, k)
  trace = Trace(busy, lefts, rights, written, jnp.zeros_like(written), flipped)
  if accounting == "scalesim":
    return last[2], trace
  return _drain(last[:3], trace, high, broad)


def _moved(edge: jax.Array, x: jax.Array) -> jax.Array:
  """`moved_right`, in a form that XLA CPU vectorizes better on wide arrays."""
  if x.shape[1] < _WIDE:
    return moved_right(edge, x)
  shifted = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (1, -1, 0)))
  return jnp.where(jnp.arange(x.shape[1])[None] == 0, edge[:, None], shifted)


def _drain(
  registers: tuple[Any, jax.Array, jax.Array],
  trace: Trace,
  high: jax.Array,
  broad: jax.Array,
) -> tuple[jax.Array, Trace]:
  """Shifts the sums down and out through a row of output registers: R + 1 cycles."""
  left, right, sums = registers
  rows, cols = sums.shape
  zero = jnp.zeros(cols, sums.dtype)

  def cycle(state: Any, _: None) -> Any:
    sums, out = state
    new = moved_down(zero, sums), sums[-1]
    seen = flips((left, right, sums), (left, right, new[0])) if trace.toggles else None
    return new, (out, seen)

  _, (out, flipped) = scan_cycles(cycle, (sums, zero), None, rows + 1)
  out = out[:0:-1]  # the last row comes first, one cycle after it left its cell
  row = jnp.arange(rows, -1, -1)  # of the value in the output register; rows: none yet
  written = jnp.where(row < high, broad, 0).astype(jnp.int32)
  idle = jnp.zeros(rows + 1, jnp.int32)
  tail = Trace(idle, idle, idle, written, idle, flipped)
  trace = trace._replace(result_writes=jnp.zeros_like(trace.result_writes))
  return out, jax.tree.map(lambda x, y: jnp.concatenate([x, y]), trace, tail)


def _tiles(x: jax.Array, size: int) -> jax.Array:
  """[rows, k] as [tiles, size, k], padded with zeros."""
  count = -(-x.shape[0] // size)
  return pad(x, 0, count * size).reshape(count, size, x.shape[1])
