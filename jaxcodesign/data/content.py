"""What examples are, in a few words: two runs that learn from others are told apart.

A content is {"train": {"examples": 10000, "digest": "3f..."}, "test": {...}}, as JSON
holds it. It stands beside a run's checkpoints and not in the fingerprint of its config,
since a person may accept other data, and no other config.
"""

from collections.abc import Iterable, Mapping
import hashlib
from typing import Any

import numpy as np

Content = Mapping[str, Mapping[str, int | str]]

# Bytes of an array that are read whole, and what is read of a larger one.
_WHOLE, _PIECES, _PIECE = 2**30, 1024, 2**16


def digest(*parts: Any) -> str:
  """Returns 16 hex digits of arrays, and of what is no array by its repr.

  An array counts whole, with dtype and shape; of one above 1 GiB (a memory map of text)
  1,024 pieces of 64 KiB do, evenly spread, the first and the last bytes among them.
  """
  found = hashlib.sha256()
  for part in parts:
    if not hasattr(part, "dtype"):
      found.update(repr(part).encode())
      continue
    x = np.ascontiguousarray(part)
    found.update(f"{x.dtype}{list(x.shape)}".encode())
    flat = x.reshape(-1).view(np.uint8)
    if flat.size <= _WHOLE:
      found.update(flat.data)
      continue
    for start in np.linspace(0, flat.size - _PIECE, _PIECES).astype(np.int64):
      found.update(flat[start : start + _PIECE].data)
  return found.hexdigest()[:16]


def differences(old: Any, new: Any, where: str = "") -> list[str]:
  """One line, "train.epochs: 3 -> 4", for each place where two plain configs differ."""
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    names = dict.fromkeys([*old, *new])
    parts = [(name, old.get(name), new.get(name)) for name in names]
  elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
    parts = [(i, *pair) for i, pair in enumerate(zip(old, new))]
  else:
    return [] if old == new else [f"{where or 'config'}: {old} -> {new}"]
  return [
    line
    for name, a, b in parts
    for line in differences(a, b, f"{where}.{name}" if where else str(name))
  ]


def check(old: Content | None, new: Content, where: Any, *, accept: bool) -> None:
  """Refuses data that are not those that `where` learned from.

  Args:
    old: Of its examples; None if that is not known.
    new: Of the present ones.
    where: Run or checkpoint, for the message.
    accept: Whether other data are welcome.

  Raises:
    ValueError: With each difference and the way out.
  """
  lines = [] if old is None or accept else differences(old, new)
  if lines:
    raise ValueError(
      f"{where} was trained on other data; they differ in\n  "
      + "\n  ".join(lines)
      + "\nput the data back, say --accept-data to go on with these, or name another "
      "--out"
    )


def of_files(files: Iterable[tuple[str, int]], sample: Iterable[bytes]) -> str:
  """Returns 16 hex digits of a folder: names and sizes of all files, bytes of some."""
  found = hashlib.sha256(repr(list(files)).encode())
  for content in sample:
    found.update(hashlib.sha256(content).digest())
  return found.hexdigest()[:16]
