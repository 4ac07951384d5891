"""Supervised training, epoch by epoch, and the accuracy on all test images.

One jitted update is called once a batch from Python. A `lax.scan` over the batches of
an epoch was measured to be 5 times as slow on two CPU cores.
"""

from collections.abc import Callable, Iterator
import functools
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign.data import augment, image_sets
from jaxcodesign.models.classifier import Forward
from jaxcodesign.numerics.sparsity.column_combining import Groups
from jaxcodesign.training import pruning
from jaxcodesign.training.combining import Combine, Combined
from jaxcodesign.training.distillation import Teacher
from jaxcodesign.training.step import (
  Apply,
  State,
  TrainConfig,
  make_update,
  schedule,
  sparse,
)


class Step(NamedTuple):
  """What `on_step` hears after each step."""

  epoch: int  # from 1
  step: int  # of the whole run, from 1
  steps: int  # in the whole run
  images: int  # in the step
  loss: float  # nats, mean over the step


class Epoch(NamedTuple):
  """What the history holds of each epoch."""

  epoch: int  # from 1
  loss: float  # nats, mean over the epoch, weights moving
  train_accuracy: float  # in [0, 1], mean over the epoch, weights moving
  test_accuracy: float  # in [0, 1], over the whole test set, at its end
  seconds: float  # wall time, its evaluation included


class Fitted(NamedTuple):
  """A trained network.

  Attributes:
    params: After the last step, under their masks.
    history: One `Epoch` for each.
    groups: Of the combined leaves by name, empty without column combining.
  """

  params: Any
  history: tuple[Epoch, ...]
  groups: dict[str, Groups]


def train(
  apply: Apply,
  params: Any,
  images: image_sets.Images,
  config: TrainConfig,
  *,
  forward: Callable[..., Forward] | None = None,
  teacher: Teacher | None = None,
  on_step: Callable[[Step], None] | None = None,
  on_epoch: Callable[[Epoch], None] | None = None,
) -> Fitted:
  """Trains and returns the parameters after the last step.

  Deterministic on one machine: the same arguments give the same bits.

  Args:
    apply: (params, [B, H, W, C] images) -> [B, classes] logits; traced once to
      train, unless there is `forward`, and once to evaluate.
    params: Tree of float arrays to start from; they are copied, not consumed.
    images: The set; of the test images only the accuracy is used, never for a choice.
    config: How long and how fast; an epoch leaves out N % batch_size images.
    forward: See `make_update`.
    teacher: What `config.distill.teacher=None` means: the network that `params` come
      from. Other teachers are found by `config.distill`.
    on_step: Called after each step, one step late, so that the device never waits.
    on_epoch: Called at the end of each epoch.

  Raises:
    ValueError: if the training set is smaller than a batch, a schedule of
      `config.sparsity` is not over when training is, or a teacher is missing or knows
      other classes.
    FloatingPointError: at the first loss that is not finite, naming epoch, step and
      learning rate.
  """
  per_epoch = len(images.train_images) // config.batch_size
  if not per_epoch:
    raise ValueError(
      f"batch_size={config.batch_size} does not fit {len(images.train_images)} images "
      f"of {images.name}; lower it"
    )
  if config.distill is not None:
    teacher = config.distill.resolve(images, teacher)
  run = _Run(apply, forward, teacher, images, config, per_epoch)
  state = run.init(jax.tree.map(jnp.array, params))
  history = []
  for epoch in range(1, config.epochs + 1):
    started = time.perf_counter()
    state, loss, accuracy = run.epoch(state, epoch, on_step)
    test = evaluate_accuracy(
      apply, sparse(config, state), images.test_images, images.test_labels
    )
    seconds = time.perf_counter() - started
    history.append(Epoch(epoch, loss, accuracy, test, seconds))
    if on_epoch:
      on_epoch(history[-1])
  return Fitted(sparse(config, state), tuple(history), run.groups)


