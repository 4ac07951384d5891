"""The main job, stage by stage: train, trace, quantize, price, differentiate.

Each stage is a function of what the ones before returned; `launch.codesign` calls them
in order, shows what they say, and writes the report.
"""

from collections.abc import Callable, Iterator
import dataclasses
import importlib.metadata
import math
import pathlib
import platform
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcodesign import __version__, tree
from jaxcodesign.hardware import cost
from jaxcodesign.hardware.spec import Accelerator
from jaxcodesign.programs import precision
from jaxcodesign.programs.precision import Rule
from jaxcodesign.programs.workload import Workload, trace
from jaxcodesign.training import checkpoint, data, models, step

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
REFERENCE = "float32"


@dataclasses.dataclass(frozen=True)
class Variant:
  """One way to quantize the model.

  Attributes:
    name: Unique in a config.
    policy: Rules, first match wins.
  """

  name: str
  policy: tuple[Rule, ...]


@dataclasses.dataclass(frozen=True)
class CodesignConfig:
  """One model, many formats, many machines.

  Attributes:
    data: Source of images.
    model: Network to train.
    train: How it is trained.
    variants: Quantizations to measure and to price.
    accelerators: Machines to price them on.
    stream: Images processed one after the other, over which weights that stay on chip
      are fetched once; costs are of one image.
    temperature: Of the smooth model that sensitivities differentiate.
  """

  data: data.FashionMnistMini | data.Idx | data.Cifar10
  model: models.Cnn
  train: step.TrainConfig
  variants: tuple[Variant, ...]
  accelerators: tuple[Accelerator, ...]
  stream: int = 1000
  temperature: float = 0.2

  def __post_init__(self):
    if self.stream < 1 or not 0 < self.temperature < math.inf:
      raise ValueError(
        f"stream={self.stream} must be at least 1 and temperature={self.temperature} "
        "positive"
      )
    for kind in ("variants", "accelerators"):
      names = [part.name for part in getattr(self, kind)]
      if not names or len(set(names)) < len(names) or REFERENCE in names:
        raise ValueError(
          f"{kind} need unique names other than {REFERENCE!r}, not {names}"
        )


class Trained(NamedTuple):
  """A trained model and how it came about."""

  params: Any
  history: tuple[step.Epoch, ...]
  accuracy: float  # on the test set
  restored: bool
  seconds: float


class Priced(NamedTuple):
  """A variant on an accelerator."""

  variant: str
  accelerator: str
  report: cost.CostReport


def train(
  config: CodesignConfig,
  images: data.Images,
  folder: pathlib.Path,
  on_step: Callable[[step.Step], None] | None = None,
  on_epoch: Callable[[step.Epoch], None] | None = None,
) -> Trained:
  """Trains the model, or takes it from the checkpoint of an equal training.

  Args:
    config: Its data, model and train decide; the rest does not.
    images: What `config.data` loads.
    folder: Of the run; the checkpoint is `folder / "checkpoint"`.
    on_step: See `step.train`.
    on_epoch: See `step.train`.

  Raises:
    ValueError: If the checkpoint is damaged, or its parameters are not finite.
    OSError: If the checkpoint cannot be written.
  """
  start = initial(config, images)
  target = folder / "checkpoint"
  mark = checkpoint.fingerprint(config.data, config.model, config.train)
  found = checkpoint.restore(target, start, fingerprint=mark)
  if found is not None:
    params, record = found
    history = tuple(step.Epoch(**epoch) for epoch in record["history"])
    tree.check_finite(params, f"{target}: the checkpoint")
    return Trained(params, history, record["accuracy"], True, 0.0)
  began = time.perf_counter()
  params, history = step.train(
    config.model.apply, start, images, config.train, on_step=on_step, on_epoch=on_epoch
  )
  seconds = time.perf_counter() - began
  tree.check_finite(params, "the trained model")
  accuracy = history[-1].test_accuracy
  record = {
    "fingerprint": mark,
    "accuracy": accuracy,
    "history": [epoch._asdict() for epoch in history],
    "versions": versions(),
  }
  checkpoint.save(target, params, record)
  return Trained(params, history, accuracy, False, seconds)


