"""Which columns of a sparse matrix share one column of an array: two groupers.

In a group of columns each row can keep one weight; every nonzero beyond the first of a
row is a *conflict*, to be pruned. A group is legal if it has at most alpha columns and
at most gamma conflicts per row on average. So a group of columns with t nonzeros in
all, of which u rows have at least one, has t - u conflicts.

Rows are sets of bits, 64 to a word: a union is an `or`, its size a count of bits.

Reference: Kung, McDanel, Zhang. "Packing Sparse Convolutional Neural Networks for
Efficient Systolic Array Implementations: Column Combining Under Joint Optimization",
ASPLOS 2019. The pair merge is that of the code the authors released.
"""

from collections.abc import Sequence
import math
from typing import Any, Literal, get_args

import jax
from jax.core import Tracer
import numpy as np

from jaxcodesign import tree

Method = Literal["dense_first", "pairs"]


@tree.pytree
class Groups:
  """Columns of a matrix in groups; a column is in one, or in none if it is empty.

  Attributes:
    members: Integers [groups, alpha]: the columns of each group, ascending, then -1.
    columns: Columns of the matrix.
  """

  members: jax.typing.ArrayLike
  columns: int = tree.static()

  def __post_init__(self):
    if not tree.is_concrete(self.members):
      return
    members = np.asarray(self.members)
    if members.ndim != 2 or members.shape[1] < 1 or members.dtype.kind not in "iu":
      raise ValueError(
        f"members are {members.dtype}{list(members.shape)}: integers [groups, alpha] "
        "are needed, alpha at least 1"
      )
    named, times = np.unique(members[members != -1], return_counts=True)
    wrong = named[(times > 1) | (named < 0) | (named >= self.columns)]
    if wrong.size:
      raise ValueError(
        f"column {wrong[0]} is in two groups or none of 0 ... {self.columns - 1}; pad "
        "members with -1"
      )

  @property
  def alpha(self) -> int:
    """Most columns a group may have."""
    return np.shape(self.members)[1]

  @property
  def count(self) -> int:
    """Groups, the columns of the packed matrix."""
    return np.shape(self.members)[0]

  def lists(self) -> list[list[int]]:
    """The columns of each group."""
    rows = concrete(self.members, "members").tolist()
    return [[column for column in row if column >= 0] for row in rows]


def group_columns(
  matrix: Any,
  *,
  alpha: int,
  gamma: float,
  method: Method = "dense_first",
  sections: int | None = None,
) -> Groups:
  """Groups the columns of a sparse matrix; a host algorithm on concrete values.

  "dense_first" takes columns in order of density, ties to the lower column. Each joins
  the legal group with which it covers most rows, or opens one where none is legal.

  "pairs" starts with a group for each column and merges the pair whose union covers
  most rows of all pairs that stay legal, until none does.

  Both break ties, which the paper leaves open, by fewest conflicts: they are what is
  pruned. Ties of ties go to the older group, or to the pair with the lowest first
  column, then the lowest second one.

  Args:
    matrix: [rows, columns], weights or a bool mask; what is not zero counts, NaN too.
    alpha: Most columns of a group, at least 1.
    gamma: Most conflicts of a group, per row on average: at most gamma * rows in all.
    method: "dense_first", as the paper tells, or "pairs", as the released code.
    sections: Columns of a section; groups stay within one. None: one section. The
      released code has 256.

  Returns:
    Groups that hold each column with a nonzero exactly once, and no empty column.

  Raises:
    TypeError: If `matrix` is traced.
    ValueError: If it is no matrix, or alpha, gamma, method or sections are not legal.
  """
  nonzero = concrete(matrix, "matrix") != 0
  _check(nonzero, alpha, gamma, method, sections)
  rows, columns = nonzero.shape
  width = columns if sections is None else sections
  group = _dense_first if method == "dense_first" else _pairs
  groups = []
  for start in range(0, columns, max(width, 1)):
    sets = _words(nonzero[:, start : start + width])
    found = group(sets, alpha, math.floor(gamma * rows))
    groups += [[start + c for c in members] for members in found]
  return _groups(groups, alpha, columns)


def _check(
  nonzero: np.ndarray, alpha: int, gamma: float, method: str, sections: int | None
) -> None:
  if nonzero.ndim != 2:
    raise ValueError(
      f"matrix has shape {nonzero.shape}: [rows, columns] is needed; unfold the kernel "
      "of a convolution first"
    )
  if alpha < 1:
    raise ValueError(f"alpha={alpha}: a group has at least 1 column")
  if not 0 <= gamma < math.inf:
    raise ValueError(f"gamma={gamma}: conflicts per row, 0 (none) or more")
  if method not in get_args(Method):
    raise ValueError(f"method={method!r} is none of {', '.join(get_args(Method))}")
  if sections is not None and sections < 1:
    raise ValueError(f"sections={sections}: a section has at least 1 column, or None")


