"""A run that is stopped, damaged or broken ends as one that is not, or says why."""

import dataclasses
import io
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxcodesign import models
from jaxcodesign.data import image_sets
from jaxcodesign.data.sources import ImageSource
from jaxcodesign.numerics.schedules import Cubic
from jaxcodesign.numerics.sparsity.masks import Rule as Sparse
from jaxcodesign.numerics.sparsity.patterns import Unstructured
from jaxcodesign.runs import loop, metrics, origin, session
from jaxcodesign.runs.job import RunConfig, TrainJob
from jaxcodesign.runs.processes import Processes
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.masked import Prune
from jaxcodesign.training.task import Classification

PRUNE = Prune((Sparse("dense1/kernel", Unstructured(0.5)),), Cubic(0.1, 0.9, 5))
TRAIN = TrainConfig(
  epochs=2, batch_size=100, learning_rate=1e-2, warmup=0.0, sparsity=PRUNE, augment=True
)
JOB = TrainJob(
  Classification(image_sets.FashionMnistMini(), models.Cnn((2, 4), 8)),
  TRAIN,
  evaluate_every=8,
  run=RunConfig(checkpoint_every=3, log_every=2, tensorboard=False, keep_last=3),
)
STEPS = 20  # 1,000 images in batches of 100, twice


def few(job):
  """The job's task on 1,000 images for training, 200 to score."""
  images = image_sets.FashionMnistMini().load()
  loaded = job.task.load(job.train)
  cut = lambda x, y, n: ImageSource(
    x[:n], y[:n], augment=job.train.augment, classes=10, name="few"
  )
  return loaded._replace(
    train=cut(images.train_images, images.train_labels, 1000),
    test=cut(images.test_images, images.test_labels, 200),
  )


