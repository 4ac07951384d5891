"""Folds of the FAST array as scans, one step a clock cycle; see `fmac_array`.

What streams carries the number of its pass with it, from 1; 0 is no pass. In the last
pass of a pair of groups a cell makes a float of its integers and adds it to the sum
that comes by.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxcodesign.hardware.simulators import fmac
from jaxcodesign.hardware.simulators.array_scan import (
  moved_down,
  moved_right,
  pad,
  skew,
)
from jaxcodesign.numerics.formats.block_float import BlockFloat

HOP = 2  # cycles of a sum from cell to cell: it waits in an output register


class Bits(NamedTuple):
  """Mantissa bits of a layer's tensors, the sign not counted."""

  weight: int
  activation: int
  gradient: int


class Groups(NamedTuple):
  """Block floating point: mantissas [lanes, groups, g], exponents [lanes, groups]."""

  mantissa: jax.Array
  exponent: jax.Array


def groups(x: jax.Array, bits: int, group: int = 16) -> Groups:
  """What the converter makes of `x` [lanes, length]: int32, to nearest even.

  Values that are on the grid, as stochastic rounding may have left them, stay.
  """
  fmt = BlockFloat(bits, group)
  scale = fmt.scale(x)
  whole = pad(fmt.elements(x, scale, None), 1, scale.shape[1] * group)
  mantissa = whole.astype(jnp.int32).reshape(*scale.shape, group)
  return Groups(mantissa, scale - (bits - 1))


def load(block: jax.Array, used: Any) -> tuple[jax.Array, jax.Array]:
  """Shifts W [R, C, g] in from above, the last row first; values read in a cycle."""
  rows, group = block.shape[0], block.shape[2]
  real = jnp.clip(used[0] - jnp.arange(rows) * group, 0, group) * used[1]
  shift = lambda held, row: (moved_down(row, held), None)
  held, _ = lax.scan(shift, jnp.zeros_like(block), block[::-1])
  return held, real[::-1].astype(jnp.int32)


class Passes(NamedTuple):
  """Of a pair of operands: the chunk of each in every pass, and where it belongs."""

  left: np.ndarray
  right: np.ndarray

  @property
  def shifts(self) -> jax.Array:
    """Places of the product of the two chunks, in each pass."""
    return jnp.asarray(fmac.CHUNK_BITS * (self.left + self.right))