class _Run:
  """One training: what is fixed, and the groups that column combining found last."""

  def __init__(self, apply, forward, teacher, images, config, per_epoch):
    self.images, self.config, self.per_epoch = images, config, per_epoch
    self.steps = config.epochs * per_epoch
    teacher = teacher if config.distill else None
    self.init, self._update = make_update(
      apply, config, self.steps, forward=forward, teacher=teacher
    )
    self._taught = teacher.params if teacher else ()
    self._rounds = frozenset()
    self.groups: dict[str, Groups] = {}
    if config.sparsity is not None:
      self._rounds = frozenset(config.sparsity.rounds(self.steps))

  def epoch(
    self, state: State, epoch: int, on_step: Callable[[Step], None] | None
  ) -> tuple[State, float, float]:
    """One pass; each step is heard of while the device is at the next one."""
    seen, running, first = [], [], (epoch - 1) * self.per_epoch

    def settle():
      for step in running:
        seen.append([float(x) for x in step])
        number, loss = first + len(seen), seen[-1][0]
        _check_finite(loss, self.config, epoch, number, self.steps)
        if on_step:
          size = self.config.batch_size
          on_step(Step(epoch, number, self.steps, size, loss))

    for i, batch in enumerate(self._batches(epoch)):
      state, *ahead = self._update(self._combined(state, first + i), *batch)
      settle()
      running = [ahead]
    settle()
    loss, accuracy = np.mean(seen, axis=0)
    return state, float(loss), float(accuracy)

  def _combined(self, state: State, step: int) -> State:
    """`state` under new masks, if a round of column combining is due."""
    sparsity = self.config.sparsity
    if step not in self._rounds or not isinstance(sparsity, Combine):
      return state
    masks = pruning.masks_of(state.optimizer)
    before = Combined(masks, self.groups)
    found = sparsity.combine(state.params, before, step, self.steps)
    self.groups = found.groups
    return state._replace(optimizer=pruning.with_masks(state.optimizer, found.masks))

  def _batches(self, epoch: int) -> Iterator[tuple[Any, ...]]:
    config, images = self.config, self.images
    rng = np.random.default_rng((config.seed, epoch, 1))
    for x, y in image_sets.batches(
      images.train_images,
      images.train_labels,
      config.batch_size,
      seed=config.seed,
      epoch=epoch,
    ):
      yield augment.crop_and_flip(x, rng) if config.augment else x, y, self._taught


def _check_finite(
  loss: float, config: TrainConfig, epoch: int, step: int, steps: int
) -> None:
  if math.isfinite(loss):
    return
  rate = float(np.asarray(schedule(config, steps)(jnp.float32(step - 1))))
  raise FloatingPointError(
    f"loss is {loss} in epoch {epoch}, step {step} of {steps}, at learning rate "
    f"{rate:.3g}: lower learning_rate={config.learning_rate:g} or lengthen "
    f"warmup={config.warmup:g}, and check that the parameters are finite"
  )


def evaluate_accuracy(
  apply: Apply,
  params: Any,
  images: np.ndarray,
  labels: np.ndarray,
  batch_size: int = 500,
) -> float:
  """Returns the share of all images whose largest logit is the label's.

  One compilation for each (apply, batch_size), kept between calls as long as `apply`
  compares equal: the last batch is padded with images that do not count.

  Args:
    apply: (params, [B, ...] images) -> [B, classes] logits, hashable.
    params: First argument of `apply`.
    images: [N, ...], N >= 1.
    labels: [N] integers.
    batch_size: Images in a call; bounds memory and does not change the result, unless
      `apply` looks across the batch, as a dynamic activation scale does.

  Raises:
    ValueError: if there are no images or not one label for each.
  """
  if not len(images) or labels.shape != (len(images),):
    raise ValueError(
      f"cannot score {len(images)} images with labels of shape {labels.shape}: "
      "there must be at least one image, and one label for each"
    )
  correct = 0
  for start in range(0, len(images), batch_size):
    x, y = images[start : start + batch_size], labels[start : start + batch_size]
    padding = batch_size - len(x)
    if padding:
      x = np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
      y = np.pad(y, (0, padding), constant_values=-1)
    correct += _count_correct(apply, params, x, y)
  return int(correct) / len(images)


@functools.partial(jax.jit, static_argnums=0)
def _count_correct(apply, params, images, labels) -> jax.Array:
  # A padded image has label -1, which no argmax equals.
  return jnp.sum(apply(params, images).argmax(-1).astype(labels.dtype) == labels)
