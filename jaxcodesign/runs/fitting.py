"""A model trained from given parameters, in memory or in a folder, by one call.

fitted = fit(cnn, cnn.init(key, (28, 28, 1), 10), images, TrainConfig(epochs=3))
"""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console

from jaxcodesign.data import image_sets
from jaxcodesign.numerics.sparsity.column_groups import Groups
from jaxcodesign.runs import loop, session
from jaxcodesign.runs.job import RunConfig, TrainJob
from jaxcodesign.runs.mesh import MeshConfig
from jaxcodesign.runs.position import Epoch
from jaxcodesign.runs.processes import Processes
from jaxcodesign.runs.session import Session
from jaxcodesign.training import combining
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.distillation import Teacher
from jaxcodesign.training.task import Loaded, Task, classify

Apply = Callable[[Any, jax.Array], jax.Array]


class Fitted(NamedTuple):
  """A trained network.

  Attributes:
    params: After the last step, under their masks.
    history: One `Epoch` for each evaluation.
    groups: Of the combined leaves by name, empty without column combining.
  """

  params: Any
  history: tuple[Epoch, ...]
  groups: dict[str, Groups]


class Keep(NamedTuple):
  """Where a training keeps its checkpoints.

  Attributes:
    folder: Of the checkpoints, made if absent.
    mark: Fingerprint of all that decides the result but the images.
    accept_data: Whether to go on from a checkpoint of other images.
  """

  folder: pathlib.Path
  mark: str
  accept_data: bool = False


class Interrupted(RuntimeError):
  """A run that was stopped on request; its last checkpoint is that of this moment."""


@dataclasses.dataclass(frozen=True)
class Given(Task):
  """Images in memory and a model, as a task; `fit` makes it."""

  model: Any
  images: image_sets.Images
  teacher: Teacher | None = None

  def load(self, config: TrainConfig) -> Loaded:
    return classify(self.model, self.images, config, self.teacher)


def fit(
  model: Any,
  params: Any,
  images: image_sets.Images,
  config: TrainConfig,
  *,
  teacher: Teacher | None = None,
  run: RunConfig | None = None,
  keep: Keep | None = None,
  console: Console | None = None,
) -> Fitted:
  """Trains and returns the parameters after the last step.

  Deterministic on one machine: the same arguments give the same bits, whether or not
  the run was stopped on its way.

  Args:
    model: A `models.Classifier`, or a pure function (params, [B, H, W, C] images) ->
      [B, classes] logits.
    params: Tree of float arrays to start from; they are copied, not consumed.
    images: The set; of the test images only the accuracy is used, never for a choice.
    config: How; an epoch leaves out N % batch_size images.
    teacher: What `config.distill.teacher=None` means: the network that `params` come
      from.
    run: Devices, threads, checkpoints; by default one device.
    keep: Where checkpoints go, from the newest of which the same call goes on; None
      keeps everything in memory.
    console: Where progress is shown; None shows none.

  Raises:
    ValueError: If the training set is smaller than a batch, a schedule of a method is
      not over when training is, a teacher is missing or knows other classes, or the
      checkpoint is of other images.
    FloatingPointError: At the first loss that is not finite, naming the step and the
      suspected tensor.
    Interrupted: If a signal asked for an end.
    OSError: If the folder cannot be written.
  """
  folder, mark, accept = keep or (None, "", False)
  ready = prepare(model, params, images, config, teacher=teacher, run=run, mark=mark)
  console = console or Console(quiet=True)
  found = loop.run(
    ready, folder, console=console, metrics_too=False, accept_data=accept
  )
  if found.status == "interrupted":
    raise Interrupted(f"stopped on request at step {found.step:,} of {found.steps:,}")
  groups = {}
  for memory in found.memories:
    groups |= combining.groups_of(memory)
  # Of the caller from here on: on the default device, not on a mesh.
  trained = jax.tree.map(jnp.asarray, jax.device_get(ready.network(found.state)))
  return Fitted(trained, found.history, groups)


def prepare(
  model: Any,
  params: Any,
  images: image_sets.Images,
  config: TrainConfig,
  *,
  teacher: Teacher | None = None,
  run: RunConfig | None = None,
  mark: str = "",
) -> Session:
  """What `fit` runs: everything is traced on shapes, nothing is compiled.

  Arguments and errors are those of `fit`; `params` may be ShapeDtypeStructs.
  """
  run = run or RunConfig(mesh=MeshConfig(data=1))
  devices = jax.devices()
  if run.mesh.size():
    devices = devices[: run.mesh.size()]
  job = TrainJob(Given(model, images, teacher), config, run=run)
  zeros = lambda key: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
  loaded = job.task.load(config)._replace(init=zeros)  # for its shapes alone
  return session.prepare(
    job, Processes(0, 1), devices, loaded=loaded, mark=mark, start_from=params
  )
