"""Output-stationary folds: both operands move, sums stay and then drain downwards."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxcodesign.hardware.array_scan import (
  Trace,
  busy_cells,
  flips,
  map_folds,
  moved_down,
  moved_right,
  pad,
  scan_cycles,
  skew,
  sum_dtype,
  wavefront,
)


def moving(
  a: jax.Array, b: jax.Array, rows: int, cols: int, accounting: str, toggles: bool
) -> tuple[jax.Array, Trace]:
  """a [m, k] and b [n, k] stream through; each fold makes [rows, cols] results."""
  m, n = a.shape[0], b.shape[0]
  left, right = _tiles(a, rows), _tiles(b, cols)
  tall, wide = left.shape[0], right.shape[0]

  def fold(index: jax.Array) -> Any:
    i, j = index // wide, index % wide
    high, broad = jnp.minimum(rows, m - i * rows), jnp.minimum(cols, n - j * cols)
    return _os_fold(left[i], right[j], high, broad, accounting, toggles)

  product, trace = map_folds(fold, tall * wide, rows * cols)
  product = product.reshape(tall, wide, rows, cols).swapaxes(1, 2)
  return product.reshape(tall * rows, wide * cols)[:m, :n], trace


def _os_fold(
  a: jax.Array,
  b: jax.Array,
  high: jax.Array,
  broad: jax.Array,
  accounting: str,
  toggles: bool,
) -> tuple[jax.Array, Trace]:
  """One tile [rows, k] x [cols, k], of which `high` x `broad` results are wanted."""
  (rows, k), cols = a.shape, b.shape[0]
  steps = k + rows + cols - 2
  total = sum_dtype(a.dtype, b.dtype)
  valid = wavefront(steps, rows, high, 1, k)
  feed = (skew(a, steps, 1), skew(b, steps, 1), valid)

  def cycle(state: Any, edge: Any) -> Any:
    left, right, sums, live = state
    left, right = moved_right(edge[0], left), moved_down(edge[1], right)
    new = (left, right, sums + left.astype(total) * right.astype(total))
    if not toggles:
      return (*new, live), None
    live = moved_right(edge[2], live)
    busy = jnp.sum(live & (jnp.arange(cols)[None, :] < broad), dtype=jnp.int32)
    return (*new, live), (busy, flips(state[:3], new))

  cells = (rows, cols)
  state = (
    jnp.zeros(cells, a.dtype),
    jnp.zeros(cells, b.dtype),
    jnp.zeros(cells, total),
    jnp.zeros(cells, bool),
  )
  (left, right, sums, _), seen = scan_cycles(cycle, state, feed, steps)
  entering = jnp.sum(valid, axis=1, dtype=jnp.int32)
  top = wavefront(steps, cols, broad, 1, k)
  busy = seen[0] if toggles else busy_cells(steps, rows, high, broad, 1, k)
  flipped = seen[1] if toggles else None
  written = jnp.zeros(steps, jnp.int32).at[-1].add((high * broad).astype(jnp.int32))
  trace = Trace(
    busy,
    entering,
    jnp.sum(top, axis=1, dtype=jnp.int32),
    written,
    jnp.zeros_like(written),
    flipped,
  )
  if accounting == "scalesim":
    return sums, trace
  return _drain(left, right, sums, trace, high, broad)


def _drain(
  left: jax.Array,
  right: jax.Array,
  sums: jax.Array,
  trace: Trace,
  high: jax.Array,
  broad: jax.Array,
) -> tuple[jax.Array, Trace]:
  """Shifts the sums down and out through a row of output registers: R + 1 cycles."""
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
