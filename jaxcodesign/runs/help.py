"""What --help says: a config by its groups, a group by its fields, each field once."""

from collections.abc import Iterator
import difflib
import re
import shutil
import textwrap
from typing import Any, NamedTuple

from jaxcodesign.runs import overrides
from jaxcodesign.runs.overrides import ConfigError

_FEW = 4  # differing defaults that are shown


class Field(NamedTuple):
  """One option, of all items of a tuple together.

  Attributes:
    name: With N for the numbers of items: "variants.N.name".
    doc: On one line.
    defaults: Of each item in turn.
  """

  name: str
  doc: str
  defaults: list[str]


def general(prog: str, description: str, flags: Any, config: Any) -> str:
  """The options of every program, fields outside of groups, and the groups.

  Args:
    prog: How the program is called, with its config.
    description: Of the config.
    flags: A dataclass of the program's own options.
    config: The dataclass whose fields are options.
  """
  groups: dict[str, list[Field]] = {}
  for field in fields(config):
    groups.setdefault(field.name.split(".")[0], []).append(field)
  alone = [found[0] for name, found in groups.items() if found[0].name == name]
  rest = {name: f for name, f in groups.items() if f[0].name != name}
  lines = [f"usage: {prog} [--field.path VALUE]", "", description, "", "options:"]
  lines += map(_line, fields(flags))
  lines += ["  --help [GROUP | FIELD], --help-all"]
  lines += ["", "fields:", *map(_line, alone)] if alone else []
  lines += ["", "groups, each listed by --help GROUP:"]
  width = max(map(len, rest), default=0)
  for name, found in rest.items():
    parts = dict.fromkeys(map(_part, found))
    lines.append(_wrapped(f"  {name:{width}}  ", ", ".join(parts)))
  return "\n".join(lines) + "\n"


def detailed(config: Any, asked: str = "") -> str:
  """All fields whose names begin with `asked`.

  Raises:
    ConfigError: If there is none, naming the nearest.
  """
  asked = re.sub(r"\b\d+\b", "N", asked.lstrip("-").replace("_", "-"))
  known = list(fields(config))
  found = [f for f in known if not asked or f"{f.name}.".startswith(f"{asked}.")]
  if not found:
    names = [f.name for f in known]
    names += dict.fromkeys(n.rsplit(".", 1)[0] for n in names if "." in n)
    near = difflib.get_close_matches(asked, names, n=3, cutoff=0.3)
    raise ConfigError(
      f"no group or field {asked}; nearest: {', '.join(near) or ', '.join(names[:8])}"
    )
  return "\n".join(map(_line, found)) + "\n"


def fields(value: Any) -> list[Field]:
  """The options of a dataclass, those of items of a tuple once."""
  found: dict[str, Field] = {}
  for name, doc, default in _options(value, ""):
    field = found.setdefault(name, Field(name, doc, []))
    field.defaults.append(default)
  return list(found.values())


def _options(value: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
  for name, item, hint, doc in overrides.items(value):
    path = f"{prefix}{'N' if isinstance(value, tuple) else overrides.option(name)}"
    if overrides.is_nested(item):
      yield from _options(item, f"{path}.")
    elif overrides.kind_of(hint, item) is not None:
      yield path, doc, str(overrides.plain(item))


def _line(field: Field) -> str:
  defaults = list(dict.fromkeys(field.defaults))
  shown = ", ".join(defaults[:_FEW]) + (", ..." if len(defaults) > _FEW else "")
  count = len(field.defaults)
  which = (
    f"; N below {count}" if count > 1 else "; N is 0" if ".N." in field.name else ""
  )
  told = f"{field.doc} " if field.doc else ""
  return _wrapped(f"  --{field.name}  ", f"{told}(default: {shown}{which})")


def _wrapped(head: str, text: str) -> str:
  width = max(40, shutil.get_terminal_size().columns - 1)
  return textwrap.fill(
    head + text, width, subsequent_indent=" " * 6, break_on_hyphens=False
  )


def _part(field: Field) -> str:
  """What a field is, or is part of, in its group."""
  part, *more = field.name.split(".", 1)[1].removeprefix("N.").split(".")
  return f"{part}.*" if more else part
