"""Whether the tests notice: each mutant of `mutant_list` against the nearest tests.

  python -m tests.mutants [--only TEXT ...] [--list] [--jobs 1] [--files 6]
                          [--limit 240] [--out FILE.json] [--against FILE.json]

A mutant is caught if a test fails, or cannot be collected, with it. The tests are found
anew in any layout: files that import its module, at first those named after it. Each
runs in a temporary copy of the repository. In the end the tests that failed run once
without a mutant: one that fails there as well has caught nothing.
"""

import argparse
import ast
import collections
from concurrent import futures
import dataclasses
import itertools
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from tests.mutant_list import MUTANTS, Mutant
from tests.near_tests import Tests

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "jaxcodesign"
_CACHE = {
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
_MADE = re.compile(r"\..*|.*\.egg-info|build|dist|runs|shared")


class Code:
  """The functions of the package, read once."""

  def __init__(self, root: pathlib.Path = ROOT):
    self.texts: dict[str, str] = {}
    self.functions = collections.defaultdict(list)  # name -> (path, start, code)
    for path in sorted((root / PACKAGE).rglob("*.py")):
      name = path.relative_to(root).as_posix()
      self.texts[name] = path.read_text()
      self._read(name, ast.parse(self.texts[name]), "")

  def place(self, mutant: Mutant) -> tuple[str, int]:
    """The file, and where in it the text begins.

    Raises:
      ValueError: If no function of that name holds it, or several do.
    """
    found = [
      (path, at)
      for path, start, code in self.functions[mutant.function]
      if mutant.module in path and (at := start + _nth(code, mutant)) >= start
    ]
    if len(found) != 1:
      where = ", ".join(path for path, _ in found) or "no function"
      raise ValueError(f"{mutant.name}: {mutant.old!r} is in {where}, not in one")
    return found[0]

  def mutated(self, mutant: Mutant) -> tuple[str, str]:
    """The path of a mutant's file, and what is to be in it."""
    path, at = self.place(mutant)
    text = self.texts[path]
    return path, text[:at] + mutant.new + text[at + len(mutant.old) :]

  def _read(self, path: str, node: ast.AST, prefix: str) -> None:
    text = self.texts[path]
    lines = text.splitlines(keepends=True)
    starts = [0, *itertools.accumulate(map(len, lines))]

    def offset(line: int, column: int) -> int:  # ast counts bytes
      return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    for child in ast.iter_child_nodes(node):
      if isinstance(child, ast.ClassDef):
        self._read(path, child, f"{prefix}{child.name}.")
      if isinstance(child, ast.FunctionDef):
        start = offset(child.lineno, child.col_offset)
        code = text[start : offset(child.end_lineno, child.end_col_offset)]
        if ast.get_docstring(child, clean=False) is not None:
          said = child.body[0]
          last = offset(said.end_lineno, said.end_col_offset) - start
          first = offset(said.lineno, said.col_offset) - start
          code = code[:first] + "\0" * (last - first) + code[last:]
        self.functions[prefix + child.name].append((path, start, code))


def _nth(code: str, mutant: Mutant) -> int:
  """Offset of the nth occurrence, less than 0 without one."""
  at = -1
  for _ in range(mutant.nth):
    at = code.find(mutant.old, at + 1)
    if at < 0:
      return -(10**9)
  return at


@dataclasses.dataclass
class Outcome:
  """What became of a mutant: "caught", "survived", "late" or "broken"."""

  status: str
  test: str = ""
  seconds: float = 0.0
  note: str = ""


def copied(folder: pathlib.Path) -> pathlib.Path:
  """A copy of the working tree without what is made from it."""

  def made(at: str, names: list[str]) -> list[str]:
    top = pathlib.Path(at) == ROOT
    return [n for n in names if n == "__pycache__" or (top and _MADE.fullmatch(n))]

  return pathlib.Path(shutil.copytree(ROOT, folder, symlinks=True, ignore=made))


def pytest(tree: pathlib.Path, tests: list[str], limit: float, *options: str):
  """(exit code, None if it took too long; output) of the tests in a tree."""
  command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=no"]
  with tempfile.TemporaryFile("w+") as said:
    process = subprocess.Popen(
      [*command, "-p", "no:cacheprovider", *options, *tests],
      cwd=tree,
      # Compiled programs are kept from mutant to mutant: most are as before.
      env={"JAX_COMPILATION_CACHE_DIR": f"{tree}-compiled"}
      | dict(os.environ, PYTHONPATH=str(tree), **_CACHE),
      stdout=said,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
    try:
      code = process.wait(limit)
    except subprocess.TimeoutExpired:
      code = None
    finally:
      if process.poll() is None:  # interrupted as well: none is left behind
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    said.seek(0)
    return code, said.read()


def failed(output: str) -> list[str]:
  """Tests that failed, and files that could not be collected."""
  line = r"^(?:FAILED|ERROR) ([^\s\[]+(?:\[.*?\])?)(?: - .*)?$"
  return list(dict.fromkeys(re.findall(line, output, re.M)))


def tried(
  mutant: Mutant, code: Code, tests: list[str], tree: pathlib.Path, limit: float
) -> Outcome:
  """Runs tests with a mutant in a tree, which is as before afterwards."""
  path, text = code.mutated(mutant)
  file = tree / path
  _write(file, text)
  # Tests that have the class in their name, or the name of their file, come first.
  word, _, method = mutant.function.partition(".")
  each = [("-k", word), ("-k", f"not {word}")] if method and word[0] != "_" else [()]
  began, exit_code, output = time.perf_counter(), 5, ""
  try:
    for options in each:
      left = limit - (time.perf_counter() - began)
      last, output = pytest(tree, tests, left, "-x", *options)
      exit_code = last if last != 5 else exit_code
      if exit_code not in (0, 5):
        break
  finally:
    _write(file, code.texts[path])
  seconds = time.perf_counter() - began
  first = (failed(output) or [""])[0]
  if exit_code is None:
    return Outcome("late", seconds=seconds, note=f"not caught within {limit:g} s")
  if exit_code == 1 and first:
    return Outcome("caught", first, seconds)
  if exit_code == 2 and first:
    return Outcome("caught", first, seconds, "cannot be collected")
  if exit_code == 0:
    return Outcome("survived", seconds=seconds)
  return Outcome("broken", seconds=seconds, note=f"exit {exit_code}: {output[-300:]}")


def _write(file: pathlib.Path, text: str) -> None:
  file.write_text(text)
  # Bytecode is told apart by seconds and size, which may both be the same.
  for old in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
    old.unlink()


def run(mutants: list[Mutant], near: dict[str, list[str]], args) -> dict[str, Outcome]:
  """The outcome of each mutant, by name; prints a line for each."""
  found, lock = {}, threading.Lock()
  with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
    trees: queue.Queue[pathlib.Path] = queue.Queue()
    for i in range(args.jobs):
      trees.put(copied(pathlib.Path(folder) / str(i)))

    def one(mutant: Mutant) -> None:
      tree = trees.get()
      try:
        o = tried(mutant, Code(tree), near[mutant.name], tree, args.limit)
      finally:
        trees.put(tree)
      line = f"{o.status:9}{o.seconds:6.1f} s  {mutant.name}  {o.test} {o.note}"
      with lock:
        found[mutant.name] = o
        print(line.rstrip(), flush=True)
        _save(args.out, found, near)

    with futures.ThreadPoolExecutor(args.jobs) as pool:
      list(pool.map(one, mutants))
    _check(found, trees.get())
  _save(args.out, found, near)
  return found


def _check(found: dict[str, Outcome], tree: pathlib.Path) -> None:
  """Takes back what was caught by tests that fail without a mutant as well."""
  caught = [o for o in found.values() if o.status == "caught"]
  short = lambda test: test.split("[")[0]
  tests = sorted({short(o.test) for o in caught})
  code, output = pytest(tree, tests, 3600.0) if tests else (0, "")
  wrong = {short(test) for test in failed(output)}
  for outcome in caught:
    if short(outcome.test) in wrong:
      outcome.status, outcome.note = "survived", "fails without a mutant as well"
  said = ", ".join(sorted(wrong)) or ("none" if code == 0 else output[-300:])
  print(f"{len(tests)} catching tests without a mutant; failing: {said}")


def _save(path: str | None, found: dict[str, Outcome], near) -> None:
  if path:
    rows = {
      name: dataclasses.asdict(o) | {"files": near[name]} for name, o in found.items()
    }
    caught = sorted(name for name, o in found.items() if o.status == "caught")
    text = json.dumps({"caught": caught, "mutants": rows}, indent=2)
    pathlib.Path(path).write_text(text + "\n")


def main(argv: list[str] | None = None) -> int:
  """Runs the mutants; 1 if one of --against is no longer caught, or the list is bad."""
  parser = argparse.ArgumentParser(prog="python -m tests.mutants")
  parser.add_argument(
    "--only", default=[""], nargs="+", help="mutants with one of these in their name"
  )
  parser.add_argument("--list", action="store_true", help="print them and their tests")
  parser.add_argument("--jobs", type=int, default=1)
  parser.add_argument("--files", type=int, default=6, help="test files of a mutant")
  parser.add_argument("--limit", type=float, default=240.0, help="seconds of a mutant")
  parser.add_argument("--out", help="JSON file of the outcomes")
  parser.add_argument("--against", help="an earlier one; worse is exit code 1")
  args = parser.parse_args(argv)
  code, tests = Code(), Tests()
  asked = lambda name: any(text in name for text in args.only)
  mutants = [m for m in MUTANTS if asked(m.name)]
  near, errors = {}, []
  for mutant in mutants:
    try:
      path, _ = code.place(mutant)
      near[mutant.name] = tests.near(path, mutant.function, args.files)
    except ValueError as error:
      errors.append(str(error))
      continue
    if args.list:
      print(f"{mutant.name}  ({path})\n  {' '.join(near[mutant.name])}")
  print("\n".join(errors), file=sys.stderr, end="\n" if errors else "")
  if args.list:
    return bool(errors)
  earlier = json.loads(pathlib.Path(args.against).read_text()) if args.against else {}
  found = run([m for m in mutants if m.name in near], near, args)
  count = collections.Counter(o.status for o in found.values())
  print(", ".join(f"{n} {status}" for status, n in count.most_common()))
  caught = {name for name, o in found.items() if o.status == "caught"}
  lost = [n for n in earlier.get("caught", []) if asked(n) and n not in caught]
  for name in lost:
    now = found[name].status if name in found else "not in the list"
    print(f"caught before, now {now}: {name}", file=sys.stderr)
  return bool(errors or lost)


if __name__ == "__main__":
  sys.exit(main())
