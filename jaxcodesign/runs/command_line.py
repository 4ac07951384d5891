"""How a config file becomes a run: loading it, overriding its fields, its folder.

A config is a Python file with a docstring and a function `config()`, and `smoke()` for
--smoke, that return frozen dataclasses of real objects. Nothing is registered and
nothing is looked up by name.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import inspect
import pathlib
import re
import sys
import tempfile
import traceback
import types
from typing import Any

from jaxcodesign.data.cache import expanded
from jaxcodesign.runs import help, overrides
from jaxcodesign.runs.disk import files
from jaxcodesign.runs.disk.lock import FolderLock
from jaxcodesign.runs.overrides import ConfigError

_LONGEST = 80  # letters of a folder's name that tell what was overridden


@dataclasses.dataclass(frozen=True)
class Launch:
  """A parsed command line.

  Attributes:
    config: What the file's `config()` or `smoke()` returned, overrides applied.
    name: Of the run: the file's stem, with `_smoke` under --smoke and with what was
      overridden, so that neither writes where the config's own run did. Fields of
      `run`, which decide no number, are left out.
    path: The config file.
    out: Folder of all runs.
    dry_run: Compile and print costs, run no step.
    smoke: Whether `smoke()` was asked for.
    accept_data: Whether a run may go on although its data have changed.
  """

  config: Any
  name: str
  path: pathlib.Path
  out: pathlib.Path
  dry_run: bool
  smoke: bool
  accept_data: bool = False


def load(
  path: str | pathlib.Path,
  configs: str | pathlib.Path = "configs",
  smoke: bool = False,
) -> types.ModuleType:
  """Imports a config file.

  Args:
    path: Of the file, as the file system has it.
    configs: Folder whose files are offered where `path` is no Python file at all.
    smoke: Whether its function `smoke` is wanted.

  Returns:
    The module, with a function `config`, one `smoke` if wanted, and a docstring.

  Raises:
    ConfigError: if the file is missing (with the nearest name and the choices in its
      folder), fails to import (with its line), or lacks one of these.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    folder = path.parent if path.suffix == ".py" else pathlib.Path(configs)
    hint = "" if path.suffix == ".py" else " (CONFIG comes before overrides)"
    raise ConfigError(f"no config file {path}{hint}{_choices(folder, path.name)}")
  spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
  if spec is None or spec.loader is None:
    raise ConfigError(f"{path} is not a Python file{_choices(path.parent)}")
  module = importlib.util.module_from_spec(spec)
  # Dataclasses look their module up by name while they are made.
  sys.modules[spec.name] = module
  # Compiled here: nothing is written beside the config, and no stale bytecode is read.
  # Under -OO as under -O: its docstring is what --help shows.
  code = lambda: compile(
    path.read_bytes(), str(path), "exec", optimize=min(sys.flags.optimize, 1)
  )
  _run(path, lambda: exec(code(), vars(module)))
  if not inspect.isfunction(getattr(module, "config", None)):
    raise ConfigError(f"{path} has no function config(){_choices(path.parent)}")
  if smoke and not inspect.isfunction(getattr(module, "smoke", None)):
    raise ConfigError(
      f"{path} has no function smoke(): write one that returns a small config, or "
      "leave --smoke out"
    )
  if not module.__doc__:
    raise ConfigError(f"{path} has no docstring: state its command and expected result")
  return module


def parse(
  argv: Sequence[str],
  *,
  prog: str,
  kinds: tuple[type, ...] = (),
  configs: str | pathlib.Path = "configs",
) -> Launch:
  """Reads a command line: CONFIG [--smoke] [--dry-run] [--out DIR] [--field VALUE].

  CONFIG comes before overrides. --help after a CONFIG lists its groups of fields,
  --help GROUP the fields of one, --help-all all of them; without a CONFIG it lists the
  files in `configs` that name `prog` in their docstring. Field names may be written
  with - or _. Overriding keeps types: an int field refuses 0.5.

  Args:
    argv: Arguments without the program's name, as in sys.argv[1:].
    prog: How the program is called, for messages: "python -m launch.codesign".
    kinds: Of configs that it runs, dataclasses; () for any.
    configs: Folder whose files are offered where CONFIG is missing.

  Raises:
    SystemExit: 0 after --help; 2 after one message on standard error for a missing or
      broken config file, an unknown field (naming the nearest), or a bad value.
  """
  argv = list(argv)
  try:
    at = _position(argv)
    if at is None:
      raise _without_config(argv, prog, pathlib.Path(configs))
    path = pathlib.Path(argv.pop(at))
    smoke = "--smoke" in argv
    module = load(path, configs, smoke)
    value = _run(path, module.smoke if smoke else module.config)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
      raise ConfigError(f"{path} must return a frozen dataclass, not {value!r}")
    if kinds and not isinstance(value, kinds):
      raise ConfigError(_of_another(path, module.__doc__ or "", value, kinds))
    called, told = f"{prog} {path}", inspect.cleandoc(module.__doc__ or "")
    if {"-h", "--help", "--help-all"} & {*argv}:
      print(_helped(argv, called, told, value), end="")
      raise SystemExit(0)
    flags, changed = overrides.override(
      _Flags(), value, argv, prog=called, description=told
    )
    name = f"{path.stem}_smoke" if smoke else path.stem
    name += _difference(value, changed)
  except ConfigError as error:
    print(f"{prog}: {error}", file=sys.stderr)
    raise SystemExit(2) from error
  out = expanded(flags.out)
  return Launch(changed, name, path, out, flags.dry_run, smoke, flags.accept_data)


