"""FAST against eight number systems: ResNet-20 on CIFAR-10, three seeds each.

  python -m launch.train configs/fast_cifar10_resnet.py

Expected: 27 runs of 164 epochs (64,000 iterations, as He et al. train it, with a cosine
in place of the steps; they report 91.25 % in float32). It was not run in full: on 2 CPU
cores a step takes half a second; shorten it with --job.train.epochs 2. Needs CIFAR-10's
binary version in $JAXCODESIGN_DATA/cifar10 (default ~/.cache/jaxcodesign), or
--job.task.data.directory.
"""

import dataclasses

from jaxcodesign.data.cache import cache
from jaxcodesign.data.image_sets import Cifar10, FashionMnistMini
from jaxcodesign.experiments.systems import Comparison, System
from jaxcodesign.hardware.machines.number_systems import systems
from jaxcodesign.models import ResNet
from jaxcodesign.runs.job import TrainJob
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.task import Classification


def config() -> Comparison:
  """ResNet-20 in each number system."""
  train = TrainConfig(
    epochs=164,
    batch_size=128,
    learning_rate=0.1,
    weight_decay=1e-4,
    warmup=0.01,
    label_smoothing=0.0,
    optimizer="sgd",
    augment=True,
  )
  return Comparison(
    job=TrainJob(Classification(Cifar10(cache() / "cifar10"), ResNet()), train),
    systems=tuple(map(System.of, systems())),
    target=0.9,
  )


def smoke() -> Comparison:
  """The same path in seconds: a narrow network on images that are everywhere."""
  made = config()
  model = ResNet(blocks=1, width=4)
  train = dataclasses.replace(made.job.train, epochs=1, batch_size=500)
  job = TrainJob(Classification(FashionMnistMini(), model), train)
  few = tuple(s for s in made.systems if s.name in ("FP32", "FAST"))
  return dataclasses.replace(made, job=job, systems=few, seeds=(0,), target=0.2)
