"""Where data sets and weights lie on this machine."""

import os
import pathlib


def cache() -> pathlib.Path:
  """Where data sets and weights lie: $JAXCODESIGN_DATA, else ~/.cache/jaxcodesign."""
  given = os.environ.get("JAXCODESIGN_DATA")
  return pathlib.Path(given) if given else pathlib.Path("~/.cache/jaxcodesign")
