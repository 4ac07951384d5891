"""A product cut into tiles: the loops around them, and what a tile moves.

[m, k] x [n, k] is computed tile by tile. Three loops run over the tiles, innermost the
last letter of the order; tiles at an edge have their real sizes. A tile stays in its
buffer while its indices stay the same, so that the order decides how often DRAM is
passed over (a loop over one tile does not run):

  operand   indices   passes
  ifmap     m, k      tiles of n if m or k runs inside n, else one
  weight    n, k      tiles of m if n or k runs inside m, else one
  sums      m, n      tiles of k if m or n runs inside k, else one: after each pass but
                      the last they leave in the accumulator's width, and come back

An operand that fits its whole buffer stays there: one pass in any order. Otherwise a
tile must fit one half, as the other half is being filled or emptied. Finished results
leave once, in the width of an activation. Between buffer and array a tile moves what
`dataflow.traffic` says, sums of all but the first tile of k being read back as well.

Nothing is kept from one product to the next, and the ifmap is the matrix [m, k]: the
overlap of a convolution's windows is not exploited. Operands have the native width of
the cell.
"""

import dataclasses
import itertools
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.hardware.machines.spec import Accelerator
from jaxcodesign.hardware.mapping import dataflow
from jaxcodesign.hardware.mapping.fold_cycles import fold_cycles
from jaxcodesign.numerics.smooth import ceil, exceeds

Leaf = jax.typing.ArrayLike
Order = Literal["mkn", "mnk", "kmn", "knm", "nmk", "nkm"]
ORDERS: tuple[Order, ...] = get_args(Order)

BUFFERS = ("ifmap", "weight", "ofmap")
INDICES = ((0, 1), (2, 1), (0, 2))  # of each buffer's tiles, in (m, k, n)
REUSED = (2, 0, 1)  # the loop that leaves each buffer's tile as it is


@tree.pytree
class Mapping:
  """How a product is cut, and in which order its tiles come.

  Attributes:
    tile_m: Rows of the left operand in a tile. Real numbers are for the relaxed model;
      a tile larger than the product is the whole product.
    tile_k: Likewise, of the contraction.
    tile_n: Likewise, rows of the right operand.
    order: Loops over tiles, outermost first.

  Raises:
    ValueError: When made with an order that does not exist, or a tile that is known
      and below 1.
  """

  tile_m: Leaf
  tile_k: Leaf
  tile_n: Leaf
  order: Order = tree.static(default="mnk")

  def __post_init__(self):
    if self.order not in ORDERS:
      raise ValueError(f"Mapping.order={self.order!r} is none of {', '.join(ORDERS)}")
    for name, tile in tree.named_leaves(self).items():
      if tree.is_concrete(tile) and not np.all(
        np.isfinite(np.asarray(tile)) & (np.asarray(tile) >= 1)
      ):
        raise ValueError(f"Mapping.{name}={tile}: a tile is at least 1 and finite")


class Nest(NamedTuple):
  """A product and its loops as arrays, in the order (m, k, n)."""

  sizes: Any  # [3]
  tiles: Any  # [3]
  depth: Any  # [3] place of each loop, 0 outermost


class Moved(NamedTuple):
  """Bytes that a tile or a product moves, each a scalar."""

  ifmap_in: jax.Array  # from DRAM into the buffer
  weight_in: jax.Array
  sums_in: jax.Array
  sums_out: jax.Array  # from the buffer to DRAM
  results_out: jax.Array
  ifmap_read: jax.Array  # from the buffer into the array
  weight_read: jax.Array
  ofmap_read: jax.Array  # sums to continue, sums and results that leave
  ofmap_written: jax.Array  # sums from the array, sums that come back

  @property
  def dram_bytes(self) -> jax.Array:
    """To and from DRAM."""
    return sum(self[1:5], self[0])

  @property
  def sram_bytes(self) -> jax.Array:
    """Into and out of the three buffers."""
    return sum(self[5:], self.ifmap_in + self.weight_in)


