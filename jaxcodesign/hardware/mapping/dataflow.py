"""What a product moves: through the edges of the array, the buffers, and DRAM.

Edges, values per product [m, k] x [n, k] on R x C cells:

  dataflow  ifmap reads      weight reads     results written, partial sums read back
  os        m k ceil(n/C)    n k ceil(m/R)    m n, none
  ws        m k ceil(n/C)    n k              m n ceil(k/R), m n (ceil(k/R) - 1)
  is        m k              n k ceil(m/C)    m n ceil(k/R), m n (ceil(k/R) - 1)

With weights that are stored in fewer columns, see `stored`, k stands for those, but in
ifmap reads for the columns that are fetched: a combined column is as wide as it has
members.

Buffers: what the array reads was written before, each operand once when it arrives; a
finished result is read once when it leaves, in the accumulator's width.

DRAM:
  weights that fit their buffer all together stay there: one fetch for all `repeats`,
    and for all products that use the same one. Otherwise every execution of every
    product fetches them. A weight matrix that outgrows half of the
    buffer (the other half is being filled) is fetched in every pass over it, unless
    the other operand takes the repetition, whichever is less;
  activations that outgrow half of theirs go out to DRAM and come back, once for every
    pass over them; those that fit never leave the chip;
  partial sums go out and back between folds if those of one column of folds, all that
    wait at a time, outgrow half of the result buffer: folds go down the contraction
    first, across the results then.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcodesign.hardware.machines.spec import Accelerator
from jaxcodesign.numerics.smooth import ceil, exceeds
from jaxcodesign.programs.workload import Workload


class Traffic(NamedTuple):
  """Values through the edges of the array, per product [L], of one execution."""

  ifmap_reads: jax.Array
  weight_reads: jax.Array
  ofmap_writes: jax.Array
  ofmap_reads: jax.Array  # partial sums coming back to be continued


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of products as arrays [L]; the fields are those of `Gemm`."""

  batch: jax.Array
  m: jax.Array
  k: jax.Array
  n: jax.Array
  count: jax.Array
  lhs_elements: jax.Array
  rhs_elements: jax.Array
  out_elements: jax.Array
  weighted: jax.Array  # 1 where the right operand is a weight
  own: jax.Array  # share of the weight that no product before has used, on average
  fetched: jax.Array  # columns of the left operand that a pass reads; k, but if packed

  @property
  def runs(self) -> jax.Array:
    """Products [m, k] x [n, k]."""
    return self.batch * self.count

  @property
  def macs(self) -> jax.Array:
    """Multiplications."""
    return self.runs * self.m * self.k * self.n


class Operand(NamedTuple):
  """Width of an operand's values and terms a MAC must be ready for, [L]."""

  bits: jax.Array
  terms: jax.Array


def sizes(workload: Workload) -> Sizes:
  """Sizes of all products; element counts that a Gemm leaves at 0 are filled in."""
  used: dict[str, int] = {}
  for g in workload.gemms:
    used[g.rhs] = used.get(g.rhs, 0) + g.rhs_elements
  rows = [
    (
      g.batch,
      g.m,
      g.k,
      g.n,
      g.count,
      g.lhs_elements or g.batch * g.m * g.k,
      g.rhs_elements or g.batch * g.n * g.k * (1 if g.rhs else g.count),
      g.out_elements or g.batch * g.m * g.n,
      bool(g.rhs),
      min(1.0, g.leaf_elements / used[g.rhs]) if g.rhs and g.leaf_elements else 1.0,
    )
    for g in workload.gemms
  ]
  columns = [jnp.asarray(c, jnp.result_type(float)) for c in zip(*rows)]
  return Sizes(*columns, fetched=columns[2])


def traffic(a: Accelerator, s: Sizes) -> Traffic:
  """Values through the edges of the array, see the module's table."""
  up = lambda x, size: ceil(x / size, a.temperature)
  results, one = s.batch * s.m * s.n, jnp.ones_like(s.m)
  ifmap, weight, rounds = {
    "os": lambda: (up(s.n, a.cols), up(s.m, a.rows), one),
    "ws": lambda: (up(s.n, a.cols), one, up(s.k, a.rows)),
    "is": lambda: (one, up(s.m, a.cols), up(s.k, a.rows)),
  }[a.dataflow]()
  return Traffic(
    s.batch * s.m * s.fetched * ifmap,
    s.batch * s.n * s.k * weight,
    results * rounds,
    results * (rounds - 1),
  )


