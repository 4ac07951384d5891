"""Training steps on the chip at hand: seconds, images a second, share of its peak.

The step of the CIFAR-10 configs, loss and optimizer included, on one device and a batch
that lies there already; the images are noise, so that no files are needed. MFU is
Chowdhery et al.'s, "PaLM", JMLR 2023: operations of the matrix products, forward and
backward and without what is computed again, a second, over the chip's bf16 peak. That
is the peak for float32 steps too, whose products run in matrix units of no more than
this by default (TF32 on a GPU, bf16 on a TPU), and for block floating point, which is
simulated in float32. A chip whose peak is not known, as a CPU, has no MFU.
"""

from collections.abc import Iterator
import dataclasses
import pathlib
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign.data import image_sets
from jaxcodesign.experiments import comparison
from jaxcodesign.experiments.systems import Comparison
from jaxcodesign.hardware.machines.chips import CHIPS, Chip
from jaxcodesign.models.vit import Vit
from jaxcodesign.programs.fast import Fast
from jaxcodesign.programs.precision import Rule
from jaxcodesign.runs import command_line, session
from jaxcodesign.runs.job import TrainJob
from jaxcodesign.runs.processes import Processes
from jaxcodesign.training.rounded import Dtype, Precision
from jaxcodesign.training.task import Classification
from launch.benchmark_training import BFP4
from launch.timing import Measurement, seconds

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
MODELS = {
  "ResNet-20": CONFIGS / "fast_cifar10_resnet.py",
  "ViT": CONFIGS / "fast_cifar10_vit.py",
}
PRECISIONS: dict[str, tuple[Precision, Dtype]] = {
  "float32": (None, "float32"),
  "bfloat16": (None, "bfloat16"),
  "BFP 4 bit": ((Rule("*", BFP4, BFP4, BFP4),), "float32"),
  "FAST": (Fast(), "float32"),
}
CPU_BATCH = 16
# As jax names them. Names are whole: an H100 PCIe or NVL has lower peaks. An H200
# multiplies as fast as an H100 SXM, only its memory differs (NVIDIA's data sheet).
KINDS = {
  "NVIDIA H100 80GB HBM3": "h100",
  "NVIDIA H200": "h100",
  "NVIDIA B200": "b200",
  "TPU v4": "tpu_v4",
  "TPU v5 lite": "tpu_v5e",
  "TPU v5e": "tpu_v5e",
  "TPU v5": "tpu_v5p",
  "TPU v5p": "tpu_v5p",
  "TPU v6 lite": "tpu_v6e",
  "TPU v6e": "tpu_v6e",
}


def device(repetitions: int = 5) -> Iterator[Measurement]:
  """Each model's step in each of PRECISIONS, on the first device that jax sees.

  Args:
    repetitions: Behind each median; on an accelerator each is of 20 steps.
  """
  found = jax.devices()[0]
  on_cpu = found.platform == "cpu"
  chip = chip_of(found.device_kind)
  for model, path in MODELS.items():
    job = noisy(job_of(command_line.load(path).config()), CPU_BATCH if on_cpu else None)
    flops, params = operations(job), weights(job)
    for title, (precision, dtype) in PRECISIONS.items():
      train = dataclasses.replace(job.train, precision=precision, dtype=dtype)
      made = dataclasses.replace(job, train=train)
      took = step_seconds(made, params, repetitions, steps=1 if on_cpu else 20)
      size = job.train.batch_size
      name = f"{found.device_kind}, {model}, {title}, batch {size}"
      yield from rows(name, size, flops, took, chip)


def rows(
  name: str, batch: int, flops: float, step_s: float, chip: Chip | None
) -> Iterator[Measurement]:
  """Seconds of a step, images a second and, of a known chip, MFU.

  Args:
    name: What was measured.
    batch: Images of a step.
    flops: Of its matrix products.
    step_s: Seconds that it took.
    chip: That it ran on; None where its peak is not known.
  """
  work = f"{flops / 1e9:.3g} GFLOP of products"
  yield Measurement(f"training step, {name}", step_s, "s", work, "", step_s)
  speed = batch / step_s
  peak = float(np.asarray(chip.peak("bf16", "bf16"))) if chip else None
  against = "" if chip else "no peak known, no MFU"
  yield Measurement(f"images, {name}", speed, "images/s", against, "", step_s)
  if chip and peak:
    share = 100 * flops / step_s / peak
    against = f"{peak / 1e12:.4g} TFLOP/s, bf16 of {chip.name}"
    yield Measurement(f"MFU, {name}", share, "%", against, "", step_s)


def chip_of(kind: str) -> Chip | None:
  """The chip that multiplies as one of jax's device kind; None if none is known."""
  return CHIPS[KINDS[kind]]() if kind in KINDS else None


def job_of(config: TrainJob | Comparison) -> TrainJob:
  """The job of a config, with its own precision."""
  return config.job if isinstance(config, Comparison) else config


@dataclasses.dataclass(frozen=True)
class Noise(image_sets.Cifar10):
  """As many random images as a file of CIFAR-10 has records, and nothing read."""

  def load(self) -> image_sets.Images:
    rng = np.random.default_rng(0)
    images = rng.random((self.records, 32, 32, 3), np.float32)
    labels = rng.integers(0, 10, self.records).astype(np.int32)
    return image_sets.Images(images, labels, images[:1], labels[:1], "noise", 10)


def noisy(job: TrainJob, batch: int | None = None) -> TrainJob:
  """The job on a single batch of `Noise`, of its own size if none is given."""
  assert isinstance(job.task, Classification)
  size = batch or job.train.batch_size
  task = dataclasses.replace(job.task, data=Noise("", records=size))
  train = dataclasses.replace(job.train, batch_size=size)
  return dataclasses.replace(job, task=task, train=train)


def operations(job: TrainJob) -> int:
  """Of the products of a step, 2 a multiply-accumulate; what `remat` repeats, once."""
  assert isinstance(job.task, Classification)
  model = job.task.model
  if isinstance(model, Vit):
    model = dataclasses.replace(model, remat=False)
  task = dataclasses.replace(job.task, model=model)
  return 2 * comparison.workload(dataclasses.replace(job, task=task)).macs


def weights(job: TrainJob) -> Any:
  """Drawn once for all precisions: to compile the draws takes as long as a step's."""
  loaded = job.task.load(job.train)
  return jax.jit(lambda: loaded.init(jax.random.key(0)))()


def step_seconds(job: TrainJob, params: Any, repetitions: int, *, steps: int) -> float:
  """Median seconds of a compiled step on one device, over repetitions of `steps`.

  Args:
    job: What is trained.
    params: Where it starts; they are copied, as a step consumes its state.
    repetitions: How many there are.
    steps: Of each, one after the other with no wait.
  """
  ready = session.prepare(job, Processes(), jax.devices()[:1])
  source = ready.loaded.train
  batch = ready.place(source.batch(np.arange(job.train.batch_size), None))
  # As the step returns it, else the second step would compile once more.
  start = jax.jit(
    lambda params, key: ready.functions.init(jax.tree.map(jnp.copy, params), key),
    out_shardings=jax.tree.map(lambda x: x.sharding, ready.state),
  )
  state = [start(params, jax.random.key(1))]

  def run() -> Any:
    for _ in range(steps):
      state[0], _ = ready.step(state[0], batch, ready.frozen)
    return state[0]

  return statistics.median(seconds(run, repetitions)) / steps
