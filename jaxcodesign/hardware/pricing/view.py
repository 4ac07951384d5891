"""A cost report for people: text, and HTML that is readable on light and on dark."""

from collections.abc import Mapping, Sequence
import html as escape
from typing import NamedTuple

import numpy as np

from jaxcodesign.programs import matrix_view

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


class Row(NamedTuple):
  """What is shown of a product.

  Attributes:
    name: Of the product.
    time_s: Seconds.
    energy_j: Joules.
    utilization: In [0, 1].
    sram_bytes: Into and out of the buffers.
    dram_bytes: To and from DRAM.
    parts_j: Joules by cause, those of the HEADER.
  """

  name: str
  time_s: float
  energy_j: float
  utilization: float
  sram_bytes: float
  dram_bytes: float
  parts_j: Mapping[str, float]


class Sums(NamedTuple):
  """What is shown of all products together; `Row` says the units.

  Attributes:
    time_s: Of everything.
    energy_j: Of everything.
    other_time_s: Of the vector unit and I/O.
    other_energy_j: Of these.
    idle_j: Of cells that did not multiply.
    utilization: Of the array.
    traffic_bytes: Through DRAM.
    parts_j: By cause, those of COLOURS.
  """

  time_s: float
  energy_j: float
  other_time_s: float
  other_energy_j: float
  idle_j: float
  utilization: float
  traffic_bytes: float
  parts_j: Mapping[str, float]


def text(rows: Sequence[Row], sums: Sums) -> str:
  """One product a line: time, energy, bytes, and shares of energy by cause."""
  lines = []
  for row in rows:
    shares = (f"{row.parts_j[part] / row.energy_j:.0%}" for part in HEADER[6:])
    name, time, energy, utilization, sram, dram = _scaled(row)
    lines.append((name, time, energy, f"{utilization:.1%}", sram, dram, *shares))
  return "\n".join([matrix_view.grid(HEADER, lines), *_summary(sums)])


def html(rows: Sequence[Row], sums: Sums) -> str:
  """The same with bars: time and energy against the largest, energy split by cause."""
  longest = max(row.time_s for row in rows)
  most = max(row.energy_j for row in rows)
  body = []
  for row in rows:
    split = [(COLOURS[p], row.parts_j[p] / most) for p in HEADER[6:]]
    name, time, energy, utilization, sram, dram = _scaled(row)
    cells = (
      escape.escape(name),
      f"{time:.2f}{_bar([('#009E73', row.time_s / longest)])}",
      f"{energy:.3f}{_bar(split)}",
      f"{utilization:.1%}{_bar([('#CC79A7', utilization)])}",
      f"{sram:.3f}",
      f"{dram:.3f}",
    )
    body.append(f"<tr>{_cells('td', cells)}</tr>")
  return (
    f'<table style="{_STYLE}"><thead><tr>{_cells("th", HEADER[:6])}</tr></thead>'
    f"<tbody>{''.join(body)}</tbody></table>"
    f'<p style="color:inherit">{"<br>".join([_legend(sums), *_summary(sums)])}</p>'
  )


def _scaled(row: Row) -> tuple[str, float, float, float, float, float]:
  """Name, microseconds, microjoules, utilization, megabytes of SRAM and of DRAM."""
  return (
    row.name,
    row.time_s * 1e6,
    row.energy_j * 1e6,
    row.utilization,
    row.sram_bytes / 1e6,
    row.dram_bytes / 1e6,
  )


def _summary(sums: Sums) -> tuple[str, str]:
  return (
    f"{sums.time_s * 1e6:,.2f} us and {sums.energy_j * 1e6:,.3f} uJ, "
    f"{sums.other_time_s * 1e6:.2f} us and {sums.other_energy_j * 1e6:.3f} uJ of these "
    f"in the {OTHER}",
    f"utilization {sums.utilization:.1%}, {sums.idle_j / sums.energy_j:.1%} of the "
    f"energy in idle cells, {sums.traffic_bytes / 1e6:,.3f} MB through DRAM",
  )


def _legend(sums: Sums) -> str:
  swatch = "display:inline-block;width:10px;height:10px;background:"
  return " &nbsp; ".join(
    f'<span style="{swatch}{COLOURS[name]}"></span> {escape.escape(name)} '
    f"{sums.parts_j[name] / sums.energy_j:.1%}"
    for name in COLOURS
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
