"""A network is trained once: a killed training goes on, an equal one is taken."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from jaxcodesign import models
from jaxcodesign.data import image_sets
from jaxcodesign.experiments import networks
from jaxcodesign.numerics.schedules import Cubic
from jaxcodesign.runs import fingerprint, loop
from jaxcodesign.training.combining import Combine, Layer
from jaxcodesign.training.config import TrainConfig

CNN = models.Cnn(channels=(2, 4), hidden=8)
COMBINE = Combine((Layer("dense1/kernel", 0.5),), Cubic(0.0, 0.5, 2))
CONFIG = TrainConfig(epochs=2, batch_size=16, augment=True, sparsity=COMBINE)


def images():
  rng = np.random.default_rng(0)
  draw = lambda n: (
    rng.random((n, 4, 4, 1), np.float32),
    rng.integers(0, 3, n).astype("i4"),
  )
  return image_sets.Images(*draw(64), *draw(20), name="noise", classes=3)


def job(target, config=CONFIG):
  start = CNN.init(jax.random.key(0), (4, 4, 1), 3)
  mark = fingerprint.fingerprint(CNN, config)
  return networks.Job(CNN, start, images(), config, target, mark)


def told(trained):
  """What a table shows, without the seconds."""
  return [epoch._replace(seconds=0.0) for epoch in trained.history], trained.accuracy


@pytest.fixture
def killed(monkeypatch):
  """Ends a training before its n-th step, as a kill does: nothing is tidied up."""

  def kill_at(n):
    step = loop._Loop._between

    def between(self, state):
      if self.position.step == n:
        raise KeyboardInterrupt
      return step(self, state)

    monkeypatch.setattr(loop._Loop, "_between", between)

  return kill_at


def test_a_killed_training_goes_on_and_ends_the_same(tmp_path, killed, monkeypatch):
  whole = networks.obtain(job(tmp_path / "whole"))
  assert not whole.restored and whole.groups
  target = tmp_path / "network"
  with monkeypatch.context():
    killed(6)
    with pytest.raises(KeyboardInterrupt):
      networks.obtain(job(target))
  monkeypatch.undo()
  assert not target.exists() and (tmp_path / "network.states").exists()
  # A training of another config in the same place disturbs nothing.
  other = dataclasses.replace(CONFIG, epochs=1)
  networks.obtain(job(target, other))
  found = networks.obtain(job(target))
  assert not found.restored
  chex.assert_trees_all_equal(found.params, whole.params)
  assert told(found) == told(whole)
  assert found.groups.keys() == whole.groups.keys()
  assert [p.name for p in tmp_path.iterdir() if "network" in p.name] == ["network"]
  again = networks.obtain(job(target))
  assert again.restored and told(again) == told(whole)
  chex.assert_trees_all_equal(again.params, whole.params)
