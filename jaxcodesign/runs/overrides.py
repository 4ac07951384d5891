"""A frozen dataclass changed from the command line, one option for each of its fields.

What can be overridden follows from the value, not from annotations alone: the value is
mirrored by a dataclass of its numbers, strings, paths, enums and tuples of these,
however deep, tyro parses the mirror, and what changed is replaced in the value. So
pytrees of arrays, fields annotated with a base class and tuples of dataclasses
(`--variants.0.name`) need no declaration, and everything else in the value (functions,
large arrays) passes through untouched.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import difflib
import enum
import functools
import inspect
import pathlib
import re
import textwrap
import types
import typing
from typing import Annotated, Any, Literal, TypeVar, Union

import jax
import jax.numpy as jnp
import numpy as np
import tyro


class ConfigError(ValueError):
  """A config file or an override that cannot be used; the message says why."""


F = TypeVar("F")
C = TypeVar("C")


def override(
  flags: F, config: C, argv: Sequence[str], *, prog: str, description: str
) -> tuple[F, C]:
  """Returns two frozen dataclasses with the fields that `argv` names replaced.

  Options are `--field.path VALUE`; items of a tuple of dataclasses are numbered from 0.
  Help comes from each field's doc: the string below it, the comment beside it, or the
  `Attributes:` of its class.

  Args:
    flags: Options of the program; its fields may not be named as those of `config`.
    config: The value to change.
    argv: The options.
    prog: How the program is called, for messages.
    description: For --help.

  Raises:
    ConfigError: for an unknown option (naming the nearest), a name in both dataclasses,
      or a value that a dataclass refuses.
    SystemExit: 0 after --help; 2 after a message for a value of the wrong type.
  """
  shared = {f.name for f in _fields(flags)} & {f.name for f in _fields(config)}
  if shared:
    raise ConfigError(
      f"{type(config).__name__} may not have the fields {sorted(shared)}: they are "
      "options of every program"
    )
  parts = [_mirror(part) for part in (flags, config)]
  root = dataclasses.make_dataclass("Options", [f for part in parts for f in part])
  parsed, unknown = tyro.cli(
    root,
    default=root(),
    args=argv,
    prog=prog,
    description=description,
    return_unknown_args=True,
    config=(tyro.conf.FlagCreatePairsOff,),
  )
  if unknown:
    raise ConfigError(_unknown(unknown, [*_names(flags), *_names(config)]))
  try:
    return _rebuild(flags, parsed), _rebuild(config, parsed)
  except (ValueError, TypeError) as error:
    raise ConfigError(str(error)) from error


@functools.cache  # sources are parsed for it
def field_docs(cls: type) -> Mapping[str, str]:
  """Returns the doc of each documented field of a dataclass, on one line each."""
  docs = {}
  for base in reversed(cls.__mro__):
    if dataclasses.is_dataclass(base):
      docs |= _attributes_section(base.__doc__ or "") | _source_docs(base)
  own = {field.name for field in dataclasses.fields(cls)}
  found = {name: " ".join(doc.split()) for name, doc in docs.items() if name in own}
  return types.MappingProxyType(found)


def _fields(value: Any) -> list[dataclasses.Field]:
  return [f for f in dataclasses.fields(value) if f.init]


def items(value: Any) -> Iterator[tuple[str, Any, Any, str]]:
  """(name, value, annotation, doc) of each part of a dataclass or a tuple of them."""
  if isinstance(value, tuple):
    for i, item in enumerate(value):
      yield str(i), item, Any, ""
    return
  hints = typing.get_type_hints(type(value))
  docs = field_docs(type(value))
  for field in _fields(value):
    hint, doc = hints[field.name], docs.get(field.name, "")
    yield field.name, getattr(value, field.name), hint, doc


def is_nested(value: Any) -> bool:
  """Whether `value` has parts that are options: a dataclass, a tuple of them."""
  if type(value) is tuple:
    return bool(value) and all(is_nested(item) for item in value)
  return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _mirror(value: Any) -> list[tuple[str, Any, Any]]:
  """Fields for make_dataclass: each part of `value` that has a text."""
  mirrored = []
  for name, item, hint, doc in items(value):
    if is_nested(item):
      kind = dataclasses.make_dataclass(
        type(item).__name__, _mirror(item), frozen=True, namespace={"__doc__": doc}
      )
      default = kind()
    else:
      kind, default = kind_of(hint, item), plain(item)
    if kind is not None:
      arg = tyro.conf.arg(name=option(name), help=doc)
      mirrored.append((f"_{name}", Annotated[kind, arg], default))
  return mirrored


def _rebuild(value: Any, parsed: Any) -> Any:
  """`value` with what differs in `parsed`, an instance of its mirror."""
  changes = {}
  for name, item, _, _ in items(value):
    if not hasattr(parsed, f"_{name}"):
      continue
    given = getattr(parsed, f"_{name}")
    if is_nested(item):
      new = _rebuild(item, given)
    else:
      new = item if given == plain(item) else _like(item, given)
    if new is not item:
      changes[name] = new
  if not changes:
    return value
  if isinstance(value, tuple):
    return tuple(changes.get(str(i), item) for i, item in enumerate(value))
  return dataclasses.replace(value, **changes)


def kind_of(hint: Any, value: Any) -> Any:
  """The type that tyro parses for `value`, None if it has no text."""
  members = typing.get_args(hint) if _is_union(hint) else (hint,)
  optional = (
    (lambda kind: kind | None) if type(None) in members else (lambda kind: kind)
  )
  value = plain(value)
  if typing.get_origin(hint) is Literal or isinstance(value, enum.Enum | bool):
    return hint if typing.get_origin(hint) is Literal else type(value)
  if value is None:
    simple = [m for m in members if m in (bool, int, float, str, pathlib.Path)]
    return Union[(*simple, None)] if simple else None
  if isinstance(value, int | float):
    integral = isinstance(value, int) and float not in members
    either = isinstance(value, int) and float in members and int in members
    return optional(int | float if either else int if integral else float)
  if isinstance(value, pathlib.Path):
    return optional(pathlib.Path)
  if isinstance(value, str):
    return optional(str)
  if type(value) is tuple:
    inner = next(iter(typing.get_args(hint)), Any)
    kinds = {kind_of(inner, item) for item in value} or {inner}
    kind = kinds.pop()
    return tuple[kind, ...] if not kinds and kind in (int, float, str) else None
  return None


def _is_union(hint: Any) -> bool:
  return isinstance(hint, type(int | str)) or typing.get_origin(hint) is typing.Union


def plain(value: Any) -> Any:
  """A scalar array as a Python number, anything else as it is."""
  scalar = isinstance(value, np.ndarray | np.generic | jax.Array) and value.ndim == 0
  if scalar and np.dtype(value.dtype).kind in "biuf":
    return value.item()
  return value


def _like(old: Any, new: Any) -> Any:
  """`new` as an array if `old` is one."""
  if isinstance(old, jax.Array):
    return jnp.asarray(new, old.dtype)
  if isinstance(old, np.ndarray | np.generic):
    return np.asarray(new, old.dtype)[()]
  return new


def option(name: str) -> str:
  """A field's name as an option has it."""
  return name.replace("_", "-")


