"""The report of a co-design run: one documented result, written as page and JSON.

`SCHEMA` describes every field of a result, `validate` holds a result against it,
`write` renders it and `read` takes it back. All numbers are SI and plain Python.
"""

from collections.abc import Mapping
import json
import math
import os
import pathlib
from typing import Any, NamedTuple
import uuid

from matplotlib.figure import Figure
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxcodesign.training import canvas, figures, findings, page
from jaxcodesign.training.findings import pareto

__all__ = ["SCHEMA", "draw", "pareto", "read", "terminal_table", "validate", "write"]

VERSION = "jaxcodesign.codesign/1"


class Field(NamedTuple):
  """A documented value: its kind (see `_KINDS`; `?` allows null), unit and meaning."""

  kind: str
  unit: str
  meaning: str


class Named(NamedTuple):
  """A mapping with free names, all of whose values follow `each`."""

  each: Field


_LAYER_COST = {
  "name": Field("text", "", "as in layers, in the same order"),
  "time_s": Field("amount", "s", "time of the layer"),
  "energy_j": Field("amount", "J", "energy of the layer"),
  "cycles": Field("amount", "clock cycles", "cycles of the layer"),
  "utilization": Field("share", "", "busy multipliers over multipliers and cycles"),
  "sram_bytes": Field("amount", "bytes", "read from and written to on-chip memory"),
  "dram_bytes": Field("amount", "bytes", "read from and written to DRAM"),
}
_COST = {
  "variant": Field("text", "", "name of a variant"),
  "accelerator": Field("text", "", "name of an accelerator"),
  "accuracy": Field("share", "", "test accuracy of the variant"),
  "time_s": Field("positive", "s", "time of one image"),
  "energy_j": Field("positive", "J", "energy of one image, the sum of its parts"),
  "edp_js": Field("positive", "J s", "energy_j times time_s"),
  "cycles": Field("positive", "clock cycles", "cycles of one image"),
  "utilization": Field("share", "", "busy multipliers over multipliers and cycles"),
  "traffic_bytes": Field("amount", "bytes", "bytes moved between memories"),
  "energy_parts_j": {
    "mac": Field("amount", "J", "multiplications and additions of products"),
    "sram": Field("amount", "J", "on-chip memory"),
    "dram": Field("amount", "J", "external memory"),
    "leakage": Field("amount", "J", "static power times time"),
    "vector": Field("amount", "J", "element-wise operations"),
  },
  "layers": [_LAYER_COST],
}
SCHEMA: dict[str, Any] = {
  "schema": Field("text", "", f"the version of this schema, {VERSION}"),
  "name": Field("text", "", "name of the experiment"),
  "command": Field("text", "", "shell command that repeats the run"),
  "created": Field("text", "", "ISO 8601 time of the run's end"),
  "versions": Named(Field("text", "", "version of the package of that name")),
  "config": Field("any", "", "the experiment's configuration, free in form"),
  "model": {
    "name": Field("text", "", "name of the model"),
    "parameters": Field("count", "", "trained numbers"),
    "macs": Field("count", "", "multiplications of one image"),
  },
  "training": {
    "dataset": Field("text", "", "name of the data"),
    "train_images": Field("count", "", "images trained on"),
    "test_images": Field("count", "", "images that every accuracy is measured on"),
    "restored": Field("flag", "", "whether a checkpoint replaced the training"),
    "seconds": Field("amount", "s", "time of the training, 0 if restored"),
    "test_accuracy": Field("share", "", "after the last epoch"),
    "history": [
      {
        "epoch": Field("count", "", "passes over the training images, from 1"),
        "loss": Field("number", "nat", "mean training loss of the epoch"),
        "train_accuracy": Field("share", "", "on the training images"),
        "test_accuracy": Field("share", "", "on the test images"),
        "seconds": Field("amount", "s", "time of the epoch"),
      }
    ],
  },
  "layers": [
    {
      "name": Field("text", "", "the parameter leaf that flows into the product"),
      "kind": Field("text", "", "what the model calls it, such as conv or dense"),
      "batch": Field("count", "", "independent products in one execution"),
      "m": Field("count", "", "rows of the result"),
      "k": Field("count", "", "length of the contraction"),
      "n": Field("count", "", "columns of the result"),
      "count": Field("count", "", "executions for one image"),
      "macs": Field("count", "", "batch m k n count"),
      "parameters": Field("count", "", "trained numbers of the layer"),
    }
  ],
  "vector_ops": [
    {
      "op": Field("text", "", "name of the element-wise operation"),
      "elements": Field("count", "", "elements computed in one execution"),
      "bytes": Field("count", "bytes", "read and written in one execution"),
      "count": Field("count", "", "executions for one image"),
    }
  ],
  "variants": [
    {
      "name": Field("text", "", "unique; the first is the reference for accuracy"),
      "weight": Field("text", "", "format of the weights"),
      "activation": Field("text", "", "format of the activations"),
      "weight_bits": Field("amount?", "bits", "stored bits of a weight"),
      "weight_terms": Field("amount?", "", "powers of two in a weight, on average"),
      "activation_terms": Field("amount?", "", "most powers of two in an activation"),
      "accuracy": Field("share", "", "on the test images, after quantization"),
    }
  ],
  "accelerators": [
    {
      "name": Field("text", "", "unique"),
      "rows": Field("positive", "", "rows of multipliers"),
      "cols": Field("positive", "", "columns of multipliers"),
      "area_mm2": Field("positive", "mm2", "silicon area"),
      "dataflow": Field("text", "", "which operand stays in place"),
      "leaves": Named(Field("number", "by suffix", "every number that describes it")),
    }
  ],
  "costs": [_COST],
  "sensitivities": [
    {
      "variant": Field("text", "", "name of a variant"),
      "accelerator": Field("text", "", "name of an accelerator"),
      "leaf": Field("text", "", "a leaf of the accelerator"),
      "value": Field("number", "", "d log(edp_js) / d log(leaf)"),
    }
  ],
}
_number = lambda v: (
  isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
)
_KINDS = {
  "text": ("a string", lambda v: isinstance(v, str)),
  "flag": ("true or false", lambda v: isinstance(v, bool)),
  "count": ("an integer >= 0", lambda v: _number(v) and isinstance(v, int) and v >= 0),
  "number": ("a finite number", _number),
  "amount": ("a finite number >= 0", lambda v: _number(v) and v >= 0),
  "positive": ("a finite number > 0", lambda v: _number(v) and v > 0),
  "share": ("a number from 0 to 1", lambda v: _number(v) and 0 <= v <= 1),
}
_MAY_BE_EMPTY = ("result.training.history", "result.vector_ops", "result.sensitivities")


