"""Files that are whole or absent, or refused; errors that tell the way out."""

import errno
import json
import math
import os
import pathlib
from typing import Any


def write_atomically(path: str | pathlib.Path, content: str | bytes) -> None:
  """Writes `path` so that at any time it holds its old content or all of the new.

  Args:
    path: Its folder must exist.
    content: Text is written as UTF-8 with its line ends unchanged.

  Raises:
    OSError: naming the file, the reason and the way out; what `path` held before is
      untouched and nothing else is left behind.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
  try:
    with temporary.open("wb") as file:
      file.write(content.encode() if isinstance(content, str) else content)
      file.flush()
      os.fsync(file.fileno())
    temporary.replace(path)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise cannot_write(path, error) from error


def read_json(path: str | pathlib.Path, *, way_out: str) -> Any:
  """What a file of JSON holds, as strict JSON: no NaN and no infinity.

  Args:
    path: Of the file.
    way_out: What to do about a damaged one.

  Raises:
    OSError: If it cannot be opened.
    ValueError: If it is damaged, with its name and the place.
  """
  content = pathlib.Path(path).read_bytes()
  try:
    return strict_json(content)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is damaged ({error}); {way_out}") from error


def strict_json(content: bytes) -> Any:
  """Parses JSON in UTF-8, in which every number is finite.

  Raises:
    ValueError, RecursionError: If it is none.
  """
  text = content.decode()
  return json.loads(
    text,
    parse_constant=_finite,
    parse_float=_finite,
    parse_int=_whole,
  )


def _finite(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f"{text:.20} is no finite number")
  return value


def _whole(text: str) -> int:
  _finite(text)
  return int(text)


def cannot_write(path: pathlib.Path, error: OSError) -> OSError:
  """Returns the error to raise when `path` could not be written because of `error`."""
  full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  way_out = "free some space" if full else "check that the folder may be written to"
  return OSError(
    f"cannot write {path}: {error.strerror or error}; nothing half-written is left; "
    f"{way_out}, or choose another folder with --out"
  )
