"""A folder knows whose run it holds."""

import dataclasses
import json

import jax
import pytest

from jaxcodesign import models
from jaxcodesign.data import image_sets
from jaxcodesign.runs import origin
from jaxcodesign.runs.job import RunConfig, TrainJob
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.task import Classification

JOB = TrainJob(
  Classification(image_sets.FashionMnistMini(), models.Cnn((4, 8), 16)),
  TrainConfig(epochs=2),
)


def test_the_same_config_goes_on_whatever_it_is_run_on(tmp_path):
  assert not origin.check(JOB, tmp_path)
  origin.write(JOB, tmp_path, "python -m launch.train x.py")
  moved = dataclasses.replace(JOB, run=RunConfig(log_every=3, keep_last=5))
  assert origin.check(moved, tmp_path)
  origin.write(moved, tmp_path, "python -m launch.train x.py --again")
  starts = origin.origin(tmp_path)
  assert [s["command"][-5:] for s in starts] == [" x.py", "again"]
  assert starts[0]["packages"]["jax"] and starts[0]["devices"]
  assert json.loads((tmp_path / "config.json").read_text())["run"]["keep_last"] == 5


def test_another_config_is_refused_with_the_difference(tmp_path):
  origin.write(JOB, tmp_path, "command")
  other = dataclasses.replace(
    JOB,
    train=dataclasses.replace(JOB.train, accumulate=2),
    task=dataclasses.replace(JOB.task, model=models.Cnn((4, 12), 16)),
  )
  with pytest.raises(ValueError, match="holds a run of another config") as error:
    origin.check(other, tmp_path)
  assert "accumulate: 1 -> 2" in str(error.value)
  assert "task.model.channels.1: 8 -> 12" in str(error.value)
  assert "--out" in str(error.value)


def test_a_damaged_config_is_named(tmp_path):
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(ValueError, match="damaged"):
    origin.check(JOB, tmp_path)


def test_options_of_jax_that_change_bits_are_refused_with_the_difference(tmp_path):
  origin.write(JOB, tmp_path, "command")
  with (
    jax.enable_x64(True),
    pytest.raises(ValueError, match=r"numbers\.jax_enable_x64: False -> True"),
  ):
    origin.check(JOB, tmp_path)


def test_damaged_starts_are_told_and_put_aside(tmp_path):
  (tmp_path / "origin.json").write_text('{"command": ')
  with pytest.warns(UserWarning, match=r"origin\.json is damaged"):
    origin.write(JOB, tmp_path, "command")
  assert len(origin.origin(tmp_path)) == 1
  assert (tmp_path / "origin.damaged").read_text() == '{"command": '
