"""What a run's folder says about the run: its config, and where it comes from.

config.json    the config as nested dicts, and what the data were
origin.json    command, git revision, package versions, devices; one entry a start
"""

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import time
from typing import Any
import warnings

import jax
import numpy as np

from jaxcodesign import tree
from jaxcodesign.data.content import Content, differences
from jaxcodesign.runs.disk import files
from jaxcodesign.runs.job import TrainJob

# Options of jax that change the bits of a training, of those that a release has.
_OPTIONS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl",
            "jax_threefry_partitionable")  # fmt: skip
_STARTS = "origin.json"
PACKAGES = ("jaxcodesign", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint",
            "grain", "numpy")  # fmt: skip


def decisive(job: TrainJob) -> dict[str, Any]:
  """What decides the numbers of a run: the config without how it is run."""
  found = plain(job)
  del found["run"]
  return found


def numbers() -> dict[str, Any]:
  """Options of jax in this process that decide the numbers of a run besides its config.

  Under x64 the same config draws and adds other bits.
  """
  return {name: getattr(jax.config, name, None) for name in _OPTIONS}


def check(job: TrainJob, folder: pathlib.Path) -> bool:
  """Whether `folder` holds a run of this config; False if it holds none.

  Raises:
    ValueError: If it holds one of another config or other `numbers`, saying what
      differs.
  """
  path = folder / "config.json"
  if not path.is_file():
    return False
  try:
    found = files.strict_json(path.read_bytes())
    lines = differences(found["job"], decisive(job))
    lines += differences(found.get("numbers", numbers()), numbers(), "numbers")
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise ValueError(
      f"{path} is damaged ({error!r}): put it back, or name another --out"
    ) from error
  if lines:
    raise ValueError(
      f"{folder} holds a run of another config; it differs in\n  "
      + "\n  ".join(lines)
      + "\nrun with its config to go on, name another --out, or delete the folder"
    )
  return True


def write(
  job: TrainJob, folder: pathlib.Path, command: str, data: Content | None = None
) -> None:
  """Writes config.json, and adds this start to origin.json.

  Raises:
    OSError: naming the file, the reason and the way out.
  """
  decided = {"job": decisive(job), "numbers": numbers(), "data": data}
  config = decided | {"run": plain(job.run)}
  _write(folder / "config.json", config)
  starts, path = origin(folder), folder / _STARTS
  if not starts and path.is_file():
    path.replace(path.with_suffix(".damaged"))  # a person may still read it
  _write(path, [*starts, _start(command)])


def origin(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Every start of the run in `folder`, the oldest first.

  [] if there is none, with a warning if the file is damaged.
  """
  path = folder / _STARTS
  if not path.is_file():
    return []
  try:
    found = files.read_json(path, way_out="earlier starts are not told")
    if not isinstance(found, list) or not all(map(_is_start, found)):
      raise ValueError(f"{path} is damaged: it is no list of starts")
  except (OSError, ValueError) as error:
    warnings.warn(str(error), stacklevel=2)
    return []
  return found


def _is_start(found: Any) -> bool:
  return isinstance(found, dict) and isinstance(found.get("command"), str)


def _start(command: str) -> dict[str, Any]:
  return {
    "command": command,
    "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    "revision": revision(),
    "packages": versions(),
    "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
    "processes": jax.process_count(),
  }


def revision() -> str:
  """Git's revision of this library, "+" where files have changed; "" if unknown."""
  here = pathlib.Path(__file__).parent

  def git(*arguments: str) -> str:
    done = subprocess.run(
      ["git", "-C", str(here), *arguments],
      capture_output=True,
      text=True,
      check=True,
      timeout=10,
    )
    return done.stdout.strip()

  try:
    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
  except (OSError, subprocess.SubprocessError):
    return ""


def versions() -> dict[str, str]:
  """Versions of Python and of the packages that numbers depend on; "" if unknown."""
  return {"python": platform.python_version()} | {n: _version(n) for n in PACKAGES}


def plain(value: Any) -> Any:
  """A config as nested dicts and lists, each dataclass with its class under "is"."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return {"is": type(value).__name__, **fields}
  if isinstance(value, tuple | list):
    return [plain(item) for item in value]
  if value is None or isinstance(value, str | bool | int | float):
    return value
  return np.asarray(value).tolist() if tree.is_array(value) else str(value)


def _version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return ""


def _write(path: pathlib.Path, content: Any) -> None:
  files.write_atomically(path, json.dumps(content, indent=2) + "\n")


def without_run(job: TrainJob) -> TrainJob:
  """The job as its fingerprint sees it."""
  return dataclasses.replace(job, run=type(job.run)())
