"""The matrix view of a workload: one product a line, as text and as HTML."""

from collections.abc import Sequence
import html as escape
from typing import Any

HEADER = ("product", "kind", "role", "batch", "m", "k", "n", "count", "MAC")


def text(rows: Sequence[tuple[Any, ...]], summary: str) -> str:
  """The table of `rows`, each in the order of HEADER, in fixed width, and a summary."""
  return grid(HEADER, rows) + "\n" + summary


def html(rows: Sequence[tuple[Any, ...]], summary: str) -> str:
  """The table as HTML, shown by notebooks."""
  return html_grid(HEADER, rows) + f"<p>{summary}</p>"


def grid(header: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> str:
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


def html_grid(header: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> str:
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
