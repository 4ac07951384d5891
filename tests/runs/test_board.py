"""TensorBoard shows every point of a run once, whatever happened between two starts."""

import resource
import struct
import time

import pytest
from tensorboardX.proto import event_pb2

from jaxcodesign.figures import canvas
from jaxcodesign.runs import metrics


def shown(folder):
  """What TensorBoard has read of a folder: points by name, in the order of files."""
  found = {}
  for path in sorted(p for p in folder.iterdir() if p.is_file()):
    content = path.read_bytes()
    while content:
      size = struct.unpack("Q", content[:8])[0]
      event = event_pb2.Event.FromString(content[12 : 12 + size])
      content = content[16 + size :]
      if event.HasField("session_log"):
        for points in found.values():
          points[:] = [point for point in points if point[0] < event.step]
      for value in event.summary.value:
        points = found.setdefault(value.tag, [])
        points.append((event.step, round(value.simple_value, 6)))
  return found


def write(folder, step, steps, **options):
  """A start from `step`, which is not closed: as a kill leaves it."""
  made = metrics.Metrics(folder, step, **options)
  for at in steps:
    made.write(at, {"loss": 1 / at, "input_wait": float("nan"), "test_loss": 2.0})
  return made


def test_all_points_are_there_after_kills_and_a_clock_set_back(tmp_path, monkeypatch):
  folder = tmp_path / metrics.BOARD
  starts = [write(tmp_path, 0, range(10, 210, 10))]
  for now, step in ((time.time(), 150), (1e9, 200), (1e9, 240)):
    monkeypatch.setattr(time, "time", lambda now=now: now)
    starts.append(write(tmp_path, step, range(step + 10, step + 110, 10)))
  starts[-1].close()
  steps = list(range(10, 350, 10))
  assert len(list(folder.iterdir())) == 1
  found = shown(folder)
  assert found["train/loss"] == [(s, round(1 / s, 6)) for s in steps]
  assert found["test/test_loss"] == [(s, 2.0) for s in steps]
  assert "train/input_wait" not in found
  for start in starts[:-1]:
    start.close()
  assert len(list(folder.iterdir())) == 1


def test_pictures_of_earlier_starts_stay_and_later_ones_are_drawn_again(tmp_path):
  for step, drawn in ((0, (10, 20)), (10, (20, 30))):
    made = write(tmp_path, step, ())
    for at in drawn:
      made.picture(at, "map", canvas.blank(1, 1))
    made.close()
  steps = [s for s, _ in shown(tmp_path / metrics.BOARD / "pictures")["map"]]
  assert steps == [10, 20, 30]


def test_a_full_disk_is_one_error_and_no_thread_s(tmp_path):
  made = metrics.Metrics(tmp_path, 0)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
  try:
    with pytest.raises(OSError, match=r"cannot write .*free some space"):
      made.picture(1, "map", canvas.blank(4, 4))
    with pytest.raises(OSError, match=r"cannot write .*pictures"):
      made.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