def validate(result: Mapping[str, Any]) -> None:
  """Holds `result` against `SCHEMA` and its parts against each other.

  Raises:
    ValueError: A field is missing, unknown or of the wrong kind; a name is not unique
      or refers to nothing; a sum or product disagrees by more than one in a thousand.
      The message begins with the path of the field, such as `result.costs[3].edp_js`.
  """
  _conform(result, SCHEMA, "result")
  if result["schema"] != VERSION:
    raise ValueError(f"result.schema is {result['schema']!r}, expected {VERSION!r}")
  names = {}
  for kind in ("variants", "accelerators"):
    names[kind[:-1]] = [entry["name"] for entry in result[kind]]
    _unique(names[kind[:-1]], f"result.{kind}[{{}}].name")
  layers = [layer["name"] for layer in result["layers"]]
  for i, cost in enumerate(result["costs"]):
    path = f"result.costs[{i}]"
    _refer(cost, names, path)
    _agree(cost["edp_js"], cost["energy_j"] * cost["time_s"], f"{path}.edp_js")
    parts = sum(cost["energy_parts_j"].values())
    _agree(cost["energy_j"], parts, f"{path}.energy_j")
    if [layer["name"] for layer in cost["layers"]] != layers:
      raise ValueError(f"{path}.layers does not name the layers of result.layers")
  for i, entry in enumerate(result["sensitivities"]):
    path = f"result.sensitivities[{i}]"
    _refer(entry, names, path)
    spec = result["accelerators"][names["accelerator"].index(entry["accelerator"])]
    _refer(entry, {"leaf": list(spec["leaves"])}, path)
  pairs = [(c["variant"], c["accelerator"]) for c in result["costs"]]
  _unique(pairs, "result.costs[{}]")


