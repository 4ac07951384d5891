"""Damages files of every kind, and reads them: to a value, or to one clear error.

python -m tests.fuzz                         # 5,000 mutations of each kind, minutes
python -m tests.fuzz --mutations 100 model.gguf metrics.jsonl

A reader may return, with a warning where it left something out, or raise a ValueError
or an OSError that names the file. Anything else is a traceback to its user.
"""

import argparse
import collections
from collections.abc import Iterator
import json
import pathlib
import resource
import signal
import sys
import tempfile
import traceback
from typing import Any, NamedTuple
import warnings

import numpy as np

from tests import fuzz_files
from tests.fuzz_files import Kind

_PATIENCE_S = 20
_ROOM = 16 * 2**30  # bytes of address space: a size that is nonsense is an error
_VALUES = (
  None,
  True,
  "",
  "x",
  "\0",
  [],
  {},
  [[]],
  -1,
  0,
  1.5,
  10**400,
  "1e999",
  [None],
)
_BYTES = (0, 1, 0x0A, 0x22, 0x7B, 0x7F, 0x80, 0xFF)


class Found(NamedTuple):
  """What came of the mutations of one kind."""

  read: int
  refused: int
  faults: list[str]


def mutations(content: bytes, number: int, seed: int) -> Iterator[bytes]:
  """`number` damaged versions of `content`, equal for equal seeds.

  Half of those of JSON are JSON again, with another value somewhere.
  """
  rng = np.random.default_rng(seed)
  try:
    tree = json.loads(content)
  except ValueError:
    tree = None
  for i in range(number):
    if tree is not None and i % 2:
      yield _other_value(json.loads(content), rng)
    else:
      yield _other_bytes(content, rng)


def _other_bytes(content: bytes, rng: np.random.Generator) -> bytes:
  found = bytearray(content)
  for _ in range(int(rng.choice([1, 1, 1, 2, 8]))):
    # Headers and indices, where sizes are, lie at both ends.
    at = int(rng.integers(len(found) + 1))
    if rng.random() < 0.3:
      at = min(at, int(rng.integers(64)))
    elif rng.random() < 0.2:
      at = max(at, len(found) - int(rng.integers(1, 128)))
    at, size = max(0, min(at, len(found) - 1)), int(rng.integers(1, 9))
    if not found:
      break
    match int(rng.integers(7)):
      case 0:
        found[at] ^= 1 << int(rng.integers(8))
      case 1:
        found[at] = int(rng.choice(_BYTES))
      case 2:
        del found[at:]
      case 3:
        del found[at : at + size]
      case 4:
        found[at:at] = rng.bytes(size)
      case 5:
        found[at : at + size] = rng.bytes(size)
      case _:
        found[at:at] = found[at : at + 8 * size]
  return bytes(found)


def _other_value(tree: Any, rng: np.random.Generator) -> bytes:
  places: list[tuple[Any, Any]] = []
  todo = [tree]
  while todo:
    inside = todo.pop()
    keys = inside if isinstance(inside, dict) else range(len(inside))
    for key in keys:
      places.append((inside, key))
      if isinstance(inside[key], dict | list):
        todo.append(inside[key])
  place, key = places[int(rng.integers(len(places)))]
  if rng.random() < 0.2:
    del place[key]
  else:
    place[key] = _VALUES[int(rng.integers(len(_VALUES)))]
  text = json.dumps(tree).replace('"1e999"', str(rng.choice(["1e999", "NaN", "-1e99"])))
  return text.encode()


def fuzz(kind: Kind, number: int, seed: int) -> Found:
  """Reads `number` damaged versions of a file, which is whole again afterwards."""
  content, counts = kind.path.read_bytes(), collections.Counter()
  faults: dict[str, str] = {}
  try:
    kind.read()
    for i, damaged in enumerate(mutations(content, number, seed)):
      kind.path.write_bytes(damaged)
      how, words = _outcome(kind)
      counts[how] += 1
      if how == "fault":
        faults.setdefault(words.splitlines()[-1][:80], f"mutation {i}: {words}")
  finally:
    kind.path.write_bytes(content)
  return Found(counts["read"], counts["refused"], list(faults.values()))


def _outcome(kind: Kind) -> tuple[str, str]:
  signal.alarm(_PATIENCE_S)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      kind.read()
  except (ValueError, OSError) as error:
    names = {kind.path.name, *(p.name for p in kind.path.parents if p.name)}
    if isinstance(error, TimeoutError) or not any(n in str(error) for n in names):
      return "fault", f"the file is not named\n{type(error).__name__}: {error}"
    return "refused", str(error)
  except BaseException as error:  # a panic of Rust is no Exception
    if isinstance(error, KeyboardInterrupt):
      raise
    return "fault", traceback.format_exc()
  finally:
    signal.alarm(0)
  return "read", ""


def _late(*_: Any) -> None:
  raise TimeoutError(f"not read within {_PATIENCE_S} s")


def main(argv: list[str]) -> int:
  """Prints a line a kind; 1 if anything was neither read nor refused."""
  parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
  parser.add_argument("kinds", nargs="*")
  parser.add_argument("--mutations", type=int, default=5000)
  parser.add_argument("--seed", type=int, default=0)
  asked = parser.parse_args(argv)
  signal.signal(signal.SIGALRM, _late)
  resource.setrlimit(resource.RLIMIT_AS, (_ROOM, resource.RLIM_INFINITY))
  wrong = 0
  with tempfile.TemporaryDirectory() as scratch:
    kinds = fuzz_files.kinds(pathlib.Path(scratch))
    for name in asked.kinds or kinds:
      found = fuzz(kinds[name], asked.mutations, asked.seed)
      wrong += len(found.faults)
      print(
        f"{name:32} {asked.mutations:6,} mutations: {found.read:5,} read, "
        f"{found.refused:5,} refused, {len(found.faults)} kinds of tracebacks",
        flush=True,
      )
      for words in found.faults:
        print(words)
  return int(wrong > 0)


if __name__ == "__main__":
  raise SystemExit(main(sys.argv[1:]))
