"""Files that are whole or absent, and errors that tell the way out."""

import errno
import os
import pathlib


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


def cannot_write(path: pathlib.Path, error: OSError) -> OSError:
  """Returns the error to raise when `path` could not be written because of `error`."""
  full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  way_out = "free some space" if full else "check that the folder may be written to"
  return OSError(
    f"cannot write {path}: {error.strerror or error}; nothing half-written is left; "
    f"{way_out}, or choose another folder with --out"
  )