def run(folder, job=JOB, wrap=lambda source: source, devices=None, **how):
  devices = devices or jax.devices()[:1]
  loaded = few(job)
  loaded = loaded._replace(train=wrap(loaded.train))
  ready = session.prepare(job, Processes(0, 1), devices, loaded=loaded)
  said = io.StringIO()
  console = Console(file=said, width=200)
  found = loop.run(ready, folder, console=console, **how)
  return found, said.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nothing happens to, and its numbers."""
  folder = tmp_path_factory.mktemp("whole")
  found, said = run(folder)
  assert found.status == "finished" and found.step == found.steps == STEPS
  assert "epoch 1.6, step 16 of 20: loss" in said
  return found, numbers(folder), folder


def numbers(folder):
  """metrics.jsonl without what depends on the clock."""
  clock = ("examples_per_s", "input_wait")
  return [
    {k: v for k, v in row.items() if k not in clock} for row in metrics.read(folder)
  ]


class Stopping:
  """A source that asks the process to end at its n-th batch."""

  def __init__(self, source, at):
    self._source, self._at = source, at

  def __getattr__(self, name):
    return getattr(self._source, name)

  def __len__(self):
    return len(self._source)

  def batch(self, indices, draws):
    self._at -= 1
    if self._at == 0:
      os.kill(os.getpid(), signal.SIGTERM)
    return self._source.batch(indices, draws)


def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(whole, tmp_path):
  stopped, _ = run(tmp_path, wrap=lambda source: Stopping(source, 7))
  assert stopped.status == "interrupted" and 0 < stopped.step < STEPS
  assert not (tmp_path / loop.FINAL).exists()
  found, said = run(tmp_path)
  assert f"going on from step {stopped.step} of 20" in said
  assert found.digest == whole[0].digest and found.score == whole[0].score
  assert numbers(tmp_path) == whole[1]
  final = json.loads((tmp_path / loop.FINAL).read_text())
  assert final["digest"] == found.digest and final["status"] == "finished"
  again, _ = run(tmp_path)
  assert again.digest == found.digest and again.step == STEPS


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(whole, tmp_path):
  run(tmp_path)
  steps = sorted((tmp_path / "checkpoints").glob("step_*"))
  file = max((p for p in steps[-1].rglob("*") if p.is_file()),
             key=lambda p: p.stat().st_size)  # fmt: skip
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
  found, said = run(tmp_path)
  assert (
    "the checkpoint of step 20 is damaged" in said and "going on from step 18" in said
  )
  assert found.digest == whole[0].digest


def test_a_loss_that_is_no_number_names_tensor_and_checkpoint(tmp_path):
  train = dataclasses.replace(TRAIN, learning_rate=1e30, sparsity=None)
  with pytest.raises(FloatingPointError, match="suspected: ") as error:
    run(tmp_path, dataclasses.replace(JOB, train=train))
  words = str(error.value)
  assert "in the product" in words and "learning rate 9.94e+29" in words
  assert "no checkpoint" in words or "the checkpoint of step" in words


def test_training_stops_at_its_target(tmp_path):
  job = dataclasses.replace(JOB, target=0.05)
  found, said = run(tmp_path, job)
  assert (found.status, found.step) == ("target", 8)
  assert "the target" in said
  again, _ = run(tmp_path, job)
  assert (again.status, again.digest) == ("target", found.digest)


def test_another_config_is_refused(whole, tmp_path):
  _, _, folder = whole
  other = dataclasses.replace(JOB, train=dataclasses.replace(TRAIN, seed=3))
  with pytest.raises(ValueError, match="its config or jax's options were others"):
    run(folder, other)
  origin.write(JOB, tmp_path, "command")
  with pytest.raises(ValueError, match=r"train\.seed: 0 -> 3"):
    origin.check(other, tmp_path)


def test_in_memory_the_run_is_the_same_and_writes_nothing(whole, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  found, _ = run(None)
  assert found.digest == whole[0].digest
  assert [e.test_accuracy for e in found.history] == [
    e.test_accuracy for e in whole[0].history
  ]
  assert not list(tmp_path.iterdir())


def test_a_batch_that_does_not_fit_is_refused(tmp_path):
  train = dataclasses.replace(TRAIN, batch_size=1001)
  with pytest.raises(ValueError, match="does not fit the 1,000 examples of few"):
    run(tmp_path, dataclasses.replace(JOB, train=train))


def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path):
  with pytest.raises(ValueError, match="batch_size=100 in 1 parts does not divide"):
    run(tmp_path, devices=jax.devices()[:8])


def test_a_score_that_meets_the_target_ends_the_run(whole):
  first = next(e.test_accuracy for e in whole[0].history)
  found, _ = run(None, dataclasses.replace(JOB, target=first))
  assert (found.status, found.step) == ("target", 8)


def test_every_example_weighs_the_same_in_an_evaluation():
  """72 of the 200 come in a second batch, of which the rest is filling."""
  job = dataclasses.replace(JOB, train=dataclasses.replace(TRAIN, batch_size=128))
  loaded = few(job)
  ready = session.prepare(job, Processes(0, 1), jax.devices()[:1], loaded=loaded)
  state = ready.start()
  loss, score = ready.evaluate(state)
  batch = loaded.test.batch(np.arange(200), None)
  logits = models.Cnn((2, 4), 8).apply(ready.network(state), batch["image"])
  true = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], 1)
  assert score == np.mean(np.argmax(np.asarray(logits), 1) == batch["label"])
  np.testing.assert_allclose(loss, -np.mean(true), rtol=1e-5)


def negatives(source):
  return ImageSource(1 - source.images, source.labels, classes=10, name=source.name)


def half(source):
  return ImageSource(source.images[:500], source.labels[:500], classes=10, name="half")


def test_other_data_are_refused_with_the_difference_and_taken_on_request(whole):
  _, _, folder = whole
  before = (folder / loop.FINAL).read_text()
  with pytest.raises(ValueError, match="trained on other data") as error:
    run(folder, wrap=negatives)
  assert "train.digest: " in str(error.value) and "--accept-data" in str(error.value)
  assert "test.digest" not in str(error.value)
  with pytest.raises(ValueError, match=r"train\.examples: 1000 -> 500"):
    run(folder, wrap=half)
  with pytest.raises(ValueError, match="is of step 20, after the 10 steps of this run"):
    run(folder, wrap=half, accept_data=True)
  assert (folder / loop.FINAL).read_text() == before
  found, said = run(folder, wrap=negatives, accept_data=True)
  assert found.step == STEPS and "going on from step 20" in said
  (folder / loop.FINAL).write_text(before)


def test_nothing_is_noted_of_a_run_that_is_refused(whole):
  loaded = few(JOB)._replace(train=half(few(JOB).train))
  ready = session.prepare(JOB, Processes(0, 1), jax.devices()[:1], loaded=loaded)
  noted = []
  with pytest.raises(ValueError, match="other data"):
    loop.run(
      ready, whole[2], console=Console(quiet=True), on_start=lambda: noted.append(1)
    )
  assert not noted


def test_x64_is_another_run():
  ready = session.prepare(JOB, Processes(0, 1), jax.devices()[:1], loaded=few(JOB))
  marks = [ready.fingerprint]
  for option in (jax.enable_x64(True), jax.default_matmul_precision("highest")):
    with option:
      marks.append(ready.fingerprint)
  assert len(set(marks)) == 3 and ready.fingerprint == marks[0]
