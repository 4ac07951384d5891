"""A cost report for people: text, and HTML that is readable on light and on dark."""

from __future__ import annotations

from collections.abc import Sequence
import html as escape
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcodesign.programs import matrix_view

if TYPE_CHECKING:
  from jaxcodesign.hardware.cost_report import CostReport

COLOURS = {
  "mac": "#4477AA",
  "sram": "#66CCEE",
  "dram": "#EE6677",
  "leakage": "#999999",
  "vector": "#CCBB44",
}
OTHER = "vector unit and I/O"
HEADER = (
  "product", "time us", "energy uJ", "utilization", "SRAM MB", "DRAM MB", "mac",
  "sram", "dram", "leakage",
)  # fmt: skip
# Colours of the page around it: inherited text, tracks of half-transparent grey.
_STYLE = (
  "border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;"
  "color:inherit;background:transparent"
)
_TRACK = "display:flex;width:90px;height:6px;background:#8884"


def text(report: CostReport) -> str:
  """One product a line: time, energy, bytes, and shares of energy by cause."""
  rows = [
    (name, t, e, f"{u:.1%}", s, d, *(f"{x:.0%}" for x in parts.values()))
    for name, t, e, u, s, d, parts in _rows(report)
  ]
  return "\n".join([matrix_view.grid(HEADER, rows), *_summary(report)])


def html(report: CostReport) -> str:
  """The same with bars: time and energy against the largest, energy split by cause."""
  rows = _rows(report)
  longest = max(row[1] for row in rows)
  most = max(row[2] for row in rows)
  body = []
  for name, t, e, u, s, d, parts in rows:
    split = [(COLOURS[p], e / most * x) for p, x in parts.items()]
    cells = (
      escape.escape(name),
      f"{t:.2f}{_bar([('#009E73', t / longest)])}",
      f"{e:.3f}{_bar(split)}",
      f"{u:.1%}{_bar([('#CC79A7', u)])}",
      f"{s:.3f}",
      f"{d:.3f}",
    )
    body.append(f"<tr>{_cells('td', cells)}</tr>")
  return (
    f'<table style="{_STYLE}"><thead><tr>{_cells("th", HEADER[:6])}</tr></thead>'
    f"<tbody>{''.join(body)}</tbody></table>"
    f'<p style="color:inherit">{"<br>".join([_legend(report), *_summary(report)])}</p>'
  )


def _rows(report: CostReport) -> list[tuple[Any, ...]]:
  """Microseconds, microjoules, utilization, megabytes, and shares of the energy."""
  columns = (
    report.product_time_s * 1e6,
    report.product_energy_j * 1e6,
    report.product_utilization,
    report.product_sram_bytes / 1e6,
    report.product_dram_bytes / 1e6,
  )
  numbers = [[float(x) for x in row] for row in zip(*columns)]
  # jax sorts the keys of a dict.
  parts = [(p, report.product_parts_j[p]) for p in HEADER[6:]]
  shares = [
    {name: float(x[i] / report.product_energy_j[i]) for name, x in parts}
    for i in range(len(report.names))
  ]
  return [(n, *row, share) for n, row, share in zip(report.names, numbers, shares)]


def _summary(report: CostReport) -> tuple[str, str]:
  other = float(report.other_time_s) * 1e6, float(report.other_energy_j) * 1e6
  idle = float(report.idle_j / report.energy_j)
  return (
    f"{float(report.time_s) * 1e6:,.2f} us and {float(report.energy_j) * 1e6:,.3f} uJ, "
    f"{other[0]:.2f} us and {other[1]:.3f} uJ of these in the {OTHER}",
    f"utilization {float(report.utilization):.1%}, {idle:.1%} of the energy in idle "
    f"cells, {float(report.traffic_bytes) / 1e6:,.3f} MB through DRAM",
  )


def _legend(report: CostReport) -> str:
  swatch = "display:inline-block;width:10px;height:10px;background:"
  return " &nbsp; ".join(
    f'<span style="{swatch}{COLOURS[name]}"></span> {escape.escape(name)} '
    f"{float(part / report.energy_j):.1%}"
    for name, part in ((p, report.parts_j[p]) for p in COLOURS)
  )


def _bar(pieces: Sequence[tuple[str, float]]) -> str:
  inner = "".join(
    f'<div style="width:{100 * float(np.clip(share, 0, 1)):.2f}%;background:{c}"></div>'
    for c, share in pieces
  )
  return f'<div style="{_TRACK}">{inner}</div>'


def _cells(tag: str, cells: Sequence[str]) -> str:
  style = "padding:3px 10px;color:inherit;background:transparent;text-align:"
  sides = ("left", *("right",) * (len(cells) - 1))
  return "".join(f'<{tag} style="{style}{s}">{c}</{tag}>' for s, c in zip(sides, cells))