def nest(m: Any, k: Any, n: Any, mapping: Mapping, dtype: Any = None) -> Nest:
  """The loops of `mapping` around [m, k] x [n, k]."""
  dtype = dtype or jnp.result_type(float)
  stack = lambda *xs: jnp.stack([jnp.asarray(x, dtype) for x in xs])
  depth = [mapping.order.index(letter) for letter in "mkn"]
  return Nest(
    stack(m, k, n),
    stack(mapping.tile_m, mapping.tile_k, mapping.tile_n),
    jnp.array(depth, jnp.int32),
  )


def numbers(a: Accelerator) -> Accelerator:
  """`a` with floating-point leaves; a temperature that is known stays known."""
  wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), a)
  return dataclasses.replace(wide, temperature=a.temperature)


def widths(a: Accelerator) -> jax.Array:
  """[3] bytes of a value in each buffer."""
  mac = a.mac
  return jnp.stack(
    [mac.activation_bits / 8, mac.weight_bits / 8, mac.accumulator_bytes]
  )


def capacities(a: Accelerator) -> jax.Array:
  """[3] bytes of each buffer, both halves."""
  return jnp.stack([getattr(a, name).capacity_bytes for name in BUFFERS])


def rate(a: Accelerator) -> jax.Array:
  """Bytes that DRAM moves in a cycle of the array."""
  return jnp.divide(a.dram.bandwidth_bytes_s, a.clock_hz)


def areas(extent: jax.Array) -> jax.Array:
  """[..., 3] values that each buffer holds of extents [..., 3] in (m, k, n)."""
  return jnp.stack([extent[..., i] * extent[..., j] for i, j in INDICES], axis=-1)


def stays(whole: Nest, a: Accelerator) -> jax.Array:
  """[3] 1 where all of an operand fits its buffer, else 0; between them when hot."""
  need = areas(whole.sizes.astype(jnp.result_type(float))) * widths(a)
  return 1 - exceeds(need, capacities(a), a.temperature)


def fits(whole: Nest, a: Accelerator) -> jax.Array:
  """[3] whether a tile fits half of its buffer, or the whole operand the buffer."""
  tile = jnp.minimum(whole.tiles, whole.sizes).astype(jnp.result_type(float))
  small = areas(tile) * widths(a) <= capacities(a) / 2
  hard = dataclasses.replace(a, temperature=0.0)
  return small | (stays(whole, hard) > 0)


def at_edges(extent: jax.Array, a: Accelerator) -> dataflow.Traffic:
  """Values between buffers and array, of tiles of `extent` [..., 3] by themselves."""
  m, k, n = extent[..., 0], extent[..., 1], extent[..., 2]
  one = jnp.ones_like(m)
  sizes = dataflow.Sizes(one, m, k, n, one, m * k, n * k, m * n, one, one, k)
  return dataflow.traffic(a, sizes)


def totals(loops: Nest, a: Accelerator, step: Leaf) -> tuple[jax.Array, Moved]:
  """Cycles of the array and bytes of the whole product, in closed form.

  Args:
    loops: Of floats. Tiles may be real numbers if the temperature of `a` is above 0.
    a: From `numbers`.
    step: Cycles of a multiply-accumulate.
  """
  counts, full, edge = _cut(loops, a.temperature)
  # All tiles have one of 8 shapes: full or last, in each of the three dimensions.
  last = jnp.array(list(itertools.product((False, True), repeat=3)))  # [8, 3]
  extent = jnp.where(last, edge[None], full[None])
  many = jnp.prod(jnp.where(last, 1.0, (counts - 1)[None]), axis=-1)  # [8]
  m, k, n = extent.T
  compute = jnp.sum(many * fold_cycles(a, m, k, n, step))
  edges = dataflow.Traffic(*(jnp.sum(many * x) for x in at_edges(extent, a)))
  volume = areas(loops.sizes) * widths(a)  # [3] bytes of each operand, sums wide
  again = (_passes(loops, counts, a.temperature) - 1) * (1 - stays(loops, a))
  act, weight, wide = widths(a)
  spilled = volume[2] * again[2]
  return compute, Moved(
    ifmap_in=volume[0] * (1 + again[0]),
    weight_in=volume[1] * (1 + again[1]),
    sums_in=spilled,
    sums_out=spilled,
    results_out=loops.sizes[0] * loops.sizes[2] * act,
    ifmap_read=edges.ifmap_reads * act,
    weight_read=edges.weight_reads * weight,
    ofmap_read=edges.ofmap_reads * wide + volume[2] * counts[1] + spilled,
    ofmap_written=edges.ofmap_writes * wide + spilled,
  )