def _names(value: Any) -> Iterator[str]:
  """Every option of `value`, without the leading dashes."""
  for name, item, hint, _ in items(value):
    if is_nested(item):
      yield from (f"{option(name)}.{inner}" for inner in _names(item))
    elif kind_of(hint, item) is not None:
      yield option(name)


def _unknown(arguments: list[str], names: list[str]) -> str:
  options = [a.split("=")[0] for a in arguments if a.startswith("-")]
  if not options:
    return f"unexpected argument {arguments[0]!r}: options are --field.path VALUE"
  asked = option(options[0].lstrip("-"))
  close = lambda a, b: difflib.SequenceMatcher(None, a, b).ratio()
  # A field asked for without its path is meant as often as one that is misspelt.
  nearest = max(names, key=lambda n: max(close(asked, n), close(asked, _last(n))))
  return f"no field --{asked}; the nearest is --{nearest} (--help lists all)"


def _last(name: str) -> str:
  return name.rsplit(".", 1)[-1]


def _attributes_section(doc: str) -> dict[str, str]:
  """The entries of an `Attributes:` section."""
  _, _, section = inspect.cleandoc(doc).partition("Attributes:\n")
  section = textwrap.dedent(re.split(r"\n(?=\S)", section)[0])
  return dict(re.findall(r"^(\w+):\s*(.*(?:\n[ ]+.*)*)", section, re.MULTILINE))


def _source_docs(cls: type) -> dict[str, str]:
  """The string below each field of `cls` itself, or the comment beside it."""
  try:
    source = textwrap.dedent(inspect.getsource(cls))
  except (OSError, TypeError):
    return {}
  (definition,) = ast.parse(source).body
  lines, docs = source.splitlines(), {}
  body = definition.body if isinstance(definition, ast.ClassDef) else []
  for node, below in zip(body, [*body[1:], None]):
    if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
      continue
    beside = lines[(node.end_lineno or 1) - 1].encode()[node.end_col_offset or 0 :]
    if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
      docs[node.target.id] = str(below.value.value)
    elif beside.strip().startswith(b"#"):
      docs[node.target.id] = beside.decode().strip().lstrip("# ")
  return docs