def _conform(value: Any, spec: Any, path: str) -> None:
  if isinstance(spec, Field):
    return _conform_field(value, spec, path)
  if isinstance(spec, list):
    if not isinstance(value, list) or not (value or path in _MAY_BE_EMPTY):
      raise ValueError(f"{path} must be a list with entries, got {value!r:.60}")
    for i, entry in enumerate(value):
      _conform(entry, spec[0], f"{path}[{i}]")
    return None
  if not isinstance(value, dict):
    raise ValueError(f"{path} must be a mapping, got {value!r:.60}")
  if isinstance(spec, Named):
    spec = dict.fromkeys(value, spec.each)
  for name in spec:
    if name not in value:
      raise ValueError(f"{path}.{name} is missing")
  for name, entry in value.items():
    if name not in spec:
      raise ValueError(f"{path}.{name} is not in report.SCHEMA; document it there")
    _conform(entry, spec[name], f"{path}.{name}")
  return None


def _conform_field(value: Any, spec: Field, path: str) -> None:
  if spec.kind == "any":
    try:
      json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
      raise ValueError(f"{path} cannot be written as JSON: {error}") from error
    return
  said, holds = _KINDS[spec.kind.removesuffix("?")]
  if not holds(value) and not (value is None and spec.kind.endswith("?")):
    kind = type(value)
    got = f"{value!r:.60} ({kind.__module__}.{kind.__qualname__})"
    raise ValueError(f"{path} ({spec.meaning}) must be {said}, got {got}")


def _unique(names: list[Any], path: str) -> None:
  for i, name in enumerate(names):
    if name in names[:i]:
      raise ValueError(f"{path.format(i)} repeats {name!r}")


def _refer(entry: Mapping[str, Any], names: Mapping[str, list[str]], path: str) -> None:
  for kind, known in names.items():
    if entry[kind] not in known:
      raise ValueError(f"{path}.{kind} is {entry[kind]!r}, not one of {known}")


def _agree(value: float, expected: float, path: str) -> None:
  if not math.isclose(value, expected, rel_tol=1e-3):
    raise ValueError(f"{path} is {value:g}, but its factors or parts give {expected:g}")


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
  files = {f"figures/{name}.png": canvas.png(fig) for name, fig in drawn.items()}
  text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
  files["report.json"] = f"{text}\n".encode()
  files["report.html"] = page.render(result, drawn).encode()
  for name, content in files.items():
    _replace(folder / name, content)
  for name in {"sensitivities", "training"} - drawn.keys():
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
    "tradeoff": figures.tradeoff(result["costs"], found.reference),
    "layers": figures.layers(found.compared),
    "energy": figures.energy([c for i, c in enumerate(split) if c not in split[:i]]),
  }
  groups: dict[str, list[dict[str, Any]]] = {}
  for accelerator, cost in found.chosen.items():
    given = [e for e in result["sensitivities"] if e["accelerator"] == accelerator]
    asked = [e for e in given if e["variant"] == cost["variant"]]
    entries = asked or [e for e in given if e["variant"] == given[0]["variant"]]
    if entries:
      groups[f"{accelerator} running {entries[0]['variant']}"] = entries
  if groups:
    drawn["sensitivities"] = figures.sensitivities(list(groups.items()))
  if result["training"]["history"]:
    drawn["training"] = figures.training(result["training"]["history"])
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
    result = json.loads(pathlib.Path(path).read_text("utf-8"))
    validate(result)
  except ValueError as error:
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
