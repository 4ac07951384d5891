"""Which cell of a systolic array does what in which cycle of a fold, in closed form.

A fold of `systolic` takes each cell through at most three spans of cycles: while its
weight passes and arrives from above (ws, is), while the wavefront of operands crosses
it, and while results pass it on their way down (os, "rtl"). Each span is known from the
cell's place alone, so a whole fold is a few arrays [rows, cols] however long it takes.
"""

from typing import NamedTuple

import numpy as np

from jaxcodesign.hardware.machines.spec import Accounting, Dataflow
from jaxcodesign.hardware.simulators import systolic
from jaxcodesign.hardware.simulators.folding import along, fill

IDLE, LOADING, MULTIPLYING, DRAINING = range(4)
NAMES = ("idle", "loads its operand", "multiplies", "drains a result")


class Span(NamedTuple):
  """Cycles first .. end - 1 of each cell, int [rows, cols]; end <= first: none."""

  first: np.ndarray
  end: np.ndarray

  def holds(self, cycle: int) -> np.ndarray:
    """The cells that are in the span: bool [rows, cols]."""
    return (self.first <= cycle) & (cycle < self.end)


class Fold(NamedTuple):
  """One fold of a product.

  Attributes:
    spans: Of LOADING, MULTIPLYING and DRAINING, in this order.
    cycles: Of the fold.
    dataflow: What stays in the cells.
  """

  spans: tuple[Span, Span, Span]
  cycles: int
  dataflow: Dataflow

  def states(self, cycle: int) -> np.ndarray:
    """What each cell does: int8 [rows, cols] of IDLE .. DRAINING."""
    found = np.full(self.spans[0].first.shape, IDLE, np.int8)
    for state, span in enumerate(self.spans, start=LOADING):
      found[span.holds(cycle)] = state
    return found

  def cells(self) -> np.ndarray:
    """How many cells are in each state: int [4, cycles], a row for each of NAMES."""
    total = self.spans[0].first.size
    used = []
    for first, end in self.spans:
      some = end > first
      steps = np.bincount(first[some], minlength=self.cycles + 1)
      steps -= np.bincount(end[some], minlength=self.cycles + 1)
      used.append(np.cumsum(steps)[: self.cycles])
    return np.stack([total - sum(used), *used])


def first_fold(
  m: int,
  k: int,
  n: int,
  *,
  rows: int,
  cols: int,
  dataflow: Dataflow,
  accounting: Accounting = "rtl",
) -> Fold:
  """The first fold of a @ b.T on an array, the largest of the product's folds.

  Args:
    m: Rows of a [m, k].
    k: Contraction.
    n: Rows of b [n, k].
    rows: Cells a column.
    cols: Cells a row.
    dataflow: As in `systolic.simulate`.
    accounting: As in `systolic.simulate`; its trace has as many busy cells in each
      cycle, reads weights into the first row where LOADING says so, and writes a result
      the cycle after the last row is DRAINING.

  Raises:
    ValueError: As `systolic.cycles`.
  """
  systolic.cycles(m, k, n, rows, cols, dataflow, accounting)  # refuses what it refuses
  high, wide, length = along(dataflow, m, k, n)
  high, wide = min(high, rows), min(wide, cols)
  cycles = length + fill(dataflow, accounting, rows, cols)
  row, col = np.mgrid[:rows, :cols]
  used, below = (row < high) & (col < wide), col < wide
  never = Span(np.zeros_like(row), np.zeros_like(row))
  if dataflow == "os":
    multiplying = _span(used, row + col, row + col + length)
    if accounting == "scalesim":
      return Fold((never, multiplying, never), cycles, dataflow)
    # Sums fall a row a cycle; rows below the used ones see them pass.
    last = length + rows + cols - 2
    draining = _span(below, last + np.maximum(0, row - high + 1), last + row + 1)
    return Fold((never, multiplying, draining), cycles, dataflow)
  start = rows + (1 if accounting == "scalesim" else 2) * row + col
  loading = _span(used, rows - high + row, rows)
  multiplying = _span(used, start, start + length)
  return Fold((loading, multiplying, never), cycles, dataflow)


def _span(cells: np.ndarray, first: np.ndarray, end: np.ndarray | int) -> Span:
  """The span of `cells`, empty for all others."""
  return Span(np.where(cells, first, 0), np.where(cells, end, 0))
