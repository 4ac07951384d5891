"""The benchmark of the launcher tells a loop that costs from one that does not."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import pytest

from jaxcodesign import models
from jaxcodesign.data import image_sets
from jaxcodesign.data.sources import ImageSource
from jaxcodesign.runs.job import RunConfig, TrainJob
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.task import Classification
from launch import benchmark_launcher as benchmark
from launch.benchmark_launcher import Turns
from launch.timing import Measurement

EVERY, TURNS = 4, 3


class Slow(ImageSource):
  """Images that take their time."""

  def batch(self, indices, draws):
    time.sleep(0.1)  # many steps of the tiny network, on a busy machine too
    return super().batch(indices, draws)


@dataclasses.dataclass(frozen=True)
class Few(Classification):
  """A task on 200 images."""

  kind: type = ImageSource

  def load(self, config):
    images = image_sets.FashionMnistMini().load()
    cut = lambda x, y: self.kind(x[:200], y[:200], classes=10, name="few")
    return (
      super()
      .load(config)
      ._replace(
        train=cut(images.train_images, images.train_labels),
        test=cut(images.test_images, images.test_labels),
      )
    )


def job(kind=ImageSource):
  task = Few(image_sets.FashionMnistMini(), models.Cnn((2, 4), 8), kind=kind)
  train = TrainConfig(epochs=1, batch_size=40, learning_rate=1e-2)
  return TrainJob(task, train, run=RunConfig(cache="off"))


class Machine:
  """A clock that a step moves by 1 s, and a loop by what it does."""

  def __init__(self):
    self.now, self.busy = 0.0, False

  def step(self, state, batch, frozen):
    self.now += 1
    return state + 1, None

  def writing(self):
    """Whether a checkpoint is, for which the loop waits half a second."""
    self.now += 0.5 * self.busy
    busy, self.busy = self.busy, False
    return busy


@pytest.mark.parametrize("extra", [0.0, 0.03, 0.5])
def test_what_a_loop_does_besides_is_its_overhead(extra):
  machine = Machine()
  state = jnp.int32(0)
  turns = Turns(machine.step, state, every=EVERY, clock=lambda: machine.now)
  for _ in range(EVERY * (TURNS + 1)):
    machine.now += extra
    state, _ = turns(state, None, None)
  assert turns.bare == [EVERY] * (TURNS + 1)
  assert turns.ratios() == pytest.approx([1 + extra] * TURNS)
  assert state == EVERY * (TURNS + 1)  # the loop's own steps, each once


def test_a_checkpoint_belongs_to_the_turn_it_is_of():
  machine = Machine()
  turns = Turns(
    machine.step,
    jnp.int32(0),
    every=EVERY,
    busy=machine.writing,
    clock=lambda: machine.now,
  )
  state = jnp.int32(0)
  for call in range(EVERY * (TURNS + 1)):
    machine.busy |= call == EVERY
    state, _ = turns(state, None, None)
  assert turns.ratios() == pytest.approx([1 + 0.5 / EVERY, 1, 1])


def test_a_turn_is_compared_with_both_its_sides():
  turns = Turns(Machine().step, jnp.int32(0), every=EVERY)
  turns.bare, turns.loop = [1.0, 3.0, 1.0], [2.0, 4.0]  # a machine that slows down
  assert turns.ratios() == [1.0, 2.0]


def test_rates_are_over_all_lines():
  rows = [
    {"examples_per_s": 100.0, "input_wait": 0.0},
    {"examples_per_s": 25.0, "input_wait": 0.5},
  ]
  share, examples_per_s = benchmark.rates(rows)
  assert share == pytest.approx(0.4)  # 2 s of 5 s
  assert examples_per_s == pytest.approx(40)


def test_curves_differ_by_their_worst_point():
  assert benchmark.difference([2.0, 4.0], [2.0, 4.0]) == 0
  assert benchmark.difference([2.0, 4.0], [2.0, 5.0]) == 0.25
  assert benchmark.difference([-2.0, 4.0], [-1.0, 4.0]) == 0.5
  for short in ([], [2.0]):
    with pytest.raises(ValueError, match=f"2 and {len(short)} points"):
      benchmark.difference([2.0, 4.0], short)
  with pytest.raises(ValueError, match="0 and 0 points"):
    benchmark.difference([], [])


@pytest.fixture
def alone(monkeypatch):
  """A mesh of one device."""
  only = jax.devices()[:1]
  prepare = benchmark.session.prepare
  monkeypatch.setattr(
    benchmark.session,
    "prepare",
    lambda job, processes, loaded: prepare(job, processes, only, loaded=loaded),
  )


@pytest.mark.usefixtures("alone")
def test_a_real_run_is_measured():
  value, took = benchmark.overhead(job(), TURNS, EVERY, saves=True)
  assert value > 0 and took > 0


@pytest.mark.usefixtures("alone")
def test_slow_images_are_waited_for():
  share, speed, took = benchmark.waiting(job(Slow), every=20, steps=40, repetitions=1)
  assert share > 0.5 and speed < 1 and took > 0


def test_all_rows_are_told(monkeypatch):
  monkeypatch.setattr(benchmark, "overhead", lambda *_, **__: (1.01, 0.02))
  told = benchmark.Waiting(0.01, 5.0, 0.02)
  monkeypatch.setattr(benchmark, "waiting", lambda *_, **__: told)
  monkeypatch.setattr(benchmark, "processes", lambda _: 0.0)
  rows = list(benchmark.launcher())
  assert all(isinstance(row, Measurement) for row in rows)
  assert len({row.name for row in rows}) == len(rows) == 14
  assert {row.value for row in rows if row.unit == "%"} == {1.0}
