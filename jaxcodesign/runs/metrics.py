"""The numbers of a run on disk: a line of JSON each, and TensorBoard beside them.

  {"step": 120, "loss": 0.71, "accuracy": 0.75, "gradient": 1.2, ...}       training
  {"step": 156, "test_loss": 0.55, "test_accuracy": 0.81}                    evaluation

Lines are in the order of steps. A run that goes on from step n drops what was written
after n, so that the file is that of a run that was never stopped, but for the seconds.
"""

from collections.abc import Mapping
import json
import math
import pathlib
from typing import Any
import warnings

from matplotlib.figure import Figure

from jaxcodesign.runs.board import Board
from jaxcodesign.runs.disk import files

FILE = "metrics.jsonl"
BOARD = "tensorboard"


class Metrics:
  """Appends to a run's numbers; of many processes only the first one has it."""

  def __init__(self, folder: pathlib.Path, step: int, *, tensorboard: bool = True):
    """Opens the file, without what is from after `step`.

    Raises:
      OSError: If it cannot be written.
    """
    self._path = folder / FILE
    kept = [row for row in read(folder) if row["step"] <= step]
    text = "".join(json.dumps(row) + "\n" for row in kept)
    files.write_atomically(self._path, text)
    self._file = self._path.open("a")
    self._board = None
    if tensorboard:
      self._board = Board(folder / BOARD, step, kept)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Adds a line; what is no finite number is null in it.

    Raises:
      OSError: If the disk is full.
    """
    row: dict[str, Any] = {"step": step}
    row |= {name: _number(value) for name, value in values.items()}
    try:
      self._file.write(json.dumps(row) + "\n")
      self._file.flush()
    except OSError as error:
      raise files.cannot_write(self._path, error) from error
    if self._board is not None:
      self._board.write(step, {k: v for k, v in row.items() if k != "step"})

  def picture(self, step: int, name: str, figure: Figure) -> None:
    """Shows a figure in TensorBoard, if that is written."""
    if self._board is not None:
      self._board.picture(step, name, figure)

  def close(self) -> None:
    """Writes what is still in memory."""
    self._file.close()
    if self._board is not None:
      self._board.close()


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a run, {"step": 120, name: number or None, ...}.

  A damaged line is left out with a warning; a last one that a kill cut off, without.
  """
  path = folder / FILE
  rows: list[dict[str, Any]] = []
  if not path.is_file():
    return rows
  *lines, rest = path.read_bytes().split(b"\n")
  for number, line in enumerate([*lines, rest], start=1):
    try:
      rows.append(_row(line))
    except (ValueError, RecursionError) as error:
      if number <= len(lines):
        warnings.warn(f"{path}:{number} is damaged and left out: {error}", stacklevel=2)
  return rows


def _row(line: bytes) -> dict[str, Any]:
  """A line that is what `Metrics.write` writes."""
  row = files.strict_json(line)
  if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
    raise ValueError("it has no step")
  for name, value in row.items():
    if value is not None and type(value) not in (int, float):
      raise ValueError(f"{name} is {value!r}, no number")
  return row


def _number(value: Any) -> float | int | None:
  if isinstance(value, int):
    return value
  value = float(value)
  return value if math.isfinite(value) else None
