"""Faces: packages whose names are imported when they are asked for.

A package's `__init__` says which of its modules holds each name; asking for one imports
that module alone, so a face costs nothing that is not used.
"""

from collections.abc import Callable
import importlib
import sys
from typing import Any


def face(
  package: str, **places: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
  """Returns `__getattr__`, `__dir__` and `__all__` of a package.

  Args:
    package: Its `__name__`.
    **places: Where each name is, below the package: "pricing.cost" is that module,
      "pricing.cost:evaluate" what it defines.
  """

  def get(name: str) -> Any:
    if name not in places:
      raise AttributeError(f"module {package!r} has no attribute {name!r}")
    module, _, member = places[name].partition(":")
    found = importlib.import_module(f"{package}.{module}")
    found = getattr(found, member) if member else found
    setattr(sys.modules[package], name, found)
    return found

  names = sorted(places)
  return get, lambda: names, names
