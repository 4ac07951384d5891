"""The numbers of a run that was stopped read like those of one that was not."""

import json
import math

import pytest

from jaxcodesign.figures import canvas
from jaxcodesign.runs import board
from jaxcodesign.runs import metrics as metrics_log
from jaxcodesign.runs.metrics import Metrics


def test_going_on_drops_what_came_after(tmp_path):
  first = Metrics(tmp_path, 0)
  for step in (10, 20, 30):
    first.write(step, {"loss": 1 / step})
  first.close()
  with (tmp_path / metrics_log.FILE).open("a") as file:
    file.write('{"step": 40, "lo')  # cut off by a kill
  assert [r["step"] for r in metrics_log.read(tmp_path)] == [10, 20, 30]
  again = Metrics(tmp_path, 20)
  again.write(30, {"loss": 0.5})
  again.close()
  rows = metrics_log.read(tmp_path)
  assert [(r["step"], r["loss"]) for r in rows] == [(10, 0.1), (20, 0.05), (30, 0.5)]


def test_a_number_that_is_none_is_null(tmp_path):
  metrics = Metrics(tmp_path, 0, tensorboard=False)
  metrics.write(1, {"loss": math.nan})
  metrics.close()
  text = (tmp_path / metrics_log.FILE).read_text()
  assert json.loads(text) == {"step": 1, "loss": None}
  assert not (tmp_path / "tensorboard").exists()


def test_scalars_and_pictures_reach_tensorboard(tmp_path):
  metrics = Metrics(tmp_path, 0)
  metrics.write(1, {"loss": 0.25, "test_accuracy": 0.5})
  metrics.picture(1, "map", canvas.blank(2, 1))
  metrics.close()
  board.show(tmp_path / metrics_log.BOARD, 2, {"curves": canvas.blank(2, 1)})
  files = (tmp_path / metrics_log.BOARD).rglob("events*")
  content = b"".join(file.read_bytes() for file in files)
  assert content.count(b"PNG") == 2
  for name in (b"train/loss", b"test/test_accuracy", b"map", b"curves"):
    assert name in content


@pytest.mark.parametrize(
  "line",
  [b'{"step": 20, "lo', b"\xff", b'{"step": "20"}', b'{"loss": 1}', b"[]", b"",
   b'{"step": 20, "loss": NaN}', b'{"step": 20, "loss": 1e999}'],
)  # fmt: skip
def test_a_damaged_line_is_left_out_and_told_and_no_other(tmp_path, line):
  path = tmp_path / metrics_log.FILE
  path.write_bytes(b'{"step": 10}\n' + line + b'\n{"step": 30, "loss": null}\n')
  with pytest.warns(UserWarning, match=r"metrics\.jsonl:2 is damaged and left out"):
    rows = metrics_log.read(tmp_path)
  assert [row["step"] for row in rows] == [10, 30]
