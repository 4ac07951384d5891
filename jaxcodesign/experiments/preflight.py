"""Refuses before any work what would fail after hours of it.

Everything that a run will do is done once on shapes, or on the initial weights: each
training step is traced, each way to store weights is made, each variant rounded.
"""

from collections.abc import Iterator
import contextlib

import jax
import jax.numpy as jnp

from jaxcodesign.data import image_sets
from jaxcodesign.experiments import codesign, networks, payoff, storage
from jaxcodesign.experiments.codesign import CodesignConfig, Quantized
from jaxcodesign.experiments.networks import Trained
from jaxcodesign.runs import fitting
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.distillation import Teacher


def check(config: CodesignConfig, images: image_sets.Images) -> None:
  """Raises what a run of `config` would raise, as far as shapes tell.

  Raises:
    ValueError: If a rule of a variant decides no product or no leaf, a group does not
      divide a contraction, a batch does not fit the training set, a schedule outlasts
      its run, a teacher does not fit, or a pattern is none that an array stores; the
      message names the variant.
    FileNotFoundError: If the checkpoint of a teacher is missing.
    TypeError: If a teacher is a function without a name.
  """
  start = codesign.initial(config, images)
  teacher = Teacher(config.model.forward, start)
  found: dict[TrainConfig | None, Trained] = {}
  with _of("train"):
    _training(config, config.train, images, None)
    found[None] = networks.expected(start, config.train)
  for how, name in codesign.tunings(config).items():
    with _of(f"variant {name!r}"):
      codesign.mark_of(config, how)
      _training(config, how, images, teacher)
      found[how] = networks.expected(start, how)
  work = codesign.workload(config, images)
  shapes = jax.eval_shape(lambda: codesign.initial(config, images))
  image = jax.ShapeDtypeStruct((1, *images.image_shape), jnp.float32)
  for variant in config.variants:
    with _of(f"variant {variant.name!r}"):
      jax.eval_shape(Quantized(config.model), (variant.policy, shapes), image)
      storage.rounded(variant.policy, found[variant.tune], work)
      storage.stored(variant.policy, found[variant.tune], work)
  payoff.payoff(config, work, found, {v.name: 0.0 for v in config.variants})


def _training(
  config: CodesignConfig,
  how: TrainConfig,
  images: image_sets.Images,
  teacher: Teacher | None,
) -> None:
  """Traces a step of a training."""
  start = jax.eval_shape(lambda: codesign.initial(config, images))
  fitting.prepare(config.model, start, images, how, teacher=teacher, run=config.run)


@contextlib.contextmanager
def _of(what: str) -> Iterator[None]:
  """Puts `what` in front of the message of an error."""
  try:
    yield
  except (ValueError, TypeError, FileNotFoundError) as error:
    kinds = (ValueError, TypeError, FileNotFoundError)
    kind = next(k for k in kinds if isinstance(error, k))
    raise kind(f"{what}: {error}") from error
