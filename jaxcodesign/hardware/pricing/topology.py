"""Networks from files: SCALE-Sim's topologies and lists of products, as CSV.

The first line names the columns, in any order; case, spaces and a trailing comma do not
matter. Which columns there are says what a line is:

  convolutions   Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width,
                 Channels, Num Filter, Strides[, Sparsity]
  products       [Layer,] M, N, K[, Batch][, Count]

A convolution becomes the product that SCALE-Sim 3.0.0 runs, of OH x OW pixels:

  OH = ceil((IH - FH + S) / S)   m = OH OW   k = FH FW C   n = filters

The ifmap is taken as written, padding included. A layer whose name contains "DP" is
depthwise, as there: a product for each channel, k = FH FW. Batch and Count, as in
`Gemm`, are columns of this library.
"""

import csv
from pathlib import Path
import re

from jaxcodesign.programs.workload import Gemm, Workload

_NAMES = ("Layer name", "Layer", "Name")
_CONV = (
  "IFMAP Height", "IFMAP Width", "Filter Height", "Filter Width", "Channels",
  "Num Filter", "Strides",
)  # fmt: skip
_PRODUCT = ("M", "N", "K")
_FEW = ("Batch", "Count")  # columns that may be left out: 1
_WAY_OUT = (
  f"a topology of convolutions has {', '.join((_NAMES[0], *_CONV))}; "
  f"a list of products has {', '.join((_NAMES[1], *_PRODUCT))}"
)


def read(path: str | Path) -> Workload:
  """Reads a topology or a list of products.

  Args:
    path: A CSV file in UTF-8.

  Returns:
    One `Gemm` a line, its weight named by the layer, its source `file:line`. Parameters
    are the weights of all layers; there is no vector work and no I/O.

  Raises:
    ValueError: With file, line and column, if a column is missing, named twice or holds
      no whole number of at least 1, a filter is larger than its ifmap, a layer is
      sparse, two layers have one name, or there is no layer.
    OSError: If the file cannot be read.
  """
  path = Path(path)
  columns: dict[str, int] = {}
  gemms: dict[str, Gemm] = {}
  for number, cells in _lines(path):
    where = f"{path.name}:{number}"
    if not columns:
      columns = _header(cells, where)
      continue
    gemm = _Line(columns, cells, where).gemm(f"gemm{len(gemms) + 1}")
    if gemm.name in gemms:
      raise ValueError(
        f"{where}: the layer {gemm.name!r} was on {gemms[gemm.name].source} before; "
        "give each layer its own name"
      )
    gemms[gemm.name] = gemm
  if not gemms:
    raise ValueError(f"{path.name}: there is no layer; {_WAY_OUT}")
  found = tuple(gemms.values())
  return Workload(found, parameters=sum(g.rhs_elements for g in found))


def text(workload: Workload) -> str:
  """A workload as a list of products that `read` reads back: names, sizes, counts.

  Products of equal names are told apart by their number, "scores", "scores#2". What a
  list cannot say (kinds, roles, overlapping windows) is left out, and every product
  gets a weight.
  """
  lines, seen = [", ".join((_NAMES[1], *_PRODUCT, *_FEW))], set()
  for number, g in enumerate(workload.gemms, start=1):
    name = g.name if g.name not in seen else f"{g.name}#{number}"
    seen.add(name)
    quoted = '"' + name.replace('"', '""') + '"' if set(name) & set('",') else name
    lines.append(f"{quoted}, {g.m}, {g.n}, {g.k}, {g.batch}, {g.count}")
  return "\n".join(lines) + "\n"


def _lines(path: Path) -> list[tuple[int, list[str]]]:
  """Numbered lines that hold anything, as stripped cells without a trailing comma."""
  try:
    source = path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{path.name}: is no text in UTF-8 ({error.reason}); save it as CSV"
    ) from error
  # A line at a time, so that a quote which nobody closes does not swallow the file.
  found = []
  for number, line in enumerate(source.splitlines(), start=1):
    try:
      cells = next(csv.reader([line], skipinitialspace=True), [])
    except csv.Error as error:
      raise ValueError(f"{path.name}:{number}: no line of CSV ({error})") from error
    cells = [cell.strip() for cell in cells]
    while cells and not cells[-1]:
      cells.pop()
    if cells:
      found.append((number, cells))
  return found


