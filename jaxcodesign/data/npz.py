"""Arrays in an .npz file: all that was asked for, or one error that names the file."""

from collections.abc import Mapping
import io
import pathlib

import numpy as np


def read(
  path: str | pathlib.Path,
  wanted: Mapping[str, int] | None = None,
  *,
  way_out: str = "fetch it again",
) -> dict[str, np.ndarray]:
  """Reads an .npz file.

  Args:
    path: Of the file.
    wanted: Number of dimensions of each array that must be there; None takes what there
      is.
    way_out: What to do about a damaged file.

  Raises:
    OSError: If it cannot be opened.
    ValueError: If it is damaged or lacks an array; the message names it.
  """
  content = pathlib.Path(path).read_bytes()
  try:
    with np.load(io.BytesIO(content)) as file:
      found = {name: file[name] for name in (file.files if wanted is None else wanted)}
    for name, ndim in (wanted or {}).items():
      if found[name].ndim != ndim:
        raise ValueError(f"{name} has {found[name].ndim} dimensions, not {ndim}")
  # A bit in the wrong place may be the size of an array, a method of compression, an
  # encrypted file: zipfile, zlib and numpy raise half a dozen kinds of errors.
  except Exception as error:
    raise ValueError(
      f"{path} is damaged ({type(error).__name__}: {error}); {way_out}"
    ) from error
  return found
