"""A short text that stands for a config: equal in every process, for equal values."""

from collections.abc import Mapping
import dataclasses
import enum
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np


def fingerprint(*parts: Any) -> str:
  """Returns 16 hex digits that depend on the values of `parts` alone.

  Equal configs have equal fingerprints in every process and on every machine; a change
  of any field, or of the class of any part, gives another one. The content of files
  that a part only names is not read.

  Args:
    *parts: Frozen dataclasses, and inside them strings, numbers, None, paths, enums,
      arrays, dtypes, functions of a module, and tuples, lists and dicts of these.

  Raises:
    TypeError: naming the field whose value has no stable text, such as a lambda.
  """
  text = json.dumps([_canonical(part, type(part).__name__) for part in parts])
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(x: Any, where: str) -> Any:
  """`x` as JSON, the same for values that compare equal."""
  if dataclasses.is_dataclass(x) and not isinstance(x, type):
    fields = [f.name for f in dataclasses.fields(x)]
    values = [_canonical(getattr(x, name), f"{where}.{name}") for name in fields]
    return [type(x).__qualname__, *map(list, zip(fields, values))]
  if isinstance(x, enum.Enum):
    return [type(x).__qualname__, x.name]
  if x is None or isinstance(x, str):
    return x
  if isinstance(x, float) and x.is_integer():
    return int(x)
  if isinstance(x, bool | int | float):
    return x
  if isinstance(x, pathlib.PurePath):
    return str(x)
  if isinstance(x, tuple | list):
    return [_canonical(item, f"{where}.{i}") for i, item in enumerate(x)]
  if isinstance(x, Mapping):
    items = [[str(k), _canonical(v, f"{where}.{k}")] for k, v in x.items()]
    return {"items": sorted(items, key=lambda item: item[0])}
  if isinstance(x, np.ndarray | np.generic | jax.Array):
    x = np.asarray(x)
    content = hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()
    return ["array", str(x.dtype), list(x.shape), content]
  if isinstance(x, np.dtype):
    return ["dtype", str(x)]
  name = getattr(x, "__qualname__", "<")
  if "<" in name or not getattr(x, "__module__", None):
    raise TypeError(
      f"{where}={x!r} has no text that is the same in every process: use a dataclass "
      "or a function of a module"
    )
  return [x.__module__, name]
