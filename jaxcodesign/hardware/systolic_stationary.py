"""Weight-stationary folds: weights are loaded and stay, inputs and sums move."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxcodesign.hardware.array_scan import (
  Flips,
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
  unskew,
  wavefront,
)


def stationary(
  a: jax.Array,
  b: jax.Array,
  channel: jax.Array | None,
  rows: int,
  cols: int,
  accounting: str,
  toggles: bool,
) -> tuple[jax.Array, Trace]:
  """b stays, a [alpha, m, k] streams through; sums are continued over folds of k."""
  (_, m, k), n = a.shape, b.shape[0]
  deep, wide = -(-k // rows), -(-n // cols)
  blocks = lambda x: (
    pad(pad(x, 0, wide * cols), 1, deep * rows)
    .reshape(wide, cols, deep, rows)
    .transpose(0, 2, 3, 1)
  )
  # [k folds, alpha, rows, m] and [n folds, k folds, rows, cols].
  left = pad(a, 2, deep * rows).reshape(-1, m, deep, rows).transpose(2, 0, 3, 1)
  right = blocks(b)
  select = None if channel is None else blocks(channel)

  def columns(j: jax.Array) -> Any:
    broad = jnp.minimum(cols, n - j * cols)

    def fold(sums: jax.Array, i: jax.Array) -> Any:
      size = jnp.minimum(rows, k - i * rows), broad, i > 0
      chosen = None if select is None else select[j, i]
      return _ws_fold(left[i], right[j, i], chosen, sums, size, accounting, toggles)

    total = jnp.zeros((m, cols), sum_dtype(a.dtype, b.dtype))
    return lax.scan(fold, total, jnp.arange(deep))

  product, trace = map_folds(columns, wide, rows * cols)
  trace = jax.tree.map(lambda x: x.reshape(wide * deep, -1), trace)
  return product.swapaxes(0, 1).reshape(m, wide * cols)[:, :n], trace


def _ws_fold(
  a: jax.Array,
  weight: jax.Array,
  channel: jax.Array | None,
  sums: jax.Array,
  size: tuple[jax.Array, jax.Array, jax.Array],
  accounting: str,
  toggles: bool,
) -> tuple[jax.Array, Trace]:
  """Loads [rows, cols] weights, streams [alpha, rows, m], continues sums [m, cols].

  `size` has the rows and columns that hold weights, and whether sums are continued.
  """
  (alpha, rows, m), cols = a.shape, weight.shape[1]
  high, broad, continued = size
  hop = 1 if accounting == "scalesim" else 2  # cycles a sum takes to pass a row
  steps = m + hop * rows + cols - 2
  weight, loading = _load(weight, a, sums, toggles)
  valid = wavefront(steps, rows, high, hop, m)
  lanes = jax.vmap(lambda x: skew(x, steps, hop), out_axes=1)(a)
  feed = (lanes, skew(sums.T, steps, 1), valid)

  def cycle(state: Any, edge: Any) -> Any:
    left, partial_, sum_, live = state
    left = jax.vmap(moved_right)(edge[0], left)
    product = _chosen(left, channel).astype(sum_.dtype) * weight.astype(sum_.dtype)
    made = moved_down(edge[1], sum_ if hop == 2 else partial_) + product
    new = (left, made, partial_ if hop == 2 else sum_)
    out = new[hop][-1]
    if not toggles:
      return (*new, live), (out,)
    live = moved_right(edge[2], live)
    busy = jnp.sum(live & (jnp.arange(cols)[None, :] < broad), dtype=jnp.int32)
    flipped = flips((state[0], weight, state[1:3]), (left, weight, new[1:3]))
    return (*new, live), (out, busy, flipped)

  cells = (rows, cols)
  nothing = jnp.zeros(cells if hop == 2 else (0, cols), sums.dtype)
  state = (
    jnp.zeros((alpha, *cells), a.dtype),
    jnp.zeros(cells, sums.dtype),
    nothing,
    jnp.zeros(cells, bool),
  )
  _, seen = scan_cycles(cycle, state, feed, steps)
  out = unskew(seen[0], hop * rows - 1, m).T
  count = lambda x: jnp.sum(x, axis=1, dtype=jnp.int32)
  idle = jnp.zeros(rows, jnp.int32)
  leaving = count(wavefront(steps - hop * rows + 1, cols, broad, 1, m))
  leaving = jnp.concatenate([jnp.zeros(hop * rows - 1, jnp.int32), leaving])
  again = count(wavefront(steps, cols, jnp.where(continued, broad, 0), 1, m))
  held = jnp.where(jnp.arange(rows)[::-1] < high, broad, 0).astype(jnp.int32)
  busy = seen[1] if toggles else busy_cells(steps, rows, high, broad, hop, m)
  flipped = seen[2] if toggles else None
  streaming = Trace(
    busy, alpha * count(valid), jnp.zeros_like(busy), leaving, again, flipped
  )
  before = Trace(idle, idle, held, idle, idle, loading)
  return out, jax.tree.map(lambda x, y: jnp.concatenate([x, y]), before, streaming)


def _load(
  weight: jax.Array, a: jax.Array, sums: jax.Array, toggles: bool
) -> tuple[jax.Array, Flips | None]:
  """Shifts the weights in from above, the last row first: R cycles."""

  def cycle(held: jax.Array, row: jax.Array) -> Any:
    new = moved_down(row, held)
    nothing = jnp.zeros((), a.dtype), jnp.zeros((), sums.dtype)
    before, after = (nothing[0], held, nothing[1]), (nothing[0], new, nothing[1])
    return new, flips(before, after) if toggles else None

  return scan_cycles(cycle, jnp.zeros_like(weight), weight[::-1], weight.shape[0])


def _chosen(left: jax.Array, channel: jax.Array | None) -> jax.Array:
  """The input that a cell's multiplexer lets through, of [alpha, rows, cols]."""
  if channel is None:
    return left[0]
  picked = jnp.zeros_like(left[0])
  for i in range(left.shape[0]):
    picked = jnp.where(channel == i, left[i], picked)
  return picked
