"""Where precision is needed: FAST's rule against schedules by layer and by iteration.

  python -m launch.train configs/fast_ablation.py

Expected on 2 CPU cores: 27 runs of the CNN of fast_fashion.py, eight epochs of 20 s in
all; runs that are done are not repeated. Two precisions, 2 and 4 bits, switch half-way:
with depth or with training, low first or (reversed) high first, three seeds each.
"""

import dataclasses

from jaxcodesign.data.image_sets import FashionMnistMini
from jaxcodesign.experiments.systems import Comparison, System
from jaxcodesign.models import Cnn
from jaxcodesign.numerics.precision_schedules import (
  Adaptive,
  ByIteration,
  ByLayer,
  Constant,
)
from jaxcodesign.programs.fast import Fast
from jaxcodesign.runs.job import RunConfig, TrainJob
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.task import Classification

SCHEDULES = {
  "FAST": Adaptive(alpha=0.65, beta=0.5, first_high=True),
  "FAST recalled": Adaptive(),
  "low": Constant(2),
  "high": Constant(4),
  "late high": ByIteration(),
  "late low": ByIteration(reverse=True),
  "deep high": ByLayer(),
  "deep low": ByLayer(reverse=True),
}


def config() -> Comparison:
  """Each schedule, and float32."""
  return Comparison(
    job=TrainJob(
      task=Classification(FashionMnistMini(), Cnn(channels=(16, 32), hidden=128)),
      train=TrainConfig(epochs=8, batch_size=128, learning_rate=3e-3),
      run=RunConfig(tensorboard=False),
    ),
    systems=(
      System("float32"),
      *(System(name, Fast(schedule)) for name, schedule in SCHEDULES.items()),
    ),
    target=0.85,
  )


def smoke() -> Comparison:
  """The same path in seconds: one schedule of a smaller CNN."""
  made = config()
  few = tuple(s for s in made.systems if s.name == "late high")
  train = dataclasses.replace(made.job.train, epochs=1, batch_size=500)
  task = Classification(FashionMnistMini(), Cnn(channels=(4, 8), hidden=16))
  job = dataclasses.replace(made.job, task=task, train=train)
  return dataclasses.replace(made, job=job, systems=few, seeds=(0,), target=0.2)
