"""The cycle-level array beside the closed forms, product by product, tile by tile.

`systolic.simulate` runs random int8 operands through every cell; what it says must be
what the closed forms say:

  product                    a @ b.T exactly, in float64, which holds every sum of int8
  cycles                     `systolic.cycles`
  reads, writes              `dataflow.traffic`
  busy cells, utilization    m k n, and m k n over cycles and cells

A tile is what an array finishes before it goes on, the contraction k whole: results
[R, C] in os, [m, C] in ws, [C, n] in is. A product is as many tiles side by side, of at
most four shapes: full ones, and those at the ends of rows and columns.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import itertools
from typing import Literal, NamedTuple

import jax
import numpy as np

from jaxcodesign.hardware.machines.spec import Accelerator
from jaxcodesign.hardware.mapping import dataflow
from jaxcodesign.hardware.simulators import systolic
from jaxcodesign.programs.workload import Gemm, Workload

Tiles = Literal["whole", "all", "distinct"]
# From here on a product is no longer simulated at once: about a second on one core.
WHOLE_CELL_CYCLES = 10**9


class Mismatch(ValueError):
  """Simulator and closed form differ; the message says at which layer and tile."""


class Counts(NamedTuple):
  """What passes in one product; a closed form and a trace must agree on all of it."""

  cycles: int
  busy: int  # cell-cycles that multiply
  left_reads: int
  right_reads: int
  result_writes: int
  result_reads: int


class Checked(NamedTuple):
  """A product that simulator and closed form agree on.

  Attributes:
    name: Of the product.
    tiles: How it was cut.
    simulated: Tiles that were simulated.
    of: Tiles that the product has, in this cut.
    counted: From the traces; a tile counts as often as its shape is there.
    utilization: Busy cell-cycles over all, from the traces.
    closed_utilization: m k n over cycles and cells, from the closed form.
  """

  name: str
  tiles: Tiles
  simulated: int
  of: int
  counted: Counts
  utilization: float
  closed_utilization: float


class Tile(NamedTuple):
  """Results [rows, cols] of a product, from `row` and `col` on; `times` alike."""

  row: int
  col: int
  rows: int
  cols: int
  times: int

  def __str__(self):
    return (
      f"rows {self.row}..{self.row + self.rows - 1}, "
      f"columns {self.col}..{self.col + self.cols - 1}"
    )


def how(gemm: Gemm, machine: Accelerator) -> Tiles:
  """ "whole" where a product is simulated in about a second, else "distinct"."""
  rows, cols = array(machine)
  work = systolic.cycles(
    gemm.m, gemm.k, gemm.n, rows, cols, machine.dataflow, machine.accounting
  )
  return "whole" if work * rows * cols <= WHOLE_CELL_CYCLES else "distinct"


def tiles(gemm: Gemm, machine: Accelerator, cut: Tiles) -> Iterator[Tile]:
  """The tiles to simulate: one, all, or the first of each shape and how many it has."""
  rows, cols = array(machine)
  high, wide = {
    "os": (rows, cols),
    "ws": (gemm.m, cols),
    "is": (cols, gemm.n),
  }[machine.dataflow]
  if cut == "whole":
    high, wide = gemm.m, gemm.n
  downs, rights = _spans(gemm.m, high), _spans(gemm.n, wide)
  if cut == "distinct":
    downs, rights = _shapes(downs), _shapes(rights)
  for (row, down, i), (col, right, j) in itertools.product(downs, rights):
    yield Tile(row, col, down, right, i * j)


def count(gemm: Gemm, machine: Accelerator, cut: Tiles) -> int:
  """How many tiles are to simulate."""
  return sum(1 for _ in tiles(gemm, machine, cut))


def product(
  gemm: Gemm,
  machine: Accelerator,
  *,
  cut: Tiles | None = None,
  seed: int = 0,
  on_tile: Callable[[], None] | None = None,
) -> Checked:
  """Simulates one of the products of `gemm` and compares; all of them are alike.

  Args:
    gemm: Its m, k and n count.
    machine: Its rows, cols, dataflow and accounting count.
    cut: "whole" simulates the product at once, "all" tile by tile, "distinct" one tile
      of each shape. None: as `how` says.
    seed: Of the operands. A block of rows of an operand is the same in every tile.
    on_tile: Called after each tile.

  Raises:
    Mismatch: If a product, a count or a utilization differs, naming layer, tile and the
      first element.
    ValueError: If rows or cols of the machine are no whole numbers.
  """
  cut = cut or how(gemm, machine)
  rows, cols = array(machine)
  # A product has thousands of tiles of at most four shapes.
  forms = functools.cache(
    lambda m, n: closed(dataclasses.replace(gemm, m=m, n=n), machine)
  )
  total, simulated, of = np.zeros(len(Counts._fields), int), 0, 0
  for tile in tiles(gemm, machine, cut):
    form = forms(tile.rows, tile.cols)
    total += tile.times * np.array(_tile(gemm, machine, tile, form, seed))
    simulated, of = simulated + 1, of + tile.times
    if on_tile is not None:
      on_tile()
  counted = Counts(*map(int, total))
  expected = forms(gemm.m, gemm.n)
  _compare(counted, expected, f"{gemm.name}, all {of:,} tiles")
  cells = rows * cols
  return Checked(
    gemm.name,
    cut,
    simulated,
    of,
    counted,
    counted.busy / (counted.cycles * cells),
    expected.busy / (expected.cycles * cells),
  )


def closed(gemm: Gemm, machine: Accelerator) -> Counts:
  """The closed forms of one product [m, k] x [n, k], exact."""
  rows, cols = array(machine)
  m, k, n = gemm.m, gemm.k, gemm.n
  one = Workload((Gemm("", gemm.name, 1, m, k, n),))
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), machine)
    edges = dataflow.traffic(wide, dataflow.sizes(one))
  return Counts(
    systolic.cycles(m, k, n, rows, cols, machine.dataflow, machine.accounting),
    m * k * n,
    *(int(x[0]) for x in edges),
  )


def array(machine: Accelerator) -> tuple[int, int]:
  """Rows and columns of cells of a machine that can be simulated.

  Raises:
    ValueError: If they are no whole numbers.
  """
  found = []
  for name in ("rows", "cols"):
    size = float(np.asarray(getattr(machine, name)))
    if size != int(size):
      raise ValueError(
        f"{machine.name}: {name}={size:g} cells cannot be simulated; round it"
      )
    found.append(int(size))
  return found[0], found[1]


def _tile(
  gemm: Gemm, machine: Accelerator, tile: Tile, form: Counts, seed: int
) -> Counts:
  """Simulates a tile, compares all there is, and returns what its trace counted."""
  rows, cols = array(machine)
  a = _operand(seed, 0, tile.row, tile.rows, gemm.k)
  b = _operand(seed, 1, tile.col, tile.cols, gemm.k)
  found, trace = systolic.simulate(
    a,
    b,
    rows=rows,
    cols=cols,
    dataflow=machine.dataflow,
    accounting=machine.accounting,
    toggles=False,
  )
  expected = a.astype(np.float64) @ b.astype(np.float64).T
  where = f"{gemm.name}, tile of {tile}"
  _compare_results(np.asarray(found), expected, tile, where)
  # int32 sums of a trace could wrap.
  totals = (int(np.asarray(x).sum(dtype=np.int64)) for x in trace[:5])
  counted = Counts(trace.cycles, *totals)
  _compare(counted, form, where)
  return counted


def _operand(seed: int, side: int, start: int, length: int, k: int) -> np.ndarray:
  """Rows start .. start + length - 1 of an operand: int8 [length, k]."""
  rng = np.random.default_rng((seed, side, start))
  return rng.integers(-128, 128, (length, k), np.int8)


def _compare_results(
  found: np.ndarray, expected: np.ndarray, tile: Tile, where: str
) -> None:
  if found.shape != expected.shape:
    raise Mismatch(f"{where}: results {found.shape} instead of {expected.shape}")
  wrong = np.argwhere(found != expected)
  if len(wrong):
    i, j = wrong[0]
    raise Mismatch(
      f"{where}: result [{tile.row + i}, {tile.col + j}] is {found[i, j]} in the array "
      f"and {int(expected[i, j])} in a @ b.T; {len(wrong):,} of {found.size:,} differ"
    )


def _compare(found: Counts, expected: Counts, where: str) -> None:
  for name, x, y in zip(Counts._fields, found, expected):
    if x != y:
      what = name.replace("_", " ")
      raise Mismatch(
        f"{where}: {what}: {x:,} in the simulator, {y:,} in the closed form"
      )


def _spans(length: int, step: int) -> Sequence[tuple[int, int, int]]:
  """(start, size, 1) of each stretch of `length`."""
  return [(i, min(step, length - i), 1) for i in range(0, length, step)]


def _shapes(spans: Sequence[tuple[int, int, int]]) -> Sequence[tuple[int, int, int]]:
  """The first span of each size, and how many there are."""
  sizes = [size for _, size, _ in spans]
  return [(*spans[sizes.index(size)][:2], sizes.count(size)) for size in set(sizes)]
