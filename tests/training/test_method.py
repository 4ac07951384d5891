"""A method hooks in by one concept: a toy one is called as the contract says."""

import dataclasses
import io
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxcodesign.data import image_sets
from jaxcodesign.figures import canvas
from jaxcodesign.numerics.schedules import OneShot
from jaxcodesign.numerics.sparsity.masks import Rule
from jaxcodesign.numerics.sparsity.patterns import Unstructured
from jaxcodesign.programs.fast import Fast
from jaxcodesign.runs import loop, metrics, session
from jaxcodesign.runs.fitting import Given, fit
from jaxcodesign.runs.job import RunConfig, TrainJob
from jaxcodesign.runs.mesh import MeshConfig
from jaxcodesign.runs.processes import Processes
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.masked import Prune
from jaxcodesign.training.method import Method

STEPS = 8


@dataclasses.dataclass(frozen=True)
class Plain(Method):
  """Overrides nothing."""


@dataclasses.dataclass(frozen=True)
class Toy(Method):
  """Halves the loss, counts the steps and sums the losses, doubles a bias midway."""

  scale: float = 0.5

  def init(self):
    return {"steps": jnp.zeros((), jnp.int32), "heard": jnp.zeros(())}

  def probe(self):
    return jnp.zeros(())

  def change(self, loss, at, probe):
    if not at.train:
      return loss

    def changed(params, batch):
      outcome = loss(params, batch)
      # The gradient by the probe is the loss before it was scaled.
      told = probe * jax.lax.stop_gradient(outcome.loss)
      return outcome._replace(loss=self.scale * outcome.loss + told)

    return changed

  def keep(self, kept, told, at):
    return {"steps": kept["steps"] + 1, "heard": kept["heard"] + told}

  def rounds(self, steps):
    return [steps // 2]

  def between(self, state, memory, step, steps):
    assert isinstance(state.params["b"], np.ndarray) and step == steps // 2
    params = state.params | {"b": 2 * state.params["b"]}
    return state._replace(params=params), {"rounds": [*memory.get("rounds", []), step]}

  def told(self, kept, step):
    return {"counted": float(kept["steps"])}

  def pictures(self, kept, step):
    return {"toy": canvas.blank(1, 1)}


def images():
  rng = np.random.default_rng(0)
  draw = lambda n: (
    rng.random((n, 2, 2, 1), np.float32),
    rng.integers(0, 2, n).astype("i4"),
  )
  return image_sets.Images(*draw(32), *draw(12), name="noise", classes=2)


def linear(params, x):
  return x.reshape(len(x), -1) @ params["w"] + params["b"][None]


def start():
  return {"w": jnp.full((4, 2), 0.1), "b": jnp.array([0.5, -0.5])}


CONFIG = TrainConfig(
  epochs=2, batch_size=8, learning_rate=0.1, warmup=0.0, optimizer="sgd"
)


def run(methods, folder=None, **changes):
  train = dataclasses.replace(CONFIG, methods=methods, **changes)
  how = RunConfig(mesh=MeshConfig(data=1), log_every=1, checkpoint_every=3)
  job = TrainJob(Given(linear, images()), train, run=how)
  loaded = job.task.load(train)._replace(init=lambda key: start())
  ready = session.prepare(
    job,
    Processes(0, 1),
    jax.devices()[:1],
    loaded=loaded,
    mark="toy",
    start_from=start(),
  )
  return loop.run(ready, folder, console=Console(file=io.StringIO()))


def test_a_method_that_overrides_nothing_changes_no_bit():
  assert run(()).digest == run((Plain(),)).digest


def test_everything_a_method_does_happens_once_and_is_told(tmp_path):
  toy = run((Toy(),), tmp_path)
  assert toy.step == STEPS and toy.memories == ({"rounds": [STEPS // 2]},)
  (kept,) = toy.state.kept
  assert kept["steps"] == STEPS
  rows = metrics.read(tmp_path)
  losses = [row["loss"] for row in rows if "loss" in row]
  np.testing.assert_allclose(kept["heard"], sum(losses) / 0.5, rtol=1e-6)
  assert [row["counted"] for row in rows if "counted" in row] == [4, 8]
  assert list((tmp_path / "tensorboard").iterdir())


def test_the_loss_and_the_state_are_those_of_the_same_by_hand():
  # Plain sgd at half the loss is sgd at half the rate: momentum is linear.
  half = dataclasses.replace(CONFIG, weight_decay=0.0)
  changes = {"weight_decay": 0.0, "decay": "constant"}
  doubled = run((Toy(scale=1.0),), **changes)
  toy = run((Toy(),), learning_rate=2 * half.learning_rate, **changes)
  chex.assert_trees_all_close(toy.state.params, doubled.state.params, rtol=1e-5)
  plain = run((), **changes)
  assert not np.allclose(plain.state.params["b"], doubled.state.params["b"])


def test_what_it_keeps_and_remembers_survives_a_stop(tmp_path, monkeypatch):
  whole = run((Toy(),))
  seen = []

  def broken(self, state):
    seen.append(1)
    if len(seen) == 6:
      raise KeyboardInterrupt
    return between(self, state)

  between = loop._Loop._between
  monkeypatch.setattr(loop._Loop, "_between", broken)
  with pytest.raises(KeyboardInterrupt):
    run((Toy(),), tmp_path)
  monkeypatch.setattr(loop._Loop, "_between", between)
  again = run((Toy(),), tmp_path)
  assert again.digest == whole.digest and again.memories == whole.memories
  record = max((tmp_path / "checkpoints").glob("step_*")) / "checkpoint.json"
  assert json.loads(record.read_text())["extra"]["memories"] == [{"rounds": [4]}]


def test_methods_meet():
  prune = Prune((Rule("w", Unstructured(0.5)),), OneShot(0.5))
  config = dataclasses.replace(
    CONFIG, sparsity=prune, precision=Fast(), methods=(Toy(),)
  )
  assert [type(m).__name__ for m in config.every_method()] == [
    "FastMethod", "Prune", "Toy",
  ]  # fmt: skip
  fitted = fit(linear, start(), images(), config)
  assert np.mean(np.asarray(fitted.params["w"]) != 0) == 0.5
  assert len(fitted.history) == 2
