"""Trained networks of a run: the one it trains, and those fine-tuned from it.

Each is trained once and then taken from its checkpoint, as long as everything that
decides it is equal: data, model, training, and for a fine-tuned one the network that it
starts from.
"""

from collections.abc import Mapping
import contextlib
import pathlib
import shutil
from typing import Any, NamedTuple

from rich.console import Console

from jaxcodesign import tree
from jaxcodesign.data import content, image_sets
from jaxcodesign.numerics.sparsity import masks as masking
from jaxcodesign.numerics.sparsity.column_combining import Groups
from jaxcodesign.runs import fitting, origin
from jaxcodesign.runs.disk import saved
from jaxcodesign.runs.job import RunConfig
from jaxcodesign.runs.position import Epoch
from jaxcodesign.training import combining
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.distillation import Teacher
from jaxcodesign.training.masked import Prune


class Trained(NamedTuple):
  """A trained network and how it came about.

  Attributes:
    params: Zero where masked.
    history: Of its own training.
    accuracy: On the test set, in [0, 1].
    restored: Whether a checkpoint replaced the training.
    seconds: Of the training, 0 if restored.
    groups: Of combined leaves, by name.
    sparsity: What it was trained to.
  """

  params: Any
  history: tuple[Epoch, ...]
  accuracy: float
  restored: bool
  seconds: float
  groups: Mapping[str, Groups] = {}
  sparsity: Prune | combining.Combine | None = None


Networks = Mapping[TrainConfig | None, Trained]  # None: the one that is trained first


class Job(NamedTuple):
  """A training, and where its result is kept.

  Attributes:
    model: Description of the network.
    start: Parameters to start from.
    images: What it learns.
    config: How.
    target: Folder of the checkpoint.
    mark: Fingerprint of all that decides the result but the images.
    teacher: See `fitting.fit`.
    run: Devices, threads and checkpoints.
    accept_data: Whether a checkpoint of other images will do.
  """

  model: Any
  start: Any
  images: image_sets.Images
  config: TrainConfig
  target: pathlib.Path
  mark: str
  teacher: Teacher | None = None
  run: RunConfig | None = None
  accept_data: bool = False


def obtain(job: Job, *, console: Console | None = None) -> Trained:
  """Trains a network, goes on with one that was stopped, or takes it from its folder.

  While it trains, checkpoints lie beside `job.target`, from which the next start goes
  on; they are removed when the network is saved.

  Args:
    job: What to train.
    console: See `fitting.fit`.

  Raises:
    ValueError: If the checkpoint is damaged or of other images, or its parameters are
      not finite.
    OSError: If the checkpoint cannot be written.
    fitting.Interrupted: If a signal asked for an end.
  """
  sparsity = job.config.sparsity
  found = saved.restore(job.target, job.start, fingerprint=job.mark)
  if found is not None:
    params, record = found
    content.check(
      record.get("data"), job.images.content(), job.target, accept=job.accept_data
    )
    tree.check_finite(params, f"{job.target}: the checkpoint")
    history = tuple(Epoch(**epoch) for epoch in record["history"])
    groups = combining.groups_of(record)
    return Trained(params, history, record["accuracy"], True, 0.0, groups, sparsity)
  states = job.target.with_name(f"{job.target.name}.states") / job.mark
  params, history, groups = fitting.fit(
    job.model,
    job.start,
    job.images,
    job.config,
    teacher=job.teacher,
    run=job.run,
    keep=fitting.Keep(states, job.mark, job.accept_data),
    console=console,
  )
  tree.check_finite(params, "the trained model")
  accuracy = history[-1].test_accuracy
  record = {
    "fingerprint": job.mark,
    "data": job.images.content(),
    "accuracy": accuracy,
    "history": [epoch._asdict() for epoch in history],
    "versions": origin.versions(),
  } | combining.remembered(groups)
  job.target.parent.mkdir(parents=True, exist_ok=True)
  saved.save(job.target, params, record)
  shutil.rmtree(states, ignore_errors=True)
  with contextlib.suppress(OSError):
    states.parent.rmdir()  # others may be in it: trainings of another config
  seconds = sum(epoch.seconds for epoch in history)
  return Trained(params, history, accuracy, False, seconds, groups, sparsity)


def expected(params: Any, config: TrainConfig) -> Trained:
  """What `config` would make of `params` in one round and without training.

  For costs before there is a network: sizes of packed layers, on weights that are not
  the final ones, and no accuracy.
  """
  sparsity, groups = config.sparsity, {}
  if isinstance(sparsity, combining.Combine):
    found = combining.combine(
      params, sparsity.layers, method=sparsity.method, sections=sparsity.sections
    )
    params, groups = masking.apply(found.masks, params), found.groups
  elif sparsity is not None:
    params = masking.apply(masking.masks(params, sparsity.rules), params)
  return Trained(params, (), 0.0, False, 0.0, groups, sparsity)