def passes(left_bits: int, right_bits: int) -> Passes:
  """The passes of `fmac.simulate`, in its order."""
  across = -(-right_bits // fmac.CHUNK_BITS)
  steps = np.arange(fmac.passes(left_bits, right_bits))
  return Passes(steps // across, steps % across)


def _enter(x: Groups, chunks: np.ndarray, steps: int, pitch: int) -> Any:
  """Chunks [steps, lanes, g], exponents and pass numbers [steps, lanes], skewed.

  Passes count from 1; 0 is no pass.
  """
  lanes, count, group = x.mantissa.shape
  at = jnp.asarray(fmac.CHUNK_BITS * chunks)
  parts = fmac.chunk(x.mantissa[:, :, None], at[None, None, :, None]).reshape(
    lanes, -1, group
  )
  number = jnp.tile(jnp.arange(1, len(chunks) + 1), (lanes, count))
  late = partial(skew, steps=steps, pitch=pitch)
  return (
    jax.vmap(late, in_axes=-1, out_axes=-1)(parts),
    late(jnp.repeat(x.exponent, len(chunks), axis=1)),
    late(number),
  )


def _times(count: int, passes: int, lanes: int) -> jax.Array:
  """When the last pass of each value meets the first cell of a lane: [count, lanes]."""
  last = passes * jnp.arange(1, count + 1) - 1
  return last[:, None] + jnp.arange(lanes)[None]


def forward(x: Groups, held: jax.Array, sums: jax.Array, bits: Bits) -> Any:
  """[m, C] sums continued with x [m, R] groups against held [R, C, g]; busy cells."""
  (rows, cols, group), m = held.shape, sums.shape[0]
  plan = passes(bits.activation, bits.weight)
  weight = groups(held.swapaxes(0, 1).reshape(cols, -1), bits.weight, group)
  weight = jax.tree.map(lambda y: y.swapaxes(0, 1), weight)  # [R, C, g] and [R, C]
  steps = m * len(plan.left) + HOP * rows + cols - 2
  feed = _enter(jax.tree.map(lambda y: y.swapaxes(0, 1), x), plan.left, steps, HOP)
  times, lane = _times(m, len(plan.left), cols), jnp.arange(cols)[None]
  edge = jnp.zeros((steps, cols)).at[times, lane].set(sums)

  def cycle(state: Any, entering: Any) -> Any:
    moving, total, made, waiting = state
    moving = jax.tree.map(moved_right, entering[0], moving)
    part, exponent, number = moving
    other = fmac.chunk(
      weight.mantissa, _of_pass(plan.right * fmac.CHUNK_BITS, number)[..., None]
    )
    added = jnp.sum(part * other, axis=-1) << _of_pass(plan.shifts, number)
    total = jnp.where(number == 1, 0, total) + added
    value = jnp.ldexp(total.astype(jnp.float32), exponent + weight.exponent)
    value = jnp.where(number == len(plan.left), value, 0)
    new = moved_down(entering[1], waiting) + value
    busy = jnp.sum((added != 0) & (number > 0), dtype=jnp.int32)
    return (moving, total, new, made), (made[-1], busy)

  cell = jnp.zeros((rows, cols), jnp.int32)
  zero = jnp.zeros((rows, cols))
  state = (jnp.zeros(held.shape, jnp.int32), cell, cell), cell, zero, zero
  _, (out, busy) = lax.scan(cycle, state, (feed, edge))
  return out[times + HOP * rows - 1, lane], busy


def backward(x: Groups, held: jax.Array, sums: jax.Array, bits: Bits) -> Any:
  """[m, R g] sums continued with x [m, C / g] groups against held; busy cells."""
  (rows, cols, group), m = held.shape, sums.shape[0]
  plan = passes(bits.gradient, bits.weight)
  inputs = held.swapaxes(1, 2).reshape(-1, cols)  # [R g, C]
  weight = groups(inputs, bits.weight, group)
  cell = lambda y: y.reshape(rows, group, cols).swapaxes(1, 2)  # [R, C, g]
  mantissa = cell(weight.mantissa.reshape(-1, cols))
  power = cell(jnp.repeat(weight.exponent, group, axis=1))
  steps = m * len(plan.left) + HOP * cols + rows - 2
  one = Groups(
    x.mantissa.reshape(m, cols).T[..., None], jnp.repeat(x.exponent, group, axis=1).T
  )
  feed = _enter(one, plan.left, steps, HOP)
  times, lane = _times(m, len(plan.left), rows), jnp.arange(rows)[None]
  edge = (
    jnp.zeros((steps, rows, group)).at[times, lane].set(sums.reshape(m, rows, group))
  )
  place = (jnp.arange(cols) % group)[None, :, None]

  def cycle(state: Any, entering: Any) -> Any:
    moving, total, made, waiting = state
    moving = jax.tree.map(moved_down, entering[0], moving)
    part, exponent, number = moving
    other = fmac.chunk(
      mantissa, _of_pass(plan.right * fmac.CHUNK_BITS, number)[..., None]
    )
    added = part * other << _of_pass(plan.shifts, number)[..., None]
    total = jnp.where(number[..., None] == 1, 0, total) + added
    done = (number == len(plan.left))[..., None]
    whole, real = moved_right(no_sum, waiting[0]), moved_right(entering[1], waiting[1])
    whole = jnp.where(place == 0, 0, whole) + jnp.where(done, total, 0)
    value = jnp.ldexp(whole.astype(jnp.float32), exponent[..., None] + power)
    real = real + jnp.where(done & (place == group - 1), value, 0)
    busy = jnp.sum(jnp.any(added != 0, -1) & (number > 0), dtype=jnp.int32)
    return (moving, total, (whole, real), made), (made[1][:, -1], busy)

  ints, floats = jnp.zeros(held.shape, jnp.int32), jnp.zeros(held.shape)
  no_sum = ints[:, 0]
  flat = jnp.zeros((rows, cols), jnp.int32)
  moving = (jnp.zeros((rows, cols, 1), jnp.int32), flat, flat)
  state = moving, ints, (ints, floats), (ints, floats)
  _, (out, busy) = lax.scan(cycle, state, (feed, edge))
  return out[times + HOP * cols - 1, lane].reshape(m, -1), busy


def _of_pass(each: Any, number: jax.Array) -> jax.Array:
  """The entry of `each` [p] for pass numbers from 1; that of pass 1 for no pass."""
  return jnp.asarray(each)[jnp.maximum(number - 1, 0)]


def streamed(x: Groups, y: Groups, plan: Passes) -> tuple[jax.Array, jax.Array]:
  """[R, C] products of x [R, groups] and y [C, groups], drained; busy cells."""
  (rows, count, group), cols = x.mantissa.shape, y.mantissa.shape[0]
  steps = count * len(plan.left) + rows + cols - 2
  feeds = _enter(x, plan.left, steps, 1), _enter(y, plan.right, steps, 1)

  def cycle(state: Any, entering: Any) -> Any:
    left, right, total, out = state
    left = jax.tree.map(moved_right, entering[0], left)
    right = jax.tree.map(moved_down, entering[1], right)
    (part, exponent, number), (other, more, _) = left, right
    added = jnp.sum(part * other, axis=-1) << _of_pass(plan.shifts, number)
    total = jnp.where(number == 1, 0, total) + added
    value = jnp.ldexp(total.astype(jnp.float32), exponent + more)
    out = out + jnp.where(number == len(plan.left), value, 0)
    busy = jnp.sum((added != 0) & (number > 0), dtype=jnp.int32)
    return (left, right, total, out), busy

  cell = jnp.zeros((rows, cols), jnp.int32)
  operand = jnp.zeros((rows, cols, group), jnp.int32), cell, cell
  state = operand, operand, cell, jnp.zeros((rows, cols))
  (_, _, _, sums), busy = lax.scan(cycle, state, feeds)

  def drain(state: Any, _: None) -> Any:
    held, register = state
    return (moved_down(jnp.zeros_like(register), held), held[-1]), register

  _, out = lax.scan(drain, (sums, jnp.zeros(cols)), length=rows + 1)
  return out[:0:-1], jnp.concatenate([busy, jnp.zeros(rows + 1, jnp.int32)])
