"""Networks from files: SCALE-Sim's topologies and lists of products, as CSV.

The first line names the columns, in any order; case, spaces and a trailing comma do not
matter, and semicolons or tabs separate as well as commas. Which columns there are says
what a line is:

  convolutions   Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width,
                 Channels, Num Filter, Strides[, Sparsity]
  products       [Layer,] M, N, K[, Batch][, Count][, Sparsity]

Words in other columns are notes, and so is what stands to the right of a column without
a name, as beside a table in a spreadsheet. A number in another column may change what
the layer is ("Batch size", "Dilation"): it is refused by name.

A convolution becomes the product that SCALE-Sim 3.0.0 runs, of OH x OW pixels:

  OH = ceil((IH - FH + S) / S)   m = OH OW   k = FH FW C   n = filters

The ifmap is taken as written, padding included. A layer whose name contains "DP" is
depthwise, as there: a product for each channel, k = FH FW. Batch and Count, as in
`Gemm`, are columns of this library.
"""

from collections.abc import Collection
import csv
import dataclasses
import itertools
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
_SPARSITY = "Sparsity"
_SEPARATORS = ",;\t"
# Words in the names of columns that are no notes wherever they stand.
_MEANS = re.compile("batch|count|repeat|group|dilat|pad|stride|spars|bits|head")
_WAY_OUT = (
  f"a topology of convolutions has {', '.join((_NAMES[0], *_CONV))}; "
  f"a list of products has {', '.join((_NAMES[1], *_PRODUCT))}"
)


def read(path: str | Path) -> Workload:
  """Reads a topology or a list of products.

  Args:
    path: A CSV file in UTF-8.

  Returns:
    One `Gemm` a line, its weight named by the layer (the second of a name "name#2"),
    its source `file:line`. Parameters are the weights of all layers; there is no vector
    work and no I/O.

  Raises:
    ValueError: With file, line and column, if a column is missing, named twice or holds
      no whole number of at least 1, a column that is not read holds a number, a filter
      is larger than its ifmap, a layer is sparse, or there is no layer.
    OSError: If the file cannot be read.
  """
  path = Path(path)
  header: _Header | None = None
  gemms: dict[str, Gemm] = {}
  for number, cells in _lines(path):
    where = f"{path.name}:{number}"
    if header is None:
      header = _Header(cells, where)
      continue
    gemm = _Line(header, cells, where).gemm(f"gemm{len(gemms) + 1}")
    name = _free(gemm.rhs, gemms)
    gemms[name] = dataclasses.replace(gemm, rhs=name)
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
  lines = [(n, line) for n, line in enumerate(source.splitlines(), 1) if line.strip()]
  known = {_key(name) for name in (*_NAMES, *_CONV, *_PRODUCT)}
  first = lines[0][1] if lines else ""
  by = max(_SEPARATORS, key=lambda s: len(known & set(map(_key, first.split(s)))))
  found = []
  for number, line in lines:
    try:
      cells = next(csv.reader([line], delimiter=by, skipinitialspace=True), [])
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


def _free(name: str, taken: Collection[str]) -> str:
  """The name, or the first of name#2, name#3 ... that is not taken."""
  numbered = (f"{name}#{number}" for number in itertools.count(2))
  return next(n for n in itertools.chain((name,), numbered) if n not in taken)


def _is_number(cell: str) -> bool:
  """Whether a cell holds a number or a ratio of numbers."""
  return bool(re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?(:[0-9.]+)?", cell.lower()))


class _Header:
  """Which column stands where.

  Attributes:
    columns: Where those that are read stand, by `_key`.
    names: Of all, "" without one.
    convolutions: Whether lines are convolutions; else products.
  """

  def __init__(self, cells: list[str], where: str):
    self.columns: dict[str, int] = {}
    self.names = cells
    self.convolutions = any(_key(name) in map(_key, cells) for name in _CONV)
    kinds = _CONV if self.convolutions else (*_PRODUCT, *_FEW)
    known = {_key(name) for name in (*_NAMES, *kinds, _SPARSITY)}
    for i, cell in enumerate(cells):
      if _key(cell) in self.columns:
        raise ValueError(f"{where}: column {cell!r} is there twice; keep one of them")
      if _key(cell) in known:
        self.columns[_key(cell)] = i
    for name in _CONV if self.convolutions else _PRODUCT:
      if _key(name) not in self.columns:
        raise ValueError(f"{where}: column {name!r} is missing; {_WAY_OUT}")
    if self.convolutions and not any(_key(name) in self.columns for name in _NAMES):
      raise ValueError(f"{where}: column {_NAMES[0]!r} is missing; {_WAY_OUT}")

  def check_notes(self, cells: list[str], where: str) -> None:
    """Refuses numbers that are no notes in columns that are not read."""
    margin = self.names.index("") if "" in self.names else len(self.names)
    for i, cell in enumerate(cells):
      name = self.names[i] if i < len(self.names) else ""
      if i in self.columns.values() or not _is_number(cell):
        continue
      if not name:
        raise ValueError(
          f"{where}: {len(cells)} cells for {len(self.names)} columns; the cell "
          f"{cell!r} has no name in the header"
        )
      if i < margin or _MEANS.search(_key(name)):
        raise ValueError(
          f"{where}: column {name!r} holds {cell!r} and is not read: it may change "
          "what the layer is; remove it, or keep it as a note behind an unnamed column"
        )


class _Line:
  """One line under its header."""

  def __init__(self, header: _Header, cells: list[str], where: str):
    self.header, self.columns = header, header.columns
    self.cells, self.where = cells, where
    header.check_notes(cells, where)

  def gemm(self, default_name: str) -> Gemm:
    """The product of this line."""
    named = next((n for n in _NAMES if _key(n) in self.columns), None)
    name = default_name if named is None else self.cell(named)
    self.check_dense()
    if self.header.convolutions:
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
    at = self.columns.get(_key(_SPARSITY), len(self.cells))
    ratio = (self.cells[at] if at < len(self.cells) else "") or "1:1"
    kept, _, group = ratio.partition(":")
    if not kept.isdigit() or kept != group or int(kept) < 1:
      raise ValueError(
        f"{self.where}: column 'Sparsity' holds {ratio!r}: only dense layers are "
        "priced; write 1:1 or leave the column out"
      )