def run_folder(base: str | pathlib.Path, name: str) -> pathlib.Path:
  """Returns the folder `base`/`name`, created, after a file could be written into it.

  Call it before any work: an hour of training must not end in a permission error.

  Raises:
    OSError: naming the folder, the reason and the way out.
  """
  folder = expanded(base) / name
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as probe:
      probe.write(b"writable")
      probe.flush()
  except OSError as error:
    raise files.cannot_write(folder, error) from error
  return folder


@contextlib.contextmanager
def own_folder(
  base: str | pathlib.Path, name: str, *, first: bool = True
) -> Iterator[pathlib.Path]:
  """The folder of a run, this program's alone while the context is open.

  Nothing in it is touched before it is: a second run is refused as it would be without
  the folder. Folders that were made and stay empty are removed again.

  Args:
    base: Folder of all runs.
    name: Of the run.
    first: Whether this is the one process of the run that keeps others out.

  Raises:
    OSError: As `run_folder`, or if another run that lives has it open.
  """
  missing = [f for f in (expanded(base),) if not f.exists()]
  folder = run_folder(base, name)
  if not first:
    yield folder
    return
  lock = FolderLock(folder)
  try:
    yield folder
  finally:
    lock.release()
    inside = sorted((f for f in folder.rglob("*") if f.is_dir()), reverse=True)
    for empty in (*inside, folder, *missing):
      with contextlib.suppress(OSError):
        empty.rmdir()


@dataclasses.dataclass(frozen=True)
class _Flags:
  """The options of every program."""

  smoke: bool = False
  """Take the file's smoke() instead of its config(): small, done in seconds."""
  dry_run: bool = False
  """Compile, print memory and cost, run no step."""
  accept_data: bool = False
  """Go on with a run although its data are not those that it was trained on so far."""
  out: pathlib.Path = pathlib.Path("runs")
  """Folder of all runs; this one writes into a folder of its name."""


def _difference(old: Any, new: Any) -> str:
  """What sets a config apart, as the end of a folder's name; "" if nothing does."""
  pairs = zip(help.fields(old), help.fields(new), strict=True)
  parts = [
    f"{field.name}-{','.join(dict.fromkeys(field.defaults))}"
    for before, field in pairs
    if before != field and "run" not in field.name.split(".")[:2]
  ]
  said = re.sub(r"[^\w.,+-]+", "", "_".join(parts))
  if len(said) > _LONGEST:
    said = f"{said[: _LONGEST - 9]}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
  return f"_{said}" if said else ""


def _helped(argv: list[str], prog: str, description: str, config: Any) -> str:
  """What --help and what follows it asks for."""
  if "--help-all" in argv:
    return help.detailed(config)
  at = next(i for i, argument in enumerate(argv) if argument in ("-h", "--help"))
  asked = argv[at + 1 : at + 2]
  if asked and (not asked[0].startswith("--") or "." in asked[0]):
    return help.detailed(config, asked[0])
  return help.general(prog, description, _Flags(), config)


def _of_another(
  path: pathlib.Path, doc: str, value: Any, kinds: tuple[type, ...]
) -> str:
  """That a config is of another program, and of which one it says that it is."""
  found = re.search(r"python -m [\w.]+", doc)
  wanted = " or ".join(kind.__name__ for kind in kinds)
  way_out = f"; it is run by {found[0]} {path}" if found else ""
  return f"{path} is a {type(value).__name__}, no {wanted}{way_out}"


def _position(argv: list[str]) -> int | None:
  """Where CONFIG is: the first argument that is no option, nor --out's value."""
  for i, argument in enumerate(argv):
    if not argument.startswith("-") and (i == 0 or argv[i - 1] != "--out"):
      return i
  return None


def _without_config(
  argv: list[str], prog: str, configs: pathlib.Path
) -> ConfigError | SystemExit:
  """What ends the program where no argument is a CONFIG; prints the general help."""
  if "--help" not in argv and "-h" not in argv:
    return ConfigError(f"CONFIG is missing{_choices(configs, prog=prog)}")
  print(
    f"usage: {prog} CONFIG [--help] [--smoke] [--dry-run] [--out DIR] "
    f"[--field.path VALUE]\n\nCONFIG is a Python file, before the overrides"
    f"{_choices(configs, prog=prog)}\n`{prog} CONFIG --help` lists its fields."
  )
  return SystemExit(0)


def _choices(folder: pathlib.Path, wanted: str = "", prog: str = "") -> str:
  """The config files in `folder` as the end of a message, the nearest one first.

  With `prog` those that name it, if any does.
  """
  files = {path.name: path for path in sorted(folder.glob("[!_]*.py"))}
  named = {
    n: p for n, p in files.items() if f"{prog} " in p.read_text("utf-8", "ignore")
  }
  files = named if prog and named else files
  if not files:
    return f"; there are none in {folder}/"
  near = difflib.get_close_matches(wanted, files, n=1)
  meant = f"; did you mean {files[near[0]]}?" if near else ""
  return f"{meant}; {folder}/ has: {', '.join(files)}"


def _run(path: pathlib.Path, function: Callable[..., Any], *args: Any) -> Any:
  """Calls a function of the config file; what it raises becomes a ConfigError."""
  try:
    return function(*args)
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
      lines.append(error.lineno)
    where = f"{path}:{lines[-1]}" if lines else path
    shown = (
      f"\n  {error.text.strip()}"
      if isinstance(error, SyntaxError) and error.text
      else ""
    )
    raise ConfigError(
      f"{where} raises {type(error).__name__}: {error}{shown}"
    ) from error
