"""Trained parameters on disk: whole or absent, and never those of another config.

A checkpoint is a folder: `params/` as orbax writes it and `checkpoint.json` with the
caller's metadata, the names, dtypes and shapes of the leaves, and a digest of every
file. The digests are compared before orbax reads a byte, so that damage is one clear
error instead of a wrong weight or an exception from inside a thread.
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

from jaxcodesign.training import experiment

_RECORD = "checkpoint.json"


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
  record = {"metadata": dict(metadata), "leaves": _leaves(params)}
  json.dumps(record, allow_nan=False)
  # A killed process may have had the same id, in a container above all.
  shutil.rmtree(temporary, ignore_errors=True)
  try:
    temporary.mkdir()
    _reserve(temporary / "reserved", sum(x.nbytes for x in jax.tree.leaves(params)))
    _save_arrays(temporary / "params", params)
    record["files"] = _digests(temporary / "params")
    text = json.dumps(record | {"digest": _digest(record)}, indent=2, allow_nan=False)
    experiment.write_atomically(temporary / _RECORD, text)
    _swap(temporary, folder, old)
  except OSError as error:
    raise experiment.cannot_write(folder, error) from error
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
  record = _read_record(folder)
  if fingerprint is not None and record["metadata"].get("fingerprint") != fingerprint:
    return None
  found, wanted = record["leaves"], _leaves(like)
  if found != wanted:
    name = next(n for n in {**wanted, **found} if found.get(n) != wanted.get(n))
    raise ValueError(
      f"the checkpoint {folder} is of another model: {name} is "
      f"{found.get(name, 'absent')}, expected {wanted.get(name, 'absent')}; delete the "
      "folder or choose another"
    )
  digests = _digests(folder / "params")
  for name in {**record["files"], **digests}:
    if digests.get(name) != record["files"].get(name):
      raise _damaged(folder, f"params/{name} is not the file that was saved")
  default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=getattr(x, "sharding", None) or default
    ),
    like,
  )
  return ocp.load(str(folder / "params"), target), record["metadata"]


def digest(folder: str | pathlib.Path) -> str:
  """Returns a text that changes with any weight of the checkpoint in `folder`.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if its record is damaged.
  """
  folder = pathlib.Path(folder).expanduser().absolute()
  if not folder.exists():
    raise FileNotFoundError(f"no checkpoint in {folder}: train one, or name its folder")
  return _digest(_read_record(folder))


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


def _leaves(tree: Any) -> dict[str, str]:
  """Kind of each leaf by its name, as in {"conv1/bias": "float32[16]"}."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): (
      f"{np.dtype(x.dtype)}{list(x.shape)}"
    )
    for path, x in jax.tree.leaves_with_path(tree)
  }


def _reserve(path: pathlib.Path, size: int) -> None:
  """Raises OSError unless `size` bytes and some more can be written at `path`."""
  # A full disk is found here, in one thread: inside orbax it leaves threads behind
  # that wait, and log, for minutes.
  with path.open("wb") as file:
    for _ in range(size // 2**20 + 1):
      file.write(bytes(2**20))
  path.unlink()


def _save_arrays(path: pathlib.Path, params: Any) -> None:
  try:
    ocp.save(str(path), params)
  except ValueError as error:
    # What tensorstore raises when the disk fills up all the same.
    raise OSError(str(error)) from error


def _swap(new: pathlib.Path, folder: pathlib.Path, old: pathlib.Path) -> None:
  """Puts `new` in the place of `folder`, which moves to `old`, or changes nothing."""
  shutil.rmtree(old, ignore_errors=True)
  if folder.exists():
    folder.rename(old)
  try:
    new.rename(folder)
  except OSError:
    if old.exists():
      old.rename(folder)
    raise


def _digests(folder: pathlib.Path) -> dict[str, str]:
  """Digest of each file under `folder` by its relative path."""
  return {
    path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def _digest(record: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _read_record(folder: pathlib.Path) -> dict[str, Any]:
  """What `save` wrote beside the parameters, its digest taken off."""
  try:
    record = json.loads((folder / _RECORD).read_bytes())
    digest = record.pop("digest")
  except (OSError, ValueError, KeyError, AttributeError) as error:
    raise _damaged(folder, f"{_RECORD} cannot be read: {error!r}") from error
  if digest != _digest(record):
    raise _damaged(folder, f"{_RECORD} is not the file that was saved")
  return record


def _damaged(folder: pathlib.Path, reason: str) -> ValueError:
  return ValueError(
    f"the checkpoint {folder} is damaged ({reason}); delete the folder to train again"
  )
