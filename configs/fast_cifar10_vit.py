"""FAST against eight number systems: a vision transformer on CIFAR-10, three seeds.

  python -m launch.train configs/fast_cifar10_vit.py

Expected: 27 runs of 200 epochs. It was not run in full: on 2 CPU cores a step takes
seconds, so shorten it with --job.train.epochs 1. Six blocks of width 192 on patches of
4 x 4 pixels, AdamW with the rates that DeiT uses for such widths (recalled). Needs
CIFAR-10's binary version in $JAXCODESIGN_DATA/cifar10 (default ~/.cache/jaxcodesign),
or --job.task.data.directory.
"""

import dataclasses

from jaxcodesign.data.cache import cache
from jaxcodesign.data.image_sets import Cifar10, FashionMnistMini
from jaxcodesign.experiments.systems import Comparison, System
from jaxcodesign.hardware.machines.number_systems import systems
from jaxcodesign.models import Vit
from jaxcodesign.runs.job import TrainJob
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.task import Classification


def config() -> Comparison:
  """Two hundred epochs, blocks computed again in the backward pass."""
  train = TrainConfig(
    epochs=200,
    batch_size=512,
    learning_rate=1e-3,
    weight_decay=0.05,
    warmup=0.05,
    augment=True,
    clip=1.0,
  )
  task = Classification(Cifar10(cache() / "cifar10"), Vit(remat=True))
  return Comparison(
    job=TrainJob(task, train), systems=tuple(map(System.of, systems())), target=0.85
  )


def smoke() -> Comparison:
  """The same path in seconds: FAST, two narrow blocks, images that are everywhere."""
  made = config()
  train = TrainConfig(epochs=1, batch_size=500, clip=1.0)
  model = Vit(width=32, depth=2, heads=2, patch=7, remat=True)
  job = TrainJob(Classification(FashionMnistMini(), model), train)
  few = tuple(s for s in made.systems if s.name == "FAST")
  return dataclasses.replace(made, job=job, systems=few, seeds=(0,), target=0.2)
