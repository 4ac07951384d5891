"""The report of a co-design run: one documented result, written as page and JSON.

`SCHEMA` describes every field of a result, `validate` holds a result against it,
`write` renders it and `read` takes it back.
"""

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any
import uuid

from matplotlib.figure import Figure
import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxcodesign.experiments import page
from jaxcodesign.experiments.schema import SCHEMA, VERSION, validate
from jaxcodesign.figures import canvas, designs, findings, packing
from jaxcodesign.figures.findings import pareto
from jaxcodesign.runs.disk import files

__all__ = [
  "SCHEMA",
  "VERSION",
  "draw",
  "pareto",
  "read",
  "terminal_table",
  "validate",
  "write",
]


def write(result: Mapping[str, Any], folder: str | os.PathLike[str]) -> pathlib.Path:
  """Writes `report.html`, `report.json` and `figures/*.png` into `folder`.

  Each file appears whole or not at all, the page last: where it is new, all is.

  Returns:
    The path of the page.

  Raises:
    ValueError: `validate` refuses the result; nothing is written.
    OSError: The folder cannot be written, or the disk is full.
  """
  validate(result)
  folder = pathlib.Path(folder)
  drawn = draw(result)
  contents = {f"figures/{name}.png": canvas.png(fig) for name, fig in drawn.items()}
  text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
  contents["report.json"] = f"{text}\n".encode()
  contents["report.html"] = page.render(result, drawn).encode()
  for name, content in contents.items():
    _replace(folder / name, content)
  for name in {"sensitivities", "training", "packing", "storage"} - drawn.keys():
    (folder / f"figures/{name}.png").unlink(missing_ok=True)  # of an earlier run
  return folder / "report.html"


def draw(result: Mapping[str, Any]) -> dict[str, Figure]:
  """Returns the figures of a valid result by name, those that have data."""
  found = findings.find(result)
  own = {(c["variant"], c["accelerator"]): c for c in result["costs"]}
  base = found.baseline["variant"]
  split = [own.get((base, a), c) for a, c in found.chosen.items()]
  split = [c for pair in zip(split, found.chosen.values()) for c in pair]
  drawn = {
    "tradeoff": designs.tradeoff(result["costs"], found.reference),
    "layers": designs.layers(found.compared),
    "energy": designs.energy([c for i, c in enumerate(split) if c not in split[:i]]),
  }
  groups: dict[str, list[dict[str, Any]]] = {}
  for accelerator, cost in found.chosen.items():
    given = [e for e in result["sensitivities"] if e["accelerator"] == accelerator]
    asked = [e for e in given if e["variant"] == cost["variant"]]
    entries = asked or [e for e in given if e["variant"] == given[0]["variant"]]
    if entries:
      groups[f"{accelerator} running {entries[0]['variant']}"] = entries
  if groups:
    drawn["sensitivities"] = designs.sensitivities(list(groups.items()))
  if result["training"]["history"]:
    drawn["training"] = designs.training(result["training"]["history"])
  return drawn | _stored(result["storage"])


def _stored(storage: Mapping[str, Any]) -> dict[str, Figure]:
  """Cycles by storage, and a matrix before and after packing."""
  drawn = {}
  if storage["rows"]:
    layers = [layer["name"] for layer in storage["rows"][0]["layers"]]
    series = {
      row["title"]: [layer["cycles"] for layer in row["layers"]]
      for row in storage["rows"]
    }
    drawn["storage"] = packing.cycles(layers, series, storage["machine"])
  for one in storage["packing"]:
    kept = np.array([[c == "1" for c in row] for row in one["kept"]])
    channel = [[int(c, 36) if c != "." else -1 for c in row] for row in one["channel"]]
    drawn["packing"] = packing.matrix(
      one["layer"], kept, np.array(channel), one["array"]
    )
  return drawn


def _replace(path: pathlib.Path, content: bytes) -> None:
  draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with draft.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      draft.replace(path)
    finally:
      draft.unlink(missing_ok=True)
  except OSError as error:
    reason = error.strerror or str(error)
    way_out = f"{reason}; free space there or name another folder for the report"
    raise OSError(error.errno, way_out, str(path)) from error


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the result in a `report.json`, validated.

  Raises:
    ValueError: The file is no JSON or no result; the message names it.
  """
  try:
    result = files.strict_json(pathlib.Path(path).read_bytes())
    validate(result)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not a report of this version: {error}") from error
  return result


def terminal_table(result: Mapping[str, Any], most: int = 10) -> Group:
  """Returns a short rich table of the best designs and the answer in a sentence.

  Args:
    result: What `validate` accepts.
    most: Rows: the baseline, the best design of each accelerator, and then the most
      accurate designs of the Pareto front (accuracy and EDP) as far as there is room.
  """
  found = findings.find(result)
  front = sorted(found.front, key=lambda c: -c["accuracy"])
  rows: list[dict[str, Any]] = []
  for cost in [found.baseline, *found.chosen.values(), *front]:
    if cost not in rows and len(rows) < most:
      rows.append(cost)
  table = Table(header_style="bold", box=None, pad_edge=False)
  for name in ("variant", "accelerator", "accuracy", "energy", "time", "EDP", ""):
    table.add_column(name, justify="left" if name[:1] in "va" else "right")
  for cost in sorted(rows, key=lambda c: c["edp_js"]):
    cells = [
      cost["variant"],
      cost["accelerator"],
      f"{cost['accuracy']:.1%}",
      findings.quantity(cost["energy_j"], "J"),
      findings.quantity(cost["time_s"], "s"),
      "baseline" if cost is found.baseline else _relative(cost, found.baseline),
      "◆" if cost in found.front else "",
    ]
    style = "bold green" if cost is found.best else ""
    # Text, not str: a name with brackets is a name, not rich markup.
    table.add_row(*(Text(cell) for cell in cells), style=style)
  note = f"◆ Pareto-optimal in accuracy and EDP; {len(rows)} of {len(result['costs'])}"
  return Group(
    table, Text(f"{note} designs", style="dim"), Text(findings.answer(result))
  )


def _relative(cost: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
  return findings.change(cost, baseline, "edp_js")
