"""Trained parameters on disk: whole or absent, and never those of another config.

A checkpoint is a sealed folder: `params/` as orbax writes it and `checkpoint.json` with
the caller's metadata, the names, dtypes and shapes of the leaves, and digests.
"""

from collections.abc import Mapping
import dataclasses
import enum
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxcodesign.runs import files, sealed


def save(folder: str | pathlib.Path, params: Any, metadata: Mapping[str, Any]) -> None:
  """Writes a checkpoint, in place of one that is there.

  It is written beside `folder` and renamed: a killed run leaves the old checkpoint, the
  new one or none, and at worst a hidden temporary folder next to it.

  Args:
    folder: Of the checkpoint; the one above it must exist.
    params: Tree of arrays; names of leaves must not repeat.
    metadata: What JSON can hold: strings, finite numbers, lists, dicts. Under
      "fingerprint" it names the config that `restore` compares.

  Raises:
    OSError: if the disk is full or the folder cannot be written, naming the way out.
    ValueError, TypeError: if `metadata` is not JSON.
  """
  folder = pathlib.Path(folder).expanduser().absolute()
  beside = lambda kind: folder.with_name(f".{folder.name}.{os.getpid()}.{kind}")
  temporary, old = beside("new"), beside("old")
  record = {"metadata": dict(metadata), "leaves": sealed.kinds(params)}
  json.dumps(record, allow_nan=False)
  # A killed process may have had the same id, in a container above all.
  shutil.rmtree(temporary, ignore_errors=True)
  try:
    temporary.mkdir()
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    sealed.reserve(temporary / "reserved", size)
    _save_arrays(temporary / "params", params)
    sealed.seal(temporary, "params", record)
    sealed.swap(temporary, folder, old)
  except OSError as error:
    raise files.cannot_write(folder, error) from error
  finally:
    for leftover in (temporary, old):
      shutil.rmtree(leftover, ignore_errors=True)


def restore(
  folder: str | pathlib.Path, like: Any, *, fingerprint: str | None = None
) -> tuple[Any, dict[str, Any]] | None:
  """Returns the parameters and the metadata that `save` was given.

  Args:
    folder: Of the checkpoint.
    like: Tree of arrays or ShapeDtypeStructs: the structure, shapes, dtypes and, where
      it has any, shardings to restore to.
    fingerprint: If given, of the config that asks.

  Returns:
    (params, metadata), bit for bit; None if there is no checkpoint or it was saved
    under another fingerprint.

  Raises:
    ValueError: if the checkpoint is damaged, or its leaves are not those of `like`;
      the message names the folder and the way out.
  """
  folder = pathlib.Path(folder).expanduser().absolute()
  if not folder.exists():
    return None
  record = sealed.read(folder)
  if fingerprint is not None and record["metadata"].get("fingerprint") != fingerprint:
    return None
  sealed.match(folder, record["leaves"], like)
  sealed.verify(folder, "params", record)
  return ocp.load(str(folder / "params"), sealed.targets(like)), record["metadata"]


def digest(folder: str | pathlib.Path) -> str:
  """Returns a text that changes with any weight of the checkpoint in `folder`.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if its record is damaged.
  """
  folder = pathlib.Path(folder).expanduser().absolute()
  if not folder.exists():
    raise FileNotFoundError(f"no checkpoint in {folder}: train one, or name its folder")
  return sealed.digest(sealed.read(folder))


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


def _save_arrays(path: pathlib.Path, params: Any) -> None:
  try:
    ocp.save(str(path), params)
  except ValueError as error:
    # What tensorstore raises when the disk fills up all the same.
    raise OSError(str(error)) from error
