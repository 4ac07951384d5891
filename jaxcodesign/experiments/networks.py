"""Trained networks of a run: the one it trains, and those fine-tuned from it.

Each is trained once and then taken from its checkpoint, as long as everything that
decides it is equal: data, model, training, and for a fine-tuned one the network that it
starts from.
"""

from collections.abc import Callable, Mapping
import pathlib
import time
from typing import Any, NamedTuple

import numpy as np

from jaxcodesign import tree
from jaxcodesign.data import image_sets
from jaxcodesign.numerics.sparsity import masks as masking
from jaxcodesign.numerics.sparsity.column_combining import Groups
from jaxcodesign.runs import checkpoint, fit, origin
from jaxcodesign.training import combining
from jaxcodesign.training.distillation import Teacher
from jaxcodesign.training.masked import Prune
from jaxcodesign.training.step import TrainConfig


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
  history: tuple[fit.Epoch, ...]
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
    mark: Fingerprint of all that decides the result.
    teacher: See `fit.train`.
  """

  model: Any
  start: Any
  images: image_sets.Images
  config: TrainConfig
  target: pathlib.Path
  mark: str
  teacher: Teacher | None = None


def obtain(
  job: Job,
  *,
  on_step: Callable[[fit.Step], None] | None = None,
  on_epoch: Callable[[fit.Epoch], None] | None = None,
) -> Trained:
  """Trains a network, or takes it from its checkpoint.

  Args:
    job: What to train.
    on_step: See `fit.train`.
    on_epoch: See `fit.train`.

  Raises:
    ValueError: If the checkpoint is damaged, or its parameters are not finite.
    OSError: If the checkpoint cannot be written.
  """
  sparsity = job.config.sparsity
  found = checkpoint.restore(job.target, job.start, fingerprint=job.mark)
  if found is not None:
    params, record = found
    tree.check_finite(params, f"{job.target}: the checkpoint")
    history = tuple(fit.Epoch(**epoch) for epoch in record["history"])
    groups = {name: _read(kept) for name, kept in record["groups"].items()}
    return Trained(params, history, record["accuracy"], True, 0.0, groups, sparsity)
  began = time.perf_counter()
  params, history, groups = fit.train(
    job.model.apply,
    job.start,
    job.images,
    job.config,
    forward=job.model.forward,
    teacher=job.teacher,
    on_step=on_step,
    on_epoch=on_epoch,
  )
  seconds = time.perf_counter() - began
  tree.check_finite(params, "the trained model")
  accuracy = history[-1].test_accuracy
  record = {
    "fingerprint": job.mark,
    "accuracy": accuracy,
    "history": [epoch._asdict() for epoch in history],
    "groups": {name: _written(g) for name, g in groups.items()},
    "versions": origin.versions(),
  }
  job.target.parent.mkdir(parents=True, exist_ok=True)
  checkpoint.save(job.target, params, record)
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


def _written(groups: Groups) -> dict[str, Any]:
  return {"columns": groups.columns, "members": np.asarray(groups.members).tolist()}


def _read(kept: Mapping[str, Any]) -> Groups:
  members = np.asarray(kept["members"], np.int32)
  return Groups(members, kept["columns"])
