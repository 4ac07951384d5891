"""The main job: train, fine-tune, trace, quantize, price, differentiate.

Each stage is a function of what the ones before returned; `launch.codesign` calls them
in order, shows what they say, and writes the report.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console

from jaxcodesign import tree
from jaxcodesign.data import image_sets
from jaxcodesign.experiments import networks, storage
from jaxcodesign.experiments.networks import Networks, Trained
from jaxcodesign.hardware.machines.spec import Accelerator
from jaxcodesign.hardware.mapping.stored import Stored
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.models.classifier import Classifier, Params
from jaxcodesign.programs import precision
from jaxcodesign.programs.precision import Rule
from jaxcodesign.programs.workload import Workload, trace
from jaxcodesign.runs import origin
from jaxcodesign.runs.fingerprint import fingerprint
from jaxcodesign.runs.job import RunConfig
from jaxcodesign.runs.mesh import MeshConfig
from jaxcodesign.training import scores
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.distillation import Teacher

REFERENCE = "float32"


@dataclasses.dataclass(frozen=True)
class Variant:
  """One way to make the model cheaper.

  Attributes:
    name: Unique in a config.
    policy: Rules of formats, first match wins. Weights of combined layers are rounded
      in their packed form, as the array holds them.
    tune: How the trained model is trained on first, pruned, combined or taught; None
      takes it as it is.
  """

  name: str
  policy: tuple[Rule, ...]
  tune: TrainConfig | None = None


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
    run: On which devices it trains, and how often it saves.
  """

  data: image_sets.FashionMnistMini | image_sets.Idx | image_sets.Cifar10
  model: Classifier
  train: TrainConfig
  variants: tuple[Variant, ...]
  accelerators: tuple[Accelerator, ...]
  stream: int = 1000
  temperature: float = 0.2
  run: RunConfig = dataclasses.field(
    default_factory=lambda: RunConfig(mesh=MeshConfig(data=1))
  )

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


class Priced(NamedTuple):
  """A variant on an accelerator."""

  variant: str
  accelerator: str
  report: cost.CostReport


def train(
  config: CodesignConfig,
  images: image_sets.Images,
  folder: pathlib.Path,
  *,
  console: Console | None = None,
  accept_data: bool = False,
) -> Trained:
  """Trains the model, or takes it from the checkpoint of an equal training.

  Args:
    config: Its data, model and train decide; the rest does not.
    images: What `config.data` loads.
    folder: Of the run; the checkpoint is `folder / "checkpoint"`.
    console: Where progress is shown; None shows none.
    accept_data: Whether a checkpoint of other images will do.

  Raises: As `networks.obtain`.
  """
  job = networks.Job(
    config.model,
    initial(config, images),
    images,
    config.train,
    folder / "checkpoint",
    mark_of(config),
    run=config.run,
    accept_data=accept_data,
  )
  return networks.obtain(job, console=console)


def tunings(config: CodesignConfig) -> dict[TrainConfig, str]:
  """The different ways to fine-tune, with the name of the first variant of each."""
  found: dict[TrainConfig, str] = {}
  for variant in config.variants:
    if variant.tune is not None:
      found.setdefault(variant.tune, variant.name)
  return found


def tune(
  config: CodesignConfig,
  how: TrainConfig,
  trained: Trained,
  images: image_sets.Images,
  folder: pathlib.Path,
  *,
  console: Console | None = None,
  accept_data: bool = False,
) -> Trained:
  """Trains the trained model on, or takes the result of an equal fine-tuning.

  The trained model is the teacher where `how.distill` names no other. Arguments and
  errors are those of `train`; checkpoints are in `folder / "tuned"`.
  """
  mark = mark_of(config, how)
  teacher = Teacher(config.model.forward, trained.params)
  target = folder / "tuned" / mark
  job = networks.Job(
    config.model, trained.params, images, how, target, mark, teacher, config.run,
    accept_data,
  )  # fmt: skip
  return networks.obtain(job, console=console)


def mark_of(config: CodesignConfig, *tunings: TrainConfig) -> str:
  """Fingerprint of a training: data, model, how, teachers, options of jax.

  Where the data come from counts; what they are stands in the checkpoint itself.

  Raises:
    FileNotFoundError: If the checkpoint of a teacher is missing.
    TypeError: If a teacher is a function without a name.
  """
  how = (config.train, *tunings)
  teachers = [t.distill.digest() for t in how if t.distill is not None]
  where = (config.data, config.model, *how, *filter(None, teachers))
  return fingerprint(*where, origin.numbers())


def initial(config: CodesignConfig, images: image_sets.Images) -> Params:
  """The weights that training starts from."""
  key = jax.random.key(config.train.seed)
  return config.model.init(key, images.image_shape, images.classes)


def workload(config: CodesignConfig, images: image_sets.Images) -> Workload:
  """What one image asks of a machine; nothing is run."""
  params = jax.eval_shape(lambda: initial(config, images))
  image = jax.ShapeDtypeStruct((1, *images.image_shape), jnp.float32)
  return trace(config.model.apply)(params, image)


@dataclasses.dataclass(frozen=True)
class Quantized:
  """`model.apply` of (policy, params): one compilation for all budgets of a kind.

  Activations are scaled image by image, as a machine that runs one image at a time
  would, so an accuracy does not depend on the batch it is measured in.
  """

  model: Classifier

  def __call__(self, policy_and_params: Any, images: jax.Array) -> jax.Array:
    policy, params = policy_and_params
    apply = precision.quantize(self.model.apply, policy)
    return jax.vmap(lambda image: apply(params, image[None])[0])(images)


def measure(
  config: CodesignConfig, networks: Networks, images: image_sets.Images
) -> Iterator[tuple[Variant, float]]:
  """Yields each variant with its accuracy on the whole test set."""
  apply = Quantized(config.model)
  work = workload(config, images)
  for variant in config.variants:
    policy, params = storage.rounded(variant.policy, networks[variant.tune], work)
    accuracy = scores.evaluate_accuracy(
      apply, (policy, params), images.test_images, images.test_labels
    )
    yield variant, accuracy


def price(config: CodesignConfig, work: Workload, networks: Networks) -> list[Priced]:
  """Costs of every variant on every accelerator, per image, in float64."""
  found = []
  for variant in config.variants:
    stored = storage.stored(variant.policy, networks[variant.tune], work)
    for machine in config.accelerators:
      report = cost.exact(
        work,
        machine,
        policy=variant.policy,
        repeats=float(config.stream),
        stored=stored,
      )
      found.append(Priced(variant.name, machine.name, report))
  return found


def sensitivities(
  config: CodesignConfig,
  work: Workload,
  variant: Variant,
  machine: Accelerator,
  stored: Mapping[str, Stored],
) -> dict[str, float]:
  """d log(EDP) / d log(leaf) of every leaf of an accelerator but its temperature.

  By jax.grad through the cost model at `config.temperature`, in float64.
  """
  machine = dataclasses.replace(machine, temperature=config.temperature)

  def log_edp(hot: Accelerator) -> jax.Array:
    found = cost.evaluate(
      work,
      hot,
      policy=variant.policy,
      repeats=float(config.stream),
      stored=stored,
    )
    return jnp.log(found.edp_js)

  with jax.enable_x64(True):
    wide = jax.tree.map(jnp.float64, machine)
    slopes = jax.tree.map(lambda g, x: float(g * x), jax.grad(log_edp)(wide), wide)
  named = tree.named_leaves(slopes)
  del named["temperature"]
  return named