def _key(name: str) -> str:
  """How column names are compared."""
  return "".join(name.lower().split()).rstrip("s")


def _header(cells: list[str], where: str) -> dict[str, int]:
  """Columns by `_key`."""
  columns: dict[str, int] = {}
  for i, cell in enumerate(cells):
    if _key(cell) in columns:
      raise ValueError(f"{where}: column {cell!r} is there twice; keep one of them")
    columns[_key(cell)] = i
  convolutions = any(_key(name) in columns for name in _CONV)
  wanted = _CONV if convolutions else _PRODUCT
  for name in wanted:
    if _key(name) not in columns:
      raise ValueError(f"{where}: column {name!r} is missing; {_WAY_OUT}")
  if convolutions and not any(_key(name) in columns for name in _NAMES):
    raise ValueError(f"{where}: column {_NAMES[0]!r} is missing; {_WAY_OUT}")
  return columns


class _Line:
  """One line under its header."""

  def __init__(self, columns: dict[str, int], cells: list[str], where: str):
    self.columns, self.cells, self.where = columns, cells, where
    if len(cells) > max(columns.values()) + 1:
      raise ValueError(
        f"{where}: {len(cells)} cells for {len(columns)} columns; the cell "
        f"{cells[len(columns)]!r} has no name in the header"
      )

  def gemm(self, default_name: str) -> Gemm:
    """The product of this line."""
    named = next((n for n in _NAMES if _key(n) in self.columns), None)
    name = default_name if named is None else self.cell(named)
    if _key(_CONV[0]) in self.columns:
      return self.convolution(name)
    m, n, k = (self.whole(column) for column in _PRODUCT)
    batch, count = (
      self.whole(column) if _key(column) in self.columns else 1 for column in _FEW
    )
    weights = batch * n * k * count
    return Gemm(
      "", name, batch, m, k, n, count, rhs_elements=weights, source=self.where
    )

  def convolution(self, name: str) -> Gemm:
    """The product of a convolution."""
    high, wide, tall, broad, channels, filters, stride = map(self.whole, _CONV)
    self.check_dense()
    for column, taps, pixels in (
      ("Filter Height", tall, high),
      ("Filter Width", broad, wide),
    ):
      if taps > pixels:
        raise ValueError(
          f"{self.where}: column {column!r} holds {taps}, more than the {pixels} "
          "pixels of the ifmap; write the ifmap with its padding"
        )
    m = -(-(high - tall + stride) // stride) * -(-(wide - broad + stride) // stride)
    depthwise = "DP" in name
    batch, depth = (channels, 1) if depthwise else (1, channels)
    k = tall * broad * depth
    return Gemm(
      "",
      name,
      batch,
      m,
      k,
      filters,
      kind="conv",
      # Strides may step over pixels; a pixel that no window holds is no operand.
      lhs_elements=min(high * wide * channels, batch * m * k),
      rhs_elements=batch * filters * k,
      out_elements=batch * m * filters,
      window=tall * broad,
      source=self.where,
    )

  def cell(self, column: str) -> str:
    """The text in a column."""
    at = self.columns[_key(column)]
    found = self.cells[at] if at < len(self.cells) else ""
    if not found:
      raise ValueError(
        f"{self.where}: column {column!r} is missing or empty: the line has "
        f"{len(self.cells)} cells; write its value there"
      )
    return found

  def whole(self, column: str) -> int:
    """The number in a column."""
    found = self.cell(column)
    if not re.fullmatch("0*[1-9][0-9]{0,11}", found):
      raise ValueError(
        f"{self.where}: column {column!r} holds {found!r}: "
        "a whole number of at least 1, below 10^12, is needed"
      )
    return int(found)

  def check_dense(self) -> None:
    """Refuses an N:M sparse layer: its price is not that of a smaller dense one."""
    at = self.columns.get(_key("Sparsity"), len(self.cells))
    ratio = self.cells[at] if at < len(self.cells) else "1:1"
    kept, _, group = ratio.partition(":")
    if not kept.isdigit() or kept != group or int(kept) < 1:
      raise ValueError(
        f"{self.where}: column 'Sparsity' holds {ratio!r}: only dense layers are "
        "priced; write 1:1 or leave the column out"
      )
