"""What systolic simulators are made of: skew, shift, scan, count, and the trace.

A skewed edge hands lane i its values `pitch * i` cycles late, so that operands meet.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

# Below so many cells folds run side by side: a step's overhead outweighs its work.
_SIDE_BY_SIDE_CELLS = 512


class Flips(NamedTuple):
  """Bits that flip in the registers of each kind, int32, a number a cycle."""

  left: jax.Array
  right: jax.Array
  sums: jax.Array

  def exchanged(self) -> "Flips":
    """With the operands' names exchanged."""
    return Flips(self.right, self.left, self.sums)


class Trace(NamedTuple):
  """What an array did in each cycle of each fold; arrays are int32 [folds, cycles].

  Folds are in the order (rows, columns) of their tiles for os, (columns, rows) for ws
  and is. `left` and `right` are the operands a and b of `simulate`, in any dataflow.

  Attributes:
    busy: Cells that multiply two values of the operands; padding is not counted.
    left_reads: Values of a that enter at an edge.
    right_reads: Values of b that enter.
    result_writes: Results and partial sums that leave.
    result_reads: Partial sums that come back to be continued.
    toggles: Bits that flip in registers, or None when not asked for.
  """

  busy: jax.Array
  left_reads: jax.Array
  right_reads: jax.Array
  result_writes: jax.Array
  result_reads: jax.Array
  toggles: Flips | None

  @property
  def cycles(self) -> int:
    """Cycles of all folds."""
    return self.busy.shape[-2] * self.busy.shape[-1]


def skew(x: jax.Array, steps: int, pitch: int) -> jax.Array:
  """[lanes, length] as it enters: [steps, lanes], lane i late by pitch * i cycles."""
  lanes, length = x.shape
  # Rows one pitch too long, read as rows of the right length, begin one pitch later.
  wide = jnp.pad(x, ((0, 0), (0, steps + pitch - length))).reshape(-1)
  return wide[: lanes * steps].reshape(lanes, steps).T


def unskew(x: jax.Array, first: int, length: int) -> jax.Array:
  """What leaves, [steps, lanes], as [lanes, length]: lane i begins at first + i."""
  steps, lanes = x.shape
  flat = jnp.pad(x.T.reshape(-1), (0, lanes))
  return flat.reshape(lanes, steps + 1)[:, first : first + length]


def wavefront(
  steps: int, lanes: int, used: jax.Array, pitch: int, length: int
) -> jax.Array:
  """Which of `used` skewed lanes carries a value in a cycle: [steps, lanes] bool."""
  lane = jnp.arange(lanes)[None]
  late = jnp.arange(steps)[:, None] - pitch * lane
  return (late >= 0) & (late < length) & (lane < used)


