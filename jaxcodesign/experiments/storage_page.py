"""The section of a report that shows what sparsity pays out on the array."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from jaxcodesign.figures.page_parts import Column, picture, scaled, section, table, text


def sections(storage: Mapping[str, Any], drawn: Mapping[str, Figure]) -> list[str]:
  """The section as HTML, none where no variant is sparse.

  Args:
    storage: `storage` of a valid result.
    drawn: Figures by name.
  """
  rows = storage["rows"]
  if not rows:
    return []
  parts = [
    f"<p>One network, {text(storage['machine'])}, its weights stored in different "
    "ways. Zeros of a plain matrix are stored and executed: pruning alone makes no "
    "array faster. n:m and combined columns need cells that select one of several "
    "inputs (MX); their area and energy is in the last columns. Utilization counts "
    "cells at work on a weight that is not zero.</p>",
    table(rows, _columns(rows)),
    picture(
      drawn,
      "storage",
      f"Bars of the cycles of each layer, {len(rows)} ways to store its weights.",
    ),
    f"<details><summary>every layer</summary>{_layers(rows)}</details>",
  ]
  if storage["packing"]:
    layer = storage["packing"][0]["layer"]
    alt = f"The nonzero weights of {layer} before and after columns are combined."
    parts.append(picture(drawn, "packing", alt))
  return [section("Sparsity, paid out on the array", *parts)]


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
  first = rows[0]
  ratio = lambda key: (
    lambda r: first[key] / r[key],
    lambda v: f"{v:.2f}\u00d7",
  )
  return [
    Column("weights", lambda r: r["title"]),
    Column("accuracy", lambda r: r["accuracy"], lambda v: f"{v:.1%}"),
    Column("not zero", lambda r: r["density"], lambda v: f"{v:.1%}"),
    Column("tiles", lambda r: r["tiles"], lambda v: f"{v:,}"),
    Column("cycles", lambda r: r["cycles"], lambda v: f"{v:,.0f}"),
    Column("faster", *ratio("cycles")),
    Column("utilization", lambda r: r["utilization"], lambda v: f"{v:.1%}"),
    scaled(rows, "energy_j", "J", "energy"),
    scaled(rows, "edp_js", "J\u00b7s", "EDP"),
    Column("EDP, less", *ratio("edp_js")),
    Column("area, mm\u00b2", lambda r: r["area_mm2"], lambda v: f"{v:.3f}"),
  ]


def _layers(rows: Sequence[Mapping[str, Any]]) -> str:
  """Columns, tiles, cycles and utilization of every layer, storage by storage."""
  flat = [{"title": r["title"], **layer} for r in rows for layer in r["layers"]]
  columns = [
    Column("weights", lambda r: r["title"]),
    Column("layer", lambda r: r["name"]),
    Column("columns", lambda r: r["columns"], lambda v: f"{v:,.0f}"),
    Column("tiles", lambda r: r["tiles"], lambda v: f"{v:,}"),
    Column("cycles", lambda r: r["cycles"], lambda v: f"{v:,.0f}"),
    Column("utilization", lambda r: r["utilization"], lambda v: f"{v:.1%}"),
  ]
  return table(flat, columns, style="sortable")