def _groups(groups: Sequence[Sequence[int]], alpha: int, columns: int) -> Groups:
  """`Groups` of lists of columns, at most `alpha` in each."""
  members = np.full((len(groups), alpha), -1, np.int32)
  for row, group in zip(members, groups):
    row[: len(group)] = sorted(group)
  return Groups(members, columns)


def concrete(x: Any, what: str) -> np.ndarray:
  """`x` as a numpy array.

  Raises:
    TypeError: If it is traced.
  """
  if isinstance(x, Tracer):
    raise TypeError(
      f"{what} is traced: grouping and packing read values, on the host; call them "
      "outside jit, and pass the groups in"
    )
  return np.asarray(x)


def _words(nonzero: np.ndarray) -> np.ndarray:
  """uint64 [columns, words]: the set of nonzero rows of each column."""
  packed = np.packbits(nonzero.T, axis=1)
  wide = np.zeros((packed.shape[0], -(-packed.shape[1] // 8) * 8), np.uint8)
  wide[:, : packed.shape[1]] = packed
  return wide.view(np.uint64)


def _sizes(sets: np.ndarray) -> np.ndarray:
  """int64 [...]: rows in each of the sets [..., words]."""
  return np.bitwise_count(sets).sum(axis=-1, dtype=np.uint32).astype(np.int64)


def _scores(covered: np.ndarray, total: np.ndarray, limit: int) -> np.ndarray:
  """int64 [...]: larger for more rows, then for fewer conflicts; -1 if not legal."""
  conflicts = total - covered
  scores = covered * (limit + 1) + limit - conflicts
  return np.where(conflicts <= limit, scores, -1)


def _dense_first(sets: np.ndarray, alpha: int, limit: int) -> list[list[int]]:
  sizes = _sizes(sets)
  order = np.argsort(-sizes, kind="stable")
  unions = np.zeros_like(sets)  # of the groups, in the order of their opening
  totals = np.zeros(len(sets), np.int64)
  groups: list[list[int]] = []
  open_groups = np.zeros(0, np.int64)
  for column in order[: np.count_nonzero(sizes)]:
    covered = _sizes(unions[open_groups] | sets[column])
    scores = _scores(covered, totals[open_groups] + sizes[column], limit)
    if scores.size and scores.max() >= 0:
      into = open_groups[scores.argmax()]
    else:
      into = len(groups)
      groups.append([])
      open_groups = np.append(open_groups, into)
    groups[into].append(int(column))
    unions[into] |= sets[column]
    totals[into] += sizes[column]
    if len(groups[into]) == alpha:
      open_groups = open_groups[open_groups != into]
  return groups


def _pairs(sets: np.ndarray, alpha: int, limit: int) -> list[list[int]]:
  """Merges; a group is called by its lowest column.

  Each pair of groups is among those that one of the two has scored, and `best` is the
  highest of these scores, less what merges have changed since: such pairs the merged
  group has scored anew. So `best` bounds from above, and is exact while its `partner`
  is as it was; if not, it is renewed once it comes to the top. A merge renews few.
  """
  alive = np.flatnonzero(_sizes(sets))
  if not alive.size:
    return []
  sets = sets[alive]
  total = _sizes(sets)
  size = np.ones(len(sets), np.int64)  # 0 once it is part of another
  groups = [[int(column)] for column in alive]
  room = np.empty_like(sets)
  best, partner, seen = (np.full(len(sets), -1, np.int64) for _ in range(3))

  def renew(a: int, start: int = 0) -> None:
    """Scores a with all groups from `start` on; ties go to the first."""
    fits = (size[start:] > 0) & (size[start:] <= alpha - size[a])
    near = start + np.flatnonzero(fits)
    near = near[near != a]
    # Into the same memory each time: touching fresh pages takes longer than the union.
    union = np.take(sets, near, axis=0, out=room[: near.size], mode="clip")
    union |= sets[a]
    covered = _sizes(union)
    scores = _scores(covered, total[near] + total[a], limit)
    best[a] = scores.max(initial=-1)
    if best[a] >= 0:
      partner[a] = near[scores.argmax()]
      seen[a] = size[partner[a]]

  for a in range(len(sets)):
    renew(a, a)
  while (top := best.max()) >= 0:
    rows = np.flatnonzero(best == top)
    stale = rows[size[partner[rows]] != seen[rows]]
    for row in stale:
      renew(row)
    if stale.size:
      continue
    a, b = min(sorted((int(row), int(partner[row]))) for row in rows)
    groups[a] += groups[b]
    sets[a] |= sets[b]
    total[a] += total[b]
    size[a] += size[b]
    size[b], groups[b], best[b] = 0, [], -1
    renew(a)
  return [group for group in groups if group]
