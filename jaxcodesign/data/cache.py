"""Where data sets and weights lie on this machine."""

import os
import pathlib


def cache() -> pathlib.Path:
  """Where data sets and weights lie: $JAXCODESIGN_DATA, else ~/.cache/jaxcodesign."""
  given = os.environ.get("JAXCODESIGN_DATA")
  return pathlib.Path(given) if given else pathlib.Path("~/.cache/jaxcodesign")


def expanded(path: str | pathlib.Path) -> pathlib.Path:
  """`path` with `~` as the home folder.

  Raises:
    FileNotFoundError: If the user has none, as in a container.
  """
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:
    raise FileNotFoundError(
      f"{path} is in a home folder, and this user has none: set HOME, or name another "
      "place ($JAXCODESIGN_DATA for data and weights)"
    ) from error
