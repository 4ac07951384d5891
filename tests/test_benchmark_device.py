"""The benchmark of a device divides the right numbers by one another."""

import dataclasses

import jax
import pytest

from jaxcodesign import models
from jaxcodesign.experiments import comparison
from jaxcodesign.experiments.systems import Comparison, System
from jaxcodesign.hardware.machines import chips
from jaxcodesign.runs.job import TrainJob
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.task import Classification
from launch import benchmark_device as benchmark

BATCH = 8
CNN = models.Cnn((2,), 8)


def job(model: models.Classifier = CNN):
  """On images that are not there."""
  train = TrainConfig(epochs=1, batch_size=BATCH, augment=True)
  data = benchmark.image_sets.Cifar10("nowhere")
  return TrainJob(Classification(data, model), train)


def test_rows_of_a_known_chip():
  step, images, mfu = benchmark.rows("x", 32, 1e12, 0.25, chips.h100_sxm())
  assert (step.value, step.unit) == (0.25, "s")
  assert (images.value, images.unit) == (128, "images/s")
  assert mfu.value == pytest.approx(100 * 4e12 / 989e12) and mfu.unit == "%"
  assert "989 TFLOP/s" in mfu.floor
  assert {row.seconds for row in (step, images, mfu)} == {0.25}


def test_an_unknown_chip_has_no_mfu_and_says_so():
  assert benchmark.chip_of("cpu") is benchmark.chip_of("NVIDIA H100 PCIe") is None
  step, images = benchmark.rows("x", 32, 1e12, 0.25, None)
  assert (step.value, images.value) == (0.25, 128)
  assert "no MFU" in images.floor


@pytest.mark.parametrize("kind", benchmark.KINDS)
def test_a_known_chip_has_the_peak_that_mfu_is_of(kind):
  chip = benchmark.chip_of(kind)
  assert chip is not None and chip.unit("bf16", "bf16") == "bf16"


def test_operations_are_those_of_all_three_products():
  conv, dense1, dense2 = 32 * 32 * 27 * 2, 16 * 16 * 2 * 8, 8 * 10
  # The images need no gradient.
  macs = BATCH * (2 * conv + 3 * (dense1 + dense2))
  assert benchmark.operations(benchmark.noisy(job())) == 2 * macs


def test_what_is_computed_again_counts_once():
  vit = models.Vit(patch=8, width=8, depth=1, heads=1)
  plain, repeated = (
    benchmark.noisy(job(dataclasses.replace(vit, remat=remat)))
    for remat in (False, True)
  )
  macs = [comparison.workload(made).macs for made in (plain, repeated)]
  assert macs[0] < macs[1]
  for made in (plain, repeated):
    assert benchmark.operations(made) == 2 * macs[0]


def test_a_step_is_a_share_of_what_its_repetitions_take(monkeypatch, caplog):
  moved = []

  def clock(run, repetitions):
    with jax.log_compiles():
      moved.extend(int(run().step) for _ in range(repetitions))
    return [2.0, 8.0, 4.0]

  monkeypatch.setattr(benchmark, "seconds", clock)
  made = benchmark.noisy(job())
  params = benchmark.weights(made)
  assert benchmark.step_seconds(made, params, 3, steps=4) == 1.0
  jax.block_until_ready(params)  # they are still there
  assert moved == [4, 8, 12]  # steps that were made, each from where the last ended
  # Once: the first call, which is left out, is a single step on a CPU.
  assert caplog.text.count("Finished XLA compilation of jit(step)") == 1


@pytest.mark.parametrize("batch", [None, 16])
def test_noise_fills_one_batch_of_any_size(batch):
  made = benchmark.noisy(job(), batch)
  size = batch or BATCH
  assert made.train.batch_size == size
  loaded = made.task.load(made.train)
  assert len(loaded.train) == size
  assert loaded.train.shapes(size)["image"].shape == (size, 32, 32, 3)


def test_all_rows_are_told(monkeypatch):
  jobs = {}

  def took(made, params, repetitions, *, steps):
    assert params is None
    how = made.train
    jobs[made.task.model, how.dtype, how.precision] = made, repetitions, steps
    return 0.5

  monkeypatch.setattr(benchmark, "step_seconds", took)
  monkeypatch.setattr(benchmark, "operations", lambda _: 1e9)
  monkeypatch.setattr(benchmark, "weights", lambda _: None)
  rows = list(benchmark.device(repetitions=3))
  kind = jax.devices()[0].device_kind
  wanted = [
    f"{what}, {kind}, {model}, {title}, batch 16"
    for model in benchmark.MODELS
    for title in benchmark.PRECISIONS
    for what in ("training step", "images")
  ]
  assert [row.name for row in rows] == wanted
  assert {row.value for row in rows} == {0.5, 32.0}
  assert len(jobs) == 8 and {told[1:] for told in jobs.values()} == {(3, 1)}
  assert {type(model) for model, *_ in jobs} == {models.ResNet, models.Vit}


def test_a_config_is_a_job_or_a_comparison():
  made = job()
  train = dataclasses.replace(made.train, dtype="bfloat16")
  both = Comparison(dataclasses.replace(made, train=train), (System("one"),))
  assert benchmark.job_of(made) == made
  assert benchmark.job_of(both) == both.job
