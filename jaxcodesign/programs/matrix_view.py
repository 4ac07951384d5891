"""The matrix view of a workload: one product a line, as text and as HTML."""

from __future__ import annotations

import html as escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from jaxcodesign.programs.workload import Workload

HEADER = ("product", "kind", "role", "batch", "m", "k", "n", "count", "MAC")


def rows(workload: Workload) -> list[tuple[Any, ...]]:
  """One row per product, in the order of HEADER."""
  return [
    (g.name, g.kind, g.role, g.batch, g.m, g.k, g.n, g.count, g.macs)
    for g in workload.gemms
  ]


def summary(workload: Workload) -> str:
  """One line: products, multiplications, parameters, vector work."""
  elements = sum(v.elements * v.count for v in workload.vector_ops)
  return (
    f"{len(workload.gemms)} products, {workload.macs:,} MAC, "
    f"{workload.parameters:,} parameters, {elements:,} vector elements in "
    f"{len(workload.vector_ops)} kinds of operation"
  )


def text(workload: Workload) -> str:
  """The table in fixed width, with a total."""
  return grid(HEADER, rows(workload)) + "\n" + summary(workload)


def html(workload: Workload) -> str:
  """The table as HTML, shown by notebooks."""
  return html_grid(HEADER, rows(workload)) + f"<p>{summary(workload)}</p>"


def grid(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
  """Any table in fixed width: text to the left, numbers to the right."""
  cells = [list(header)] + [[_cell(c) for c in row] for row in rows]
  widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
  numeric = [bool(rows) and not isinstance(rows[0][i], str) for i in range(len(header))]
  lines = [
    "  ".join(
      cell.rjust(w) if right else cell.ljust(w)
      for cell, w, right in zip(row, widths, numeric)
    ).rstrip()
    for row in cells
  ]
  return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def html_grid(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
  """Any table as HTML, escaped."""
  line = lambda tag, row: "".join(f"<{tag}>{escape.escape(c)}</{tag}>" for c in row)
  body = "".join(f"<tr>{line('td', [_cell(c) for c in row])}</tr>" for row in rows)
  return (
    f"<table><thead><tr>{line('th', header)}</tr></thead><tbody>{body}</tbody></table>"
  )


def _cell(value: Any) -> str:
  if isinstance(value, str):
    return value
  return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