def _cut(loops: Nest, temperature: Leaf) -> tuple[jax.Array, jax.Array, jax.Array]:
  """[3] numbers of tiles, sizes of a full tile, sizes of the last one."""
  counts = ceil(loops.sizes / loops.tiles, temperature)
  edge = loops.sizes - (counts - 1) * loops.tiles
  # A hot ceiling may leave nothing to the last tile: there is always some of it.
  return counts, jnp.minimum(loops.tiles, loops.sizes), jnp.maximum(edge, 1e-3)


def _passes(loops: Nest, counts: jax.Array, temperature: Leaf) -> jax.Array:
  """[3] times that DRAM is passed over for each operand if none of it stays."""
  runs = exceeds(counts, 1.5, temperature)
  passes = []
  for outer, indices in zip(REUSED, INDICES):
    inside = [
      jnp.where(loops.depth[i] > loops.depth[outer], runs[i], 0) for i in indices
    ]
    any_inside = 1 - (1 - inside[0]) * (1 - inside[1])
    passes.append(1 + (counts[outer] - 1) * any_inside)
  return jnp.stack(passes)


def bound_cycles(
  loops: Nest,
  a: Accelerator,
  step: Leaf,
  latency_s: Leaf,
  compute: jax.Array,
  moved: Moved,
) -> jax.Array:
  """[3] cycles that no schedule of the memory simulator beats, from `totals`.

  The array waits for its first tiles and the last result leaves after it; the channel
  moves all bytes; the last tile is computed and its result leaves after all loads.
  """
  channel = rate(a)
  _, full, edge = _cut(loops, a.temperature)
  first = areas(full) * widths(a)
  leave = edge[0] * edge[2] * widths(a)[0] / channel
  fetched = (moved.ifmap_in + moved.weight_in + moved.sums_in) / channel
  begin = (first[0] + first[1]) / channel + latency_s * a.clock_hz
  tail = fold_cycles(a, edge[0], edge[1], edge[2], step)
  return jnp.stack(
    [begin + compute + leave, moved.dram_bytes / channel, fetched + tail + leave]
  )


def energy_j(
  sizes: jax.Array, a: Accelerator, step: Leaf, moved: Moved, time_s: jax.Array
) -> jax.Array:
  """Joules of a product of `sizes` [3]: cells, buffers, DRAM, leakage, as in `cost`."""
  buffers = (
    (moved.ifmap_in, a.ifmap.write_energy_j()),
    (moved.ifmap_read, a.ifmap.read_energy_j()),
    (moved.weight_in, a.weight.write_energy_j()),
    (moved.weight_read, a.weight.read_energy_j()),
    (moved.ofmap_written, a.ofmap.write_energy_j()),
    (moved.ofmap_read, a.ofmap.read_energy_j()),
  )
  macs, results = jnp.prod(sizes), sizes[0] * sizes[2]
  idle = a.rows * a.cols * time_s * a.clock_hz - macs * step
  cells = (
    macs * (step * a.mac.energy_j + a.mac.group_j)
    + results * a.mac.output_j
    + idle * a.mac.idle_j
  )
  sram = jnp.sum(jnp.stack([bytes_ * each for bytes_, each in buffers]))
  return cells + sram + moved.dram_bytes * a.dram.access_j + time_s * a.leakage_w()


