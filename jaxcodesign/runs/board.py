"""A run in TensorBoard: every point of metrics.jsonl once, however often it stopped.

A start writes all scalars anew, from what metrics.jsonl kept, into a file that sorts
after all earlier ones, and removes those: what a kill left in memory is not missing,
and no clock that was set back hides a file. Points of earlier starts carry the time of
this one. Pictures are a run of their own, `pictures`, that each start adds to.
"""

from collections.abc import Iterable, Mapping
import contextlib
import pathlib
import re
import socket
import time
from typing import Any

from matplotlib.figure import Figure
import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import RecordWriter

from jaxcodesign.runs.disk import files

_FLUSH_S = 30.0
_SCALARS, _PICTURES = ".scalars", "pictures"


class Board:
  """Writes scalars and pictures, in the caller's thread, which hears of errors."""

  def __init__(
    self, folder: pathlib.Path, step: int, rows: Iterable[Mapping[str, Any]]
  ):
    """Opens the board and shows `rows`.

    Args:
      folder: Of TensorBoard's files, made if need be.
      step: That the run goes on from; later pictures are dropped.
      rows: {"step": 10, name: number or None, ...} up to that step.

    Raises:
      OSError: If it cannot be written.
    """
    old = sorted(folder.glob(f"*{_SCALARS}"))
    self._scalars = _Events(folder, _SCALARS, purge=0)
    self._pictures: _Events | None = None
    self._folder, self._step = folder, step
    for row in rows:
      self.write(row["step"], {k: v for k, v in row.items() if k != "step"})
    self._scalars.flush()
    for path in old:
      path.unlink()

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    """Adds a point to each curve, where it is a number.

    Raises:
      OSError: If the disk is full.
    """
    for name, value in values.items():
      if value is not None:
        group = "test" if name.startswith("test_") else "train"
        self._scalars.add(step, summary.scalar(f"{group}/{name}", float(value)))

  def picture(self, step: int, name: str, figure: Figure) -> None:
    """Adds a picture.

    Raises:
      OSError: If the disk is full.
    """
    if self._pictures is None:
      self._pictures = _Events(self._folder / _PICTURES, purge=self._step + 1)
    self._pictures.draw(step, name, figure)

  def close(self) -> None:
    """Writes what is still in memory.

    Raises:
      OSError: If the disk is full.
    """
    try:
      self._scalars.close()
    finally:
      if self._pictures is not None:
        self._pictures.close()


def show(folder: pathlib.Path, step: int, figures: Mapping[str, Figure]) -> None:
  """Adds the pictures of a run that has ended.

  Raises:
    OSError: If they cannot be written.
  """
  with contextlib.closing(_Events(folder / _PICTURES, purge=step + 1)) as events:
    for name, figure in figures.items():
      events.draw(step, name, figure)


class _Events:
  """A file of events that sorts after all others in its folder."""

  def __init__(self, folder: pathlib.Path, suffix: str = "", *, purge: int):
    """Opens the file; what older ones have from step `purge` on is to be forgotten."""
    stamps = (re.match(r"events\.out\.tfevents\.(\d+)", f.name) for f in _files(folder))
    newest = max((int(found[1]) for found in stamps if found), default=0)
    stamp = max(int(time.time()), newest + 1)
    name = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}{suffix}"
    self._path, self._flushed_s = folder / name, time.monotonic()
    try:
      folder.mkdir(parents=True, exist_ok=True)
      self._records = RecordWriter(str(self._path))
    except OSError as error:
      raise files.cannot_write(self._path, error) from error
    start = SessionLog(status=SessionLog.START)
    self._write(Event(file_version="brain.Event:2"))
    self._write(Event(step=purge, session_log=start))

  def add(self, step: int, shown: Any) -> None:
    self._write(Event(step=step, summary=shown))
    if time.monotonic() - self._flushed_s > _FLUSH_S:
      self.flush()

  def draw(self, step: int, name: str, figure: Figure) -> None:
    figure.set_facecolor("white")
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # pyright: ignore[reportAttributeAccessIssue]
    self.add(step, summary.image(name, pixels, dataformats="HWC"))
    self.flush()  # there are few, and a kill must not take them

  def flush(self) -> None:
    with self._told():
      self._records.flush()
    self._flushed_s = time.monotonic()

  def close(self) -> None:
    try:
      self.flush()
    finally:
      with contextlib.suppress(OSError):  # told by `flush`
        self._records.close()

  def _write(self, event: Any) -> None:
    event.wall_time = time.time()
    with self._told():
      self._records.write(event.SerializeToString())

  @contextlib.contextmanager
  def _told(self):
    try:
      yield
    except OSError as error:
      raise files.cannot_write(self._path, error) from error


def _files(folder: pathlib.Path) -> Iterable[pathlib.Path]:
  return folder.iterdir() if folder.is_dir() else ()
