"""Column combining: sparse columns of a matrix share one column of a smaller array.

  groups = group_columns(w, alpha=8, gamma=0.5)     which columns share one
  w = prune_conflicts(w, groups)                    one weight a row and group stays
  packed = pack(w, groups)                          [rows, groups], and an index each
  packed.values, packed.channel, gather(x, groups)  what the array is fed

Without pruning conflicts, gamma = 0, packing gains little: few columns of a random
matrix are disjoint. So conflicts are pruned, and the network is retrained in between.

Between layers, `permute_rows` lets an array produce the columns of a group of the next
layer side by side, so that no switch stands between the two.

Reference: Kung, McDanel, Zhang. "Packing Sparse Convolutional Neural Networks for
Efficient Systolic Array Implementations: Column Combining Under Joint Optimization",
ASPLOS 2019.
"""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from jaxcodesign.numerics.sparsity.column_groups import (
  Groups,
  Method,
  concrete,
  group_columns,
)
from jaxcodesign.numerics.sparsity.packed_columns import (
  PackedColumns,
  Tiles,
  conflict_mask,
  gather,
  pack,
  prune_conflicts,
  tiles,
  unpack,
)

__all__ = [
  "Groups",
  "Method",
  "PackedColumns",
  "Permuted",
  "Tiles",
  "conflict_mask",
  "gather",
  "group_columns",
  "pack",
  "permute_rows",
  "prune_conflicts",
  "tiles",
  "unpack",
]


class Permuted(NamedTuple):
  """A chain of layers with their rows in another order."""

  matrices: list[jax.Array]  # [rows, columns] each
  groups: list[Groups]  # of these
  orders: list[np.ndarray]  # [rows] each: the former row at each place


def permute_rows(matrices: Sequence[jax.Array], groups: Sequence[Groups]) -> Permuted:
  """Orders the rows of each layer by the groups of the next layer's columns.

  Rows that feed one group come to lie side by side, in the order of the groups; those
  that feed none come last. The rows of the last layer stay. Every layer keeps its
  groups, their order and their members', so its packed form has the same weights and
  indices, rows permuted, and the network computes the same function: bit for bit where
  products are summed group by group, as the array does, and in integers in any order.
  What else a layer has per row, a bias or a normalization, moves with it: b[order].

  Args:
    matrices: [rows, columns] of each layer; the rows of one, through functions of
      single values, are the columns of the next. May be traced.
    groups: Of the columns of each.

  Raises:
    TypeError: If `groups` are traced.
    ValueError: If there are not as many groups as matrices, or sizes do not chain.
  """
  if len(matrices) != len(groups):
    raise ValueError(f"{len(matrices)} matrices and {len(groups)} groups: one for each")
  orders = [_order(g) for g in groups]  # of the columns of each layer
  for i, (matrix, g) in enumerate(zip(matrices, groups)):
    if np.ndim(matrix) != 2 or matrix.shape[1] != g.columns:
      raise ValueError(
        f"matrix {i} has shape {np.shape(matrix)}, its groups {g.columns} columns"
      )
    if i and matrices[i - 1].shape[0] != g.columns:
      raise ValueError(
        f"matrix {i - 1} has {matrices[i - 1].shape[0]} rows, matrix {i} {g.columns} "
        "columns; only a chain can be permuted, kernels of one position"
      )
  columns = [np.arange(g.columns) for g in groups[:1]] + orders[1:]
  rows = orders[1:] + [np.arange(m.shape[0]) for m in matrices[-1:]]
  return Permuted(
    [m[r][:, c] for m, r, c in zip(matrices, rows, columns)],
    [_renamed(g, c) for g, c in zip(groups, columns)],
    rows,
  )


def _order(groups: Groups) -> np.ndarray:
  """int [columns]: the columns group by group, then those of no group."""
  members = concrete(groups.members, "groups")
  grouped = members[members >= 0]
  return np.append(grouped, np.setdiff1d(np.arange(groups.columns), grouped))


def _renamed(groups: Groups, order: np.ndarray) -> Groups:
  """The same groups once column `order[i]` has become column i."""
  names = np.append(np.argsort(order), -1).astype(np.int32)  # -1 stays -1
  return dataclasses.replace(groups, members=names[np.asarray(groups.members)])
