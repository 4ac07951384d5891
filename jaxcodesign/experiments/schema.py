"""What a co-design result is: every field with its unit and meaning, and a check.

All numbers are SI and plain Python.
"""

from collections.abc import Mapping
import json
import math
from typing import Any, NamedTuple

VERSION = "jaxcodesign.codesign/2"


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
_STORED_LAYER = {
  "name": Field("text", "", "as in layers, in the same order"),
  "columns": Field("positive", "", "of the contraction, as the array executes it"),
  "tiles": Field("count", "", "parts of the stored weights as large as the array"),
  "cycles": Field("amount", "clock cycles", "cycles of the layer"),
  "utilization": Field("share", "", "cells with a weight that is not zero, at work"),
}
_STORED = {
  "title": Field("text", "", "how the weights are stored, unique"),
  "density": Field("share", "", "of all weights of products: not zero"),
  "accuracy": Field("share", "", "on the test images"),
  "tiles": Field("count", "", "sum over layers"),
  "cycles": Field("positive", "clock cycles", "cycles of one image"),
  "utilization": Field("share", "", "of all products"),
  "time_s": Field("positive", "s", "time of one image"),
  "energy_j": Field("positive", "J", "energy of one image"),
  "edp_js": Field("positive", "J s", "energy_j times time_s"),
  "area_mm2": Field("positive", "mm2", "of the accelerator"),
  "layers": [_STORED_LAYER],
}
_PACKING = {
  "layer": Field("text", "", "name of a combined layer"),
  "array": Field("count", "", "rows and columns of the array"),
  "kept": [Field("text", "", "a row of the pruned matrix: 1 where a weight is")],
  "channel": [Field("text", "", "a row of the packed one: the input, . for none")],
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
  "storage": {
    "machine": Field("text", "", "array that all rows are of, with and without MX"),
    "rows": [_STORED],
    "packing": [_PACKING],
  },
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
_MAY_BE_EMPTY = (
  "result.training.history", "result.vector_ops", "result.sensitivities",
  "result.storage.rows", "result.storage.packing",
)  # fmt: skip


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
  rows = result["storage"]["rows"]
  _unique([row["title"] for row in rows], "result.storage.rows[{}].title")
  for i, row in enumerate(rows):
    path = f"result.storage.rows[{i}]"
    _agree(row["edp_js"], row["energy_j"] * row["time_s"], f"{path}.edp_js")
    if [layer["name"] for layer in row["layers"]] != layers:
      raise ValueError(f"{path}.layers does not name the layers of result.layers")


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