def entering(steps: int, used: jax.Array, pitch: int, length: int) -> jax.Array:
  """How many of `used` skewed lanes carry a value in a cycle: int32 [steps]."""
  t = jnp.arange(steps)
  first = jnp.maximum(0, -((length - 1 - t) // pitch))
  last = jnp.minimum(used - 1, t // pitch)
  return jnp.maximum(0, last - first + 1).astype(jnp.int32)


def moved_right(edge: jax.Array, x: jax.Array) -> jax.Array:
  """Registers [rows, cols] after a cycle, `edge` [rows] entering on the left."""
  return jnp.concatenate([edge[:, None], x[:, :-1]], axis=1)


def moved_down(edge: jax.Array, x: jax.Array) -> jax.Array:
  """Registers [rows, cols] after a cycle, `edge` [cols] entering at the top."""
  return jnp.concatenate([edge[None], x[:-1]], axis=0)


def selected(left: Sequence[jax.Array], channel: jax.Array) -> jax.Array:
  """The input that a cell's multiplexer lets through, of alpha times [rows, cols]."""
  picked = jnp.zeros_like(left[0])
  for i, lane in enumerate(left):
    picked = jnp.where(channel == i, lane, picked)
  return picked


def flips(before: Any, after: Any) -> Flips:
  """Bits that differ between (left, right, sums), each a tree of registers."""

  def count(x: jax.Array, y: jax.Array) -> jax.Array:
    differ = lax.population_count(_bits(x) ^ _bits(y))
    return jnp.sum(differ.astype(jnp.int32))

  def total(x: Any, y: Any) -> jax.Array:
    return jnp.sum(jnp.stack(jax.tree.leaves(jax.tree.map(count, x, y))))

  return Flips(*(total(x, y) for x, y in zip(before, after)))


def scan_cycles(
  cycle: Callable[[Any, Any], Any],
  state: Any,
  edges: Any,
  steps: int,
  unroll: int = 1,
) -> Any:
  """`lax.scan` over cycles whose gradient keeps the state of sqrt(steps) of them."""
  differentiable = any(
    jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves((state, edges))
  )
  inner = math.isqrt(steps)
  if not differentiable or inner < 4:
    return lax.scan(cycle, state, edges, length=steps, unroll=unroll)
  outer = steps // inner
  head = jax.tree.map(
    lambda x: x[: outer * inner].reshape(outer, inner, *x.shape[1:]), edges
  )
  tail = jax.tree.map(lambda x: x[outer * inner :], edges)
  stretch = jax.checkpoint(lambda s, e: lax.scan(cycle, s, e, length=inner))
  state, first = lax.scan(stretch, state, head, length=outer)
  state, last = lax.scan(cycle, state, tail, length=steps - outer * inner)
  flat = lambda x, y: jnp.concatenate([x.reshape(-1, *x.shape[2:]), y])
  return state, jax.tree.map(flat, first, last)


def busy_cells(
  steps: int, rows: int, high: jax.Array, broad: jax.Array, hop: int, length: int
) -> jax.Array:
  """Cells on the wavefront in each cycle: [steps]."""
  # Column j of row i holds value v in cycle hop * i + j + v.
  row = jnp.arange(rows)[None]
  late = jnp.arange(steps)[:, None] - hop * row
  first, last = jnp.maximum(0, late - length + 1), jnp.minimum(broad - 1, late)
  inside = jnp.where(row < high, jnp.maximum(0, last - first + 1), 0)
  return jnp.sum(inside, axis=1, dtype=jnp.int32)


def map_folds(fold: Any, count: int, cells: int) -> Any:
  """`fold` of 0 .. count - 1, small arrays side by side, residuals recomputed."""
  together = min(count, max(1, _SIDE_BY_SIDE_CELLS // cells))
  fold, indices = jax.checkpoint(fold), jnp.arange(count)
  return lax.map(fold, indices, batch_size=together if together > 1 else None)


def pad(x: jax.Array, axis: int, size: int) -> jax.Array:
  """`x` with zeros behind, so that `axis` has `size`."""
  widths = [(0, size - n if i == axis else 0) for i, n in enumerate(x.shape)]
  return jnp.pad(x, widths)


def whole_bytes(x: jax.Array) -> jax.Array:
  """`x`, integers of less than 8 bits as int8 or uint8."""
  if not jnp.issubdtype(x.dtype, jnp.integer) or jnp.iinfo(x.dtype).bits >= 8:
    return x
  signed = jnp.issubdtype(x.dtype, jnp.signedinteger)
  return x.astype(jnp.int8 if signed else jnp.uint8)


def sum_dtype(left: Any, right: Any) -> Any:
  """int32 for integers; for floats the wider operand, at least float32."""
  if jnp.issubdtype(left, jnp.integer):
    return jnp.int32
  return max(left, right, jnp.dtype(jnp.float32), key=lambda t: t.itemsize)


def _bits(x: jax.Array) -> jax.Array:
  width = x.dtype.itemsize * 8
  if jnp.issubdtype(x.dtype, jnp.unsignedinteger):
    return x
  return lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}"))
