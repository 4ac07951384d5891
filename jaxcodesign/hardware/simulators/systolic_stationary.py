"""Weight-stationary folds: weights are loaded and stay, inputs and sums move."""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jaxcodesign.hardware.simulators.array_scan import (
  Flips,
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
  unskew,
  wavefront,
)


class _Size(NamedTuple):
  """Of a fold, in cycles.

  Attributes:
    hop: A sum takes to pass a row: 1, or 2 with an output register in every cell.
    lag: From a sum's entry at the top to its exit at the bottom.
    steps: Of the stream of `length` values, without weight load.
  """

  hop: int
  lag: int
  steps: int
  length: int


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
  hop = 1 if accounting == "scalesim" else 2
  size = _Size(hop, hop * rows - 1, m + hop * rows + cols - 2, m)
  blocks = lambda x: (
    pad(pad(x, 0, wide * cols), 1, deep * rows)
    .reshape(wide, cols, deep, rows)
    .transpose(0, 2, 3, 1)
  )
  # Edges [k folds, steps, alpha, rows]; what stays [n folds, k folds, rows, cols].
  left = pad(a, 2, deep * rows).reshape(-1, m, deep, rows).transpose(2, 0, 3, 1)
  enter = lambda lanes: skew(lanes, size.steps, hop)
  left = jax.vmap(jax.vmap(enter, out_axes=1))(left)
  right = blocks(b)
  select = None if channel is None else blocks(channel)

  def columns(j: jax.Array) -> Any:
    def fold(sums: jax.Array, i: jax.Array) -> Any:
      used = jnp.minimum(rows, k - i * rows), jnp.minimum(cols, n - j * cols), i > 0
      chosen = None if select is None else select[j, i]
      return _ws_fold(left[i], right[j, i], chosen, sums, used, size, toggles)

    # Sums stay skewed between folds, as they leave and as they enter again.
    sums = jnp.zeros((m + cols - 1, cols), sum_dtype(a.dtype, b.dtype))
    sums, trace = lax.scan(fold, sums, jnp.arange(deep))
    return unskew(sums, 0, m), trace

  product, trace = map_folds(columns, wide, rows * cols)
  trace = jax.tree.map(lambda x: x.reshape(wide * deep, -1), trace)
  return product.reshape(wide * cols, m)[:n].T, trace


def _ws_fold(
  left: jax.Array,
  weight: jax.Array,
  channel: jax.Array | None,
  sums: jax.Array,
  used: tuple[jax.Array, jax.Array, jax.Array],
  size: _Size,
  toggles: bool,
) -> tuple[jax.Array, Trace]:
  """Loads [rows, cols] weights, streams [steps, alpha, rows], continues skewed sums.

  `used` has the rows and columns that hold weights, and whether sums are continued.
  """
  (steps, alpha, rows), cols = left.shape, weight.shape[1]
  used = lax.optimization_barrier(used)  # or XLA counts constants at compile time
  weight, loading = _load(weight, left, sums, toggles)
  valid = wavefront(steps, rows, used[0], size.hop, size.length) if toggles else None
  feed = (left, pad(sums, 0, steps), valid)

  def cycle(state: Any, edge: Any) -> Any:
    inputs, made, held, live = state
    inputs = jax.vmap(moved_right)(edge[0], inputs)
    seen = inputs[0] if channel is None else selected([*inputs], channel)
    product = seen.astype(made.dtype) * weight.astype(made.dtype)
    above = made if held is None else held
    new = moved_down(edge[1], above) + product
    # With an output register a sum waits in it for a cycle.
    after = (inputs, new, None if held is None else made)
    out = new[-1] if held is None else made[-1]
    if not toggles:
      return (*after, live), (out, None, None)
    live = moved_right(edge[2], live)
    busy = jnp.sum(live & (jnp.arange(cols)[None, :] < used[1]), dtype=jnp.int32)
    flipped = flips((state[0], weight, state[1:3]), (inputs, weight, after[1:]))
    return (*after, live), (out, busy, flipped)

  zero = jnp.zeros((rows, cols), sums.dtype)
  state = (
    jnp.zeros((alpha, rows, cols), left.dtype),
    zero,
    zero if size.hop == 2 else None,
    jnp.zeros((rows, cols), bool) if toggles else None,
  )
  # Two cycles a step: the two registers of a sum change places without a copy.
  _, (out, busy, flipped) = scan_cycles(cycle, state, feed, steps, unroll=2)
  if busy is None:
    busy = busy_cells(steps, rows, used[0], used[1], size.hop, size.length)
  trace = _trace(busy, flipped, loading, used, size, alpha, rows)
  return out[size.lag :], trace


def _trace(
  busy: jax.Array,
  flipped: Flips | None,
  loading: Flips | None,
  used: tuple[jax.Array, jax.Array, jax.Array],
  size: _Size,
  alpha: int,
  rows: int,
) -> Trace:
  """The trace of a fold: weight load, then the stream."""
  high, broad, continued = used
  steps, length = size.steps, size.length
  leaving = entering(steps - size.lag, broad, 1, length)
  leaving = jnp.concatenate([jnp.zeros(size.lag, jnp.int32), leaving])
  again = entering(steps, jnp.where(continued, broad, 0), 1, length)
  inputs = alpha * entering(steps, high, size.hop, length)
  streaming = Trace(busy, inputs, jnp.zeros_like(busy), leaving, again, flipped)
  idle = jnp.zeros(rows, jnp.int32)
  loaded = jnp.where(jnp.arange(rows)[::-1] < high, broad, 0).astype(jnp.int32)
  before = Trace(idle, idle, loaded, idle, idle, loading)
  return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), before, streaming)


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
