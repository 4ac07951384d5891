"""The packed form of a column-combined matrix, which an array of MX cells executes.

After `prune_conflicts` a row has at most one nonzero in each group of columns. So the
group is stored as one column: a weight a row, and which member it belongs to, in
ceil(log2 alpha) bits. A cell sees the inputs of all members, `gather`, and multiplies
the one that its index selects:

  x @ matrix.T == sum over g of values[:, g] * gather(x)[..., g, channel[:, g]]

Reference: Kung, McDanel, Zhang, ASPLOS 2019, as in `column_groups`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.numerics.formats import exponents
from jaxcodesign.numerics.sparsity import patterns
from jaxcodesign.numerics.sparsity.column_groups import Groups, concrete


@tree.pytree
class PackedColumns:
  """A matrix [rows, columns] in packed form.

  Attributes:
    values: [rows, groups] weights, zero where a row has none in a group.
    index: uint8 [rows, ceil(groups * index_bits / 8)]: the member each weight belongs
      to, `index_bits` each, the first lowest.
    groups: The members.
  """

  values: jax.Array
  index: jax.Array
  groups: Groups

  @property
  def index_bits(self) -> int:
    """Bits of one index, ceil(log2 alpha)."""
    return (self.groups.alpha - 1).bit_length()

  @property
  def nbytes(self) -> int:
    """Bytes of weights and indices. The groups are wires, not memory."""
    return sum(a.size * a.dtype.itemsize for a in (self.values, self.index))

  @property
  def channel(self) -> jax.Array:
    """int32 [rows, groups] in 0 ... alpha - 1: the indices, one to a word."""
    bits = self.index_bits
    rows, count = self.values.shape
    if not bits:
      return jnp.zeros((rows, count), jnp.int32)
    flat = jnp.unpackbits(self.index, axis=1, count=count * bits, bitorder="little")
    planes = flat.reshape(rows, count, bits).astype(jnp.int32)
    shifts = jax.lax.broadcasted_iota(jnp.int32, planes.shape, 2)
    return jnp.sum(planes << shifts, axis=2)

  def utilization(self) -> jax.Array:
    """Part of the packed weights that is not zero: cells of an array with work."""
    return jnp.mean((self.values != 0).astype(jnp.float32))


class Tiles(NamedTuple):
  """A packed matrix in parts of the size of an array, padded with zero weights."""

  values: jax.Array  # [down, across, rows, cols]
  channel: jax.Array  # int32, the same shape


@jax.jit
def conflict_mask(matrix: jax.typing.ArrayLike, groups: Groups) -> jax.Array:
  """bool [..., columns]: the largest magnitude of each row in each group.

  Exactly one of each group, so the mask of a masked matrix is the same mask. Ties go to
  the lower column, a magnitude below 2^-126 counts as zero, and a NaN as the largest:
  it must show. A column in no group stays.

  Args:
    matrix: [..., columns] weights, or scores of them; may be traced.
    groups: Of these columns.

  Raises:
    ValueError: If `groups` are those of another number of columns.
  """
  scores = patterns.magnitude(matrix)
  if jnp.issubdtype(scores.dtype, jnp.floating):
    scores = patterns.wide(scores)
    scores = exponents.flush(scores) if scores.dtype == jnp.float32 else scores
  seen = gather(scores, groups)
  winner = jnp.argmax(seen, axis=-1)
  return _to_columns(winner, jnp.ones(winner.shape, bool), groups, fill=True)


def prune_conflicts(matrix: jax.typing.ArrayLike, groups: Groups) -> jax.Array:
  """`matrix` [..., columns] with all but the `conflict_mask` set to zero."""
  matrix = jnp.asarray(matrix)
  kept = conflict_mask(jax.lax.stop_gradient(matrix), groups)
  return jnp.where(kept, matrix, jnp.zeros((), matrix.dtype))


def pack(matrix: Any, groups: Groups) -> PackedColumns:
  """Packs a matrix without conflicts, exactly; on the host.

  Args:
    matrix: [rows, columns], at most one nonzero a row and group. The sign of a zero is
      not kept.
    groups: Of these columns.

  Raises:
    TypeError: If `matrix` is traced, or of a type that jax would narrow.
    ValueError: If it has conflicts, a nonzero in no group, or another shape.
  """
  dense = concrete(matrix, "matrix")
  if dense.ndim != 2:
    raise ValueError(f"matrix has shape {dense.shape}: [rows, columns] is needed")
  _check_columns(dense.shape, groups)
  if jax.dtypes.canonicalize_dtype(dense.dtype) != dense.dtype:
    raise TypeError(
      f"matrix is {dense.dtype}, which jax narrows; cast it first, or enable x64"
    )
  members = concrete(groups.members, "groups")
  outside = np.setdiff1d(np.flatnonzero((dense != 0).any(axis=0)), members)
  if outside.size:
    raise ValueError(
      f"column {outside[0]} has nonzeros and is in no group; group this very matrix, "
      "or the mask that it was trained under"
    )
  seen = np.pad(dense, ((0, 0), (0, 1)))[:, members]  # -1 is the column of zeros
  crowded = np.argwhere(np.count_nonzero(seen, axis=-1) > 1)
  if crowded.size:
    row, group = crowded[0]
    raise ValueError(
      f"{len(crowded)} conflicts, the first in row {row} of group {group}, columns "
      f"{groups.lists()[group]}; prune_conflicts first"
    )
  channel = np.argmax(seen != 0, axis=-1)
  values = np.take_along_axis(seen, channel[..., None], axis=-1)[..., 0]
  bits = (groups.alpha - 1).bit_length()
  planes = (channel[..., None] >> np.arange(bits) & 1).astype(np.uint8)
  flat = planes.reshape(len(dense), groups.count * bits)
  index = np.packbits(flat, axis=1, bitorder="little")
  return PackedColumns(jnp.asarray(values), jnp.asarray(index), groups)


@jax.jit
def unpack(packed: PackedColumns) -> jax.Array:
  """The matrix [rows, columns] that `pack` packed."""
  return _to_columns(packed.channel, packed.values, packed.groups, fill=0)


@jax.jit
def gather(x: jax.typing.ArrayLike, groups: Groups) -> jax.Array:
  """`x` [..., columns] as inputs [..., groups, alpha] of combined columns.

  Zero where a group has fewer members. What `systolic.simulate_packed` and
  `bitserial.simulate` take as left operand.

  Raises:
    ValueError: If `groups` are those of another number of columns.
  """
  x = jnp.asarray(x)
  _check_columns(x.shape, groups)
  members = jnp.asarray(groups.members)
  return _padded(x, 0)[..., members]  # -1 is the column of zeros


def tiles(packed: PackedColumns, rows: int, cols: int) -> Tiles:
  """Cuts the packed matrix into parts of `rows` rows and `cols` combined columns.

  Sums of tiles side by side add up; each is the product of an array of their size.

  Returns:
    ceil(packed rows / rows) down, ceil(groups / cols) across.

  Raises:
    ValueError: If a size is below 1.
  """
  if rows < 1 or cols < 1:
    raise ValueError(f"tiles of {rows} x {cols}: at least 1 x 1 is needed")
  high, wide = packed.values.shape
  down, across = math.ceil(high / rows), math.ceil(wide / cols)

  def cut(x: jax.Array) -> jax.Array:
    x = jnp.pad(x, ((0, down * rows - high), (0, across * cols - wide)))
    return x.reshape(down, rows, across, cols).swapaxes(1, 2)

  return Tiles(cut(packed.values), cut(packed.channel))


def _to_columns(
  channel: jax.Array, values: jax.Array, groups: Groups, *, fill: float
) -> jax.Array:
  """[..., columns]: each of `values` [..., groups] at the member its channel names.

  Zero at the other members, `fill` in columns of no group.
  """
  slots = groups.count * groups.alpha
  members = jnp.asarray(groups.members).reshape(-1)
  inside = jnp.where(members < 0, groups.columns, members)  # out of bounds: dropped
  place = jnp.full(groups.columns, -1, jnp.int32)
  place = place.at[inside].set(jnp.arange(slots, dtype=jnp.int32), mode="drop")
  shape = (*channel.shape, groups.alpha)
  chosen = channel[..., None] == jax.lax.broadcasted_iota(
    channel.dtype, shape, channel.ndim
  )
  spread = jnp.where(chosen, values[..., None], jnp.zeros((), values.dtype))
  flat = spread.reshape(*channel.shape[:-1], slots)
  return _padded(flat, fill)[..., place]


def _padded(x: jax.Array, fill: float) -> jax.Array:
  """`x` [..., n] and one more value, which the index -1 finds."""
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)], constant_values=fill)


def _check_columns(shape: tuple[int, ...], groups: Groups) -> None:
  if not shape or shape[-1] != groups.columns:
    raise ValueError(
      f"shape {shape} does not end in the {groups.columns} columns that are grouped"
    )