def initial(config: CodesignConfig, images: data.Images) -> models.Params:
  """The weights that training starts from."""
  key = jax.random.key(config.train.seed)
  return config.model.init(key, images.image_shape, images.classes)


def workload(config: CodesignConfig, images: data.Images) -> Workload:
  """What one image asks of a machine; nothing is run."""
  params = jax.eval_shape(lambda: initial(config, images))
  image = jax.ShapeDtypeStruct((1, *images.image_shape), jnp.float32)
  return trace(config.model.apply)(params, image)


@dataclasses.dataclass(frozen=True)
class _Quantized:
  """`model.apply` of (policy, params): one compilation for all budgets of a kind.

  Activations are scaled image by image, as a machine that runs one image at a time
  would, so an accuracy does not depend on the batch it is measured in.
  """

  model: models.Cnn

  def __call__(self, policy_and_params: Any, images: jax.Array) -> jax.Array:
    policy, params = policy_and_params
    apply = precision.quantize(self.model.apply, policy)
    return jax.vmap(lambda image: apply(params, image[None])[0])(images)


def measure(
  config: CodesignConfig, params: Any, images: data.Images
) -> Iterator[tuple[Variant, float]]:
  """Yields each variant with its accuracy on the whole test set, no retraining."""
  apply = _Quantized(config.model)
  for variant in config.variants:
    accuracy = step.evaluate_accuracy(
      apply, (variant.policy, params), images.test_images, images.test_labels
    )
    yield variant, accuracy


def check(config: CodesignConfig, images: data.Images) -> None:
  """Refuses before any work what would fail after hours of it.

  Raises:
    ValueError: If a rule of a variant decides no product, a group does not divide a
      contraction, or the training set is smaller than a batch.
  """
  if config.train.batch_size > len(images.train_images):
    raise ValueError(
      f"batch_size={config.train.batch_size} is more than the "
      f"{len(images.train_images)} training images of {images.name}; lower it"
    )
  params = jax.eval_shape(lambda: initial(config, images))
  image = jax.ShapeDtypeStruct((1, *images.image_shape), jnp.float32)
  for variant in config.variants:
    try:
      jax.eval_shape(_Quantized(config.model), (variant.policy, params), image)
    except ValueError as error:
      raise ValueError(f"variant {variant.name!r}: {error}") from error


def price(config: CodesignConfig, work: Workload) -> list[Priced]:
  """Costs of every variant on every accelerator, per image, in float64."""
  return [
    Priced(
      variant.name,
      machine.name,
      cost.exact(work, machine, policy=variant.policy, repeats=float(config.stream)),
    )
    for variant in config.variants
    for machine in config.accelerators
  ]


def sensitivities(
  config: CodesignConfig, work: Workload, variant: Variant, machine: Accelerator
) -> dict[str, float]:
  """d log(EDP) / d log(leaf) of every leaf of an accelerator but its temperature.

  By jax.grad through the cost model at `config.temperature`, in float64.
  """
  machine = dataclasses.replace(machine, temperature=config.temperature)

  def log_edp(hot: Accelerator) -> jax.Array:
    found = cost.evaluate(
      work, hot, policy=variant.policy, repeats=float(config.stream)
    )
    return jnp.log(found.edp_js)

  with jax.enable_x64(True):
    wide = jax.tree.map(jnp.float64, machine)
    slopes = jax.tree.map(lambda g, x: float(g * x), jax.grad(log_edp)(wide), wide)
  named = tree.named_leaves(slopes)
  del named["temperature"]
  return named


def versions() -> dict[str, str]:
  """Versions of Python and of the packages that numbers depend on."""
  found = {"python": platform.python_version(), "jaxcodesign": __version__}
  return found | {name: importlib.metadata.version(name) for name in _PACKAGES}
