"""FAST against eight other number systems, trained on 10,000 images, three seeds each.

  python -m launch.train configs/fast_fashion.py

Expected on 2 CPU cores: nine minutes, 20 s a run; runs that are done are not repeated.
Mean accuracy FP32 89.9 %, HighBFP 89.4 %, LowBFP 84.0 %, FAST 88.1 % with 31 % of the
passes of fixed 4 bits. The report compares accuracy, and the modelled time and energy
to reach 85 % of the test images on arrays of one area.
"""

import dataclasses

from jaxcodesign.hardware.number_systems import systems
from jaxcodesign.training.data import FashionMnistMini
from jaxcodesign.training.models import Cnn
from jaxcodesign.training.step import TrainConfig
from jaxcodesign.training.task import Classification
from jaxcodesign.training.train_job import Comparison, RunConfig, System, TrainJob


def config() -> Comparison:
  """A CNN in each number system."""
  return Comparison(
    job=TrainJob(
      task=Classification(FashionMnistMini(), Cnn(channels=(16, 32), hidden=128)),
      train=TrainConfig(epochs=8, batch_size=128, learning_rate=3e-3),
      run=RunConfig(tensorboard=False),
    ),
    systems=tuple(map(System.of, systems())),
    target=0.85,
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