def bytes_moved(
  a: Accelerator, s: Sizes, left: Operand, right: Operand, repeats: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Bytes through the buffers, their energy, and bytes through DRAM, each [L]."""
  edge = traffic(a, s)
  wide = a.mac.accumulator_bytes
  result = s.out_elements * left.bits / 8
  weights, images, sums = _off_chip(a, s, edge, left, right, repeats)
  # Operands that stay on chip are written by the vector unit or the array all the same.
  filled = jnp.maximum(images, s.count * s.lhs_elements * left.bits / 8)
  placed = jnp.where(
    s.weighted > 0, weights, jnp.maximum(weights, s.rhs_elements * right.bits / 8)
  )
  moves = (
    (filled, a.ifmap.write_energy_j()),
    (s.count * edge.ifmap_reads * left.bits / 8, a.ifmap.read_energy_j()),
    (placed, a.weight.write_energy_j()),
    (s.count * edge.weight_reads * right.bits / 8, a.weight.read_energy_j()),
    (s.count * edge.ofmap_writes * wide, a.ofmap.write_energy_j()),
    (s.count * edge.ofmap_reads * wide, a.ofmap.read_energy_j()),
    (s.count * s.out_elements * wide, a.ofmap.read_energy_j()),
  )
  through = jnp.sum(jnp.stack([moved for moved, _ in moves]), axis=0)
  energy = jnp.sum(jnp.stack([moved * each for moved, each in moves]), axis=0)
  leaves = exceeds(result, a.ofmap.capacity_bytes / 2, a.temperature)
  return through, energy, weights + images + sums + s.count * result * leaves


def _off_chip(
  a: Accelerator,
  s: Sizes,
  edge: Traffic,
  left: Operand,
  right: Operand,
  repeats: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Bytes of right operands, left operands and partial sums through DRAM."""
  t = a.temperature
  image, matrix = s.lhs_elements * left.bits / 8, s.n * s.k * right.bits / 8
  once = s.rhs_elements * s.own * right.bits / 8
  # A right operand that is no weight is an activation: it may stay, but is never kept.
  stays = 1 - exceeds(jnp.sum(s.weighted * once), a.weight.capacity_bytes, t)
  large = exceeds(matrix, a.weight.capacity_bytes / 2, t)
  # It was made as a whole, all batches of it, before the first product uses it.
  left_chip = exceeds(s.batch * matrix, a.weight.capacity_bytes / 2, t)
  spills = exceeds(image, a.ifmap.capacity_bytes / 2, t)
  streamed = s.runs * matrix * jnp.where(s.weighted > 0, 1.0, left_chip)
  spilled = s.count * image * spills
  # What a further pass costs: nothing while the operand is on chip.
  passes = edge.weight_reads / (s.batch * s.n * s.k) - 1
  again = streamed * passes * large * (1 - stays * s.weighted)
  images_again = spilled * (edge.ifmap_reads / (s.batch * s.m * s.fetched) - 1)
  if a.dataflow == "os":
    # Either operand may be the one that is gone over again: the cheaper order.
    cheaper = again <= images_again
    again = jnp.where(cheaper, again, 0.0)
    images_again = jnp.where(cheaper, 0.0, images_again)
  kept = jnp.where(s.weighted > 0, stays, 0.0)
  weights = kept * once / repeats + (1 - kept) * streamed + again
  sums = s.batch * s.m * s.n * a.mac.accumulator_bytes
  rounds = edge.ofmap_reads / (s.batch * s.m * s.n)
  waiting = {"ws": s.m * jnp.minimum(s.n, a.cols), "is": s.n * jnp.minimum(s.m, a.cols)}
  live = waiting.get(a.dataflow, s.m * s.n) * a.mac.accumulator_bytes
  out = exceeds(live, a.ofmap.capacity_bytes / 2, t)
  return weights, spilled + images_again, s.count * 2 * sums * rounds * out
