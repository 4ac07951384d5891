"""Arrays in a folder that is whole or damaged, and never in doubt.

A sealed folder holds `part/`, as orbax writes it, and `checkpoint.json`: what the
caller wants to remember, and a digest of every file. The digests are compared before
orbax reads a byte, so that damage is one clear error instead of a wrong weight or an
exception from inside a thread.
"""

from collections.abc import Mapping
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import jax

from jaxcodesign.runs.disk import files

RECORD = "checkpoint.json"
# What reading one raises that is cut off, no JSON, or JSON of something else.
_NO_RECORD = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


class Damaged(ValueError):
  """A folder that is not what was sealed; `reason` says where."""

  def __init__(self, folder: pathlib.Path, reason: str):
    super().__init__(
      f"the checkpoint {folder} is damaged ({reason}); delete the folder to train again"
    )
    self.reason = reason


def seal(folder: pathlib.Path, part: str, record: Mapping[str, Any]) -> None:
  """Writes `record` beside the files of `folder`/`part`, with their digests.

  Raises:
    OSError: if it cannot be written.
    ValueError, TypeError: if `record` is not JSON.
  """
  full = dict(record) | {"files": _digests(folder / part)}
  text = json.dumps(full | {"digest": digest(full)}, indent=2, allow_nan=False)
  files.write_atomically(folder / RECORD, text)


def read(folder: pathlib.Path) -> dict[str, Any]:
  """Returns what `seal` wrote, its own digest taken off; the files are not read.

  Raises:
    Damaged: if it is missing or not what was written.
  """
  try:
    record = json.loads((folder / RECORD).read_bytes())
    mark = record.pop("digest")
  except _NO_RECORD as error:
    raise Damaged(folder, f"{RECORD} cannot be read: {error!r}") from error
  if mark != digest(record):
    raise Damaged(folder, f"{RECORD} is not the file that was saved")
  return record


def verify(folder: pathlib.Path, part: str, record: Mapping[str, Any]) -> None:
  """Reads every file of `folder`/`part`.

  Raises:
    Damaged: naming a file that is missing, changed or new since `seal`.
  """
  found = _digests(folder / part)
  for name in {**record["files"], **found}:
    if found.get(name) != record["files"].get(name):
      raise Damaged(folder, f"{part}/{name} is not the file that was saved")


def swap(new: pathlib.Path, folder: pathlib.Path, old: pathlib.Path) -> None:
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


def reserve(path: pathlib.Path, size: int) -> None:
  """Raises OSError unless `size` bytes and some more can be written at `path`."""
  # A full disk is found here, in one thread: inside orbax it leaves threads behind
  # that wait, and log, for minutes.
  size += 2**20
  with path.open("wb") as file:
    if hasattr(os, "posix_fallocate"):
      os.posix_fallocate(file.fileno(), 0, size)
    else:
      for _ in range(size // 2**20):
        file.write(bytes(2**20))
  path.unlink()


def kinds(tree: Any) -> dict[str, str]:
  """Kind of each leaf by its name, as in {"conv1/bias": "float32[16]"}."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}"
    for path, x in jax.tree.leaves_with_path(tree)
  }


def match(folder: pathlib.Path, found: Mapping[str, str], like: Any) -> None:
  """Compares the kinds of leaves in a record with those of `like`.

  Raises:
    ValueError: naming the first leaf that differs.
  """
  wanted = kinds(like)
  if found != wanted:
    name = next(n for n in {**wanted, **found} if found.get(n) != wanted.get(n))
    raise ValueError(
      f"the checkpoint {folder} is of another model: {name} is "
      f"{found.get(name, 'absent')}, expected {wanted.get(name, 'absent')}; delete the "
      "folder or choose another"
    )


def targets(like: Any) -> Any:
  """`like` as orbax wants it: ShapeDtypeStructs that all have a sharding."""
  default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=getattr(x, "sharding", None) or default
    ),
    like,
  )


def digest(record: Mapping[str, Any]) -> str:
  """Returns a text that depends on all that `record` says."""
  return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _digests(folder: pathlib.Path) -> dict[str, str]:
  """Digest of each file under `folder` by its relative path."""
  return {
    path.relative_to(folder).as_posix(): _digest_of(path)
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def _digest_of(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