def options(
  a: Accelerator, cycles_per_mac: Leaf | None, latency_s: Leaf
) -> tuple[jax.Array, jax.Array]:
  """Cycles of a multiply-accumulate and seconds of latency, checked, as arrays.

  Raises:
    ValueError: If the cycles of a serial cell are not given, a cell sums several
      products in a step, or a number is known and out of range.
  """
  if a.mac.lanes != 1:
    raise ValueError(
      f"a cell of {a.mac.lanes} lanes is not simulated here: `cost.evaluate` prices it"
    )
  if cycles_per_mac is None:
    if a.mac.kind.endswith("serial"):
      raise ValueError(
        f"the cycles of a {a.mac.kind} cell depend on its operands: pass "
        "cycles_per_mac (bits of an activation; pairs of terms over the group)"
      )
    cycles_per_mac = 1.0
  if tree.is_concrete(cycles_per_mac) and not np.all(np.asarray(cycles_per_mac) > 0):
    raise ValueError(f"cycles_per_mac={cycles_per_mac} must be positive")
  if tree.is_concrete(latency_s) and not np.all(np.asarray(latency_s) >= 0):
    raise ValueError(f"latency_s={latency_s} must not be negative")
  number = lambda x: jnp.asarray(x, jnp.result_type(float))
  return number(cycles_per_mac), number(latency_s)


def check_sizes(m: int, k: int, n: int) -> None:
  """Raises a ValueError unless the sizes of a product are integers of at least 1."""
  for name, size in (("m", m), ("k", k), ("n", n)):
    if size != int(size) or size < 1:
      raise ValueError(f"{name}={size}: a size is an integer of at least 1")


def count(m: int, k: int, n: int, mapping: Mapping) -> int:
  """Tiles of a legal mapping, one by one.

  Raises:
    ValueError: If an int32 cannot count them: nobody would wait for them either.
  """
  cut = zip((m, k, n), jax.tree.leaves(mapping))
  found = math.prod(-(-size // int(tile)) for size, tile in cut)
  if found >= 2**31:
    raise ValueError(f"{found:,} tiles are too many to simulate: use larger tiles")
  return found


def check(m: int, k: int, n: int, a: Accelerator, mapping: Mapping) -> None:
  """Refuses a mapping that is not legal, as far as numbers are known.

  Raises:
    ValueError: If a size or a tile is no known integer of at least 1, or a tile fits
      neither half of its buffer nor the whole operand the buffer.
  """
  check_sizes(m, k, n)
  for name, tile in tree.named_leaves(mapping).items():
    if not tree.is_concrete(tile) or np.ndim(tile) or tile != int(tile):
      raise ValueError(
        f"Mapping.{name}={tile}: a tile that is simulated is one known integer; "
        "`mapping.evaluate` prices tiles that are real or traced"
      )
  whole = (m, k, n)
  tiles = [min(int(x), size) for x, size in zip(jax.tree.leaves(mapping), whole)]
  wide = (a.mac.activation_bits, a.mac.weight_bits, a.mac.accumulator_bytes)
  for name, (i, j), width in zip(BUFFERS, INDICES, wide):
    capacity = getattr(a, name).capacity_bytes
    if not (tree.is_concrete(capacity) and tree.is_concrete(width)):
      continue
    each = np.asarray(width) / (1 if name == "ofmap" else 8)
    need, all_of_it = each * tiles[i] * tiles[j], each * whole[i] * whole[j]
    if need > capacity / 2 and all_of_it > capacity:
      raise ValueError(
        f"the {name} buffer is too small: a tile needs {need:g} bytes, and half of its "
        f"{capacity:g} bytes is {capacity / 2:g}; make tile_{'mkn'[i]} or "
        f"tile_{'mkn'[j]} smaller, or Accelerator.{name} larger"
      )
