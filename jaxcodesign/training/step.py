"""Supervised training of a pure `apply`: AdamW, a warm-up, then a cosine to zero.

One jitted update is called once a batch from Python. A `lax.scan` over the batches of
an epoch was measured to be 5 times as slow on two CPU cores.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcodesign.training import data, losses

Apply = Callable[[Any, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How a model is trained.

  Attributes:
    epochs: Passes over the training images.
    batch_size: Images in a step.
    learning_rate: Peak, reached at the end of the warm-up.
    weight_decay: Of AdamW, on every parameter.
    warmup: Share of all steps, in [0, 1), over which the learning rate rises from 0.
    label_smoothing: Mass of the target spread evenly over the classes, in [0, 1].
    seed: Of the order of the images and, by convention, of the weights.
  """

  epochs: int = 10
  batch_size: int = 128
  learning_rate: float = 3e-3
  weight_decay: float = 1e-2
  warmup: float = 0.1
  label_smoothing: float = 0.1
  seed: int = 0

  def __post_init__(self):
    if self.epochs < 1 or self.batch_size < 1 or self.seed < 0:
      raise ValueError(f"epochs and batch_size must be >= 1 and seed >= 0 in {self}")
    if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
      raise ValueError(f"learning_rate must be > 0 and weight_decay >= 0 in {self}")
    if not 0 <= self.warmup < 1 or not 0 <= self.label_smoothing <= 1:
      raise ValueError(
        f"warmup must be in [0, 1) and label_smoothing in [0, 1] in {self}"
      )


class State(NamedTuple):
  """What a step changes."""

  params: Any
  optimizer: optax.OptState


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


def schedule(config: TrainConfig, steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of the step, `steps` long."""
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0 if config.warmup else config.learning_rate,
    peak_value=config.learning_rate,
    warmup_steps=math.floor(config.warmup * steps),
    decay_steps=steps,
  )


def make_update(
  apply: Apply, config: TrainConfig, steps: int
) -> tuple[Callable[[Any], State], jax.stages.Wrapped]:
  """Returns the two functions that training is made of.

  Args:
    apply: (params, [B, ...] images) -> [B, classes] logits.
    config: Of the optimizer and the loss.
    steps: In the whole run: where the learning rate ends.

  Returns:
    `init(params) -> State`, and the jitted `update(state, images, labels) -> (State,
    loss, accuracy)`, which consumes (donates) the state it is given. `update.lower`
    takes ShapeDtypeStructs, for its cost and memory without a step.
  """
  optimizer = optax.adamw(schedule(config, steps), weight_decay=config.weight_decay)

  def init(params):
    return State(params, optimizer.init(params))

  def loss_and_accuracy(params, images, labels):
    logits = apply(params, images)
    loss = losses.cross_entropy(logits, labels, config.label_smoothing)
    return loss, losses.accuracy(logits, labels)

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, images, labels):
    value_and_grad = jax.value_and_grad(loss_and_accuracy, has_aux=True)
    (loss, accuracy), grads = value_and_grad(state.params, images, labels)
    # optax raises floats to integer powers, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
      changes, moved = optimizer.update(grads, state.optimizer, state.params)
    return State(optax.apply_updates(state.params, changes), moved), loss, accuracy

  return init, update


def train(
  apply: Apply,
  params: Any,
  images: data.Images,
  config: TrainConfig,
  *,
  on_step: Callable[[Step], None] | None = None,
  on_epoch: Callable[[Epoch], None] | None = None,
) -> tuple[Any, tuple[Epoch, ...]]:
  """Trains and returns the parameters after the last step.

  Deterministic on one machine: the same arguments give the same bits.

  Args:
    apply: (params, [B, H, W, C] images) -> [B, classes] logits; traced once to
      train and once to evaluate.
    params: Tree of float arrays to start from; they are copied, not consumed.
    images: The set; of the test images only the accuracy is used, never for a choice.
    config: How long and how fast; an epoch leaves out N % batch_size images.
    on_step: Called after each step, one step late, so that the device never waits.
    on_epoch: Called at the end of each epoch.

  Returns:
    (params, history), one `Epoch` for each.

  Raises:
    ValueError: if the training set is smaller than a batch.
    FloatingPointError: at the first loss that is not finite, naming epoch, step and
      learning rate.
  """
  per_epoch = len(images.train_images) // config.batch_size
  if not per_epoch:
    raise ValueError(
      f"batch_size={config.batch_size} does not fit {len(images.train_images)} images "
      f"of {images.name}; lower it"
    )
  steps = config.epochs * per_epoch
  init, update = make_update(apply, config, steps)
  state = init(jax.tree.map(jnp.array, params))
  history = []
  for epoch in range(1, config.epochs + 1):
    started = time.perf_counter()
    first = (epoch - 1) * per_epoch + 1

    def hear(i, loss, first=first, epoch=epoch):
      _check_finite(loss, config, epoch, first + i, steps)
      if on_step:
        on_step(Step(epoch, first + i, steps, config.batch_size, loss))

    state, loss, accuracy = _run_epoch(update, state, images, config, epoch, hear)
    test = evaluate_accuracy(
      apply, state.params, images.test_images, images.test_labels
    )
    seconds = time.perf_counter() - started
    history.append(Epoch(epoch, loss, accuracy, test, seconds))
    if on_epoch:
      on_epoch(history[-1])
  return state.params, tuple(history)


def _run_epoch(
  update, state, images, config, epoch, hear
) -> tuple[State, float, float]:
  """One pass; `hear(i, loss)` of each step while the device is at the next one."""
  order = data.batches(
    images.train_images,
    images.train_labels,
    config.batch_size,
    seed=config.seed,
    epoch=epoch,
  )
  seen, running = [], []

  def settle():
    for step in running:
      seen.append([float(x) for x in step])
      hear(len(seen) - 1, seen[-1][0])

  for batch in order:
    state, *ahead = update(state, *batch)
    settle()
    running = [ahead]
  settle()
  loss, accuracy = np.mean(seen, axis=0)
  return state, float(loss), float(accuracy)


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
