"""A training step of a pure `apply`: a warm-up, then a decay.

Weights may be pruned on the way, by a schedule inside the step or by column combining
between two steps, and a teacher may speak beside the labels.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from jaxcodesign import tree
from jaxcodesign.models.classifier import Forward
from jaxcodesign.training import losses, pruning
from jaxcodesign.training.combining import Combine
from jaxcodesign.training.distillation import Distill, Teacher
from jaxcodesign.training.masked import Prune

Apply = Callable[[Any, jax.Array], jax.Array]
Optimizer = Literal["adamw", "sgd"]
Decay = Literal["cosine", "linear", "rsqrt", "constant"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How a model is trained.

  Attributes:
    epochs: Passes over the training images.
    batch_size: Images in a step.
    learning_rate: Peak, reached at the end of the warm-up.
    weight_decay: On every parameter: AdamW's, or sgd's, which its momentum sees.
    warmup: Share of all steps, in [0, 1), over which the learning rate rises from 0.
    label_smoothing: Mass of the target spread evenly over the classes, in [0, 1].
    seed: Of the order of the images and, by convention, of the weights.
    optimizer: "adamw", or "sgd" with a momentum of 0.9.
    decay: Of the learning rate after the warm-up: "cosine" or "linear" to zero at the
      end, "rsqrt" as 1 / sqrt(step), or "constant".
    b2: Decay of AdamW's second moment, in [0, 1).
    clip: Largest norm of all gradients together; 0 for any.
    augment: Whether images are moved by up to 4 pixels and mirrored at random; those of
      folders are cropped at random.
    sparsity: What is pruned while training runs: `Prune`, `Combine` or nothing.
    distill: Who teaches beside the labels, if anyone.
  """

  epochs: int = 10
  batch_size: int = 128
  learning_rate: float = 3e-3
  weight_decay: float = 1e-2
  warmup: float = 0.1
  label_smoothing: float = 0.1
  seed: int = 0
  optimizer: Optimizer = "adamw"
  decay: Decay = "cosine"
  b2: float = 0.999
  clip: float = 0.0
  augment: bool = False
  sparsity: Prune | Combine | None = None
  distill: Distill | None = None

  def __post_init__(self):
    if self.optimizer not in get_args(Optimizer):
      raise ValueError(f"optimizer={self.optimizer!r} is none of {get_args(Optimizer)}")
    if self.decay not in get_args(Decay):
      raise ValueError(f"decay={self.decay!r} is none of {get_args(Decay)}")
    if not 0 <= self.b2 < 1 or not 0 <= self.clip < math.inf:
      raise ValueError(f"b2 must be in [0, 1) and clip >= 0 in {self}")
    if self.epochs < 1 or self.batch_size < 1 or self.seed < 0:
      raise ValueError(f"epochs and batch_size must be >= 1 and seed >= 0 in {self}")
    if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
      raise ValueError(f"learning_rate must be > 0 and weight_decay >= 0 in {self}")
    if not 0 <= self.warmup < 1 or not 0 <= self.label_smoothing <= 1:
      raise ValueError(
        f"warmup must be in [0, 1) and label_smoothing in [0, 1] in {self}"
      )


class State(NamedTuple):
  """What a step changes.

  Attributes:
    params: Latent parameters, where masked weights may live on; `sparse` gives those
      that the network has.
    optimizer: With masks inside, if there are any.
  """

  params: Any
  optimizer: optax.OptState


def schedule(config: TrainConfig, steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of the step, `steps` long."""
  peak, warmup = config.learning_rate, math.floor(config.warmup * steps)
  if config.decay == "cosine":
    return optax.warmup_cosine_decay_schedule(
      init_value=0.0 if config.warmup else peak,
      peak_value=peak,
      warmup_steps=warmup,
      decay_steps=steps,
    )
  after: optax.Schedule = optax.constant_schedule(peak)
  if config.decay == "linear":
    after = optax.linear_schedule(peak, 0.0, max(1, steps - warmup))
  elif config.decay == "rsqrt":
    start = float(max(1, warmup))
    after = lambda step: peak * jnp.sqrt(start / (start + step))
  if not warmup:
    return after
  rise = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([rise, after], [warmup])


def make_update(
  apply: Apply,
  config: TrainConfig,
  steps: int,
  *,
  forward: Callable[..., Forward] | None = None,
  teacher: Teacher | None = None,
) -> tuple[Callable[[Any], State], jax.stages.Wrapped]:
  """Returns the two functions that training is made of.

  Args:
    apply: (params, [B, ...] images) -> [B, classes] logits.
    config: Of the optimizer, the loss and what is pruned.
    steps: In the whole run: where the learning rate ends.
    forward: Of a model with running statistics or features, `models.Cnn.forward`:
      (params, images, train=True) -> `Forward`. Takes the place of `apply`.
    teacher: Who teaches; `config.distill` says how.

  Returns:
    `init(params) -> State`, and the jitted `update(state, images, labels,
    teacher.params) -> (State, loss, accuracy)`, the last argument () without a teacher.
    It consumes (donates) the state it is given. `update.lower` takes
    ShapeDtypeStructs, for its cost and memory without a step.

  Raises:
    ValueError: If there is a teacher and no `config.distill`, or the reverse.
  """
  if (teacher is None) != (config.distill is None):
    raise ValueError(f"teacher={teacher} but distill={config.distill}: give both")
  optimizer = optimizer_of(config, steps)

  def init(params):
    return State(params, optimizer.init(params))

  def loss_of(params, images, labels, told):
    result = _run(apply, forward, params, images)
    loss = losses.cross_entropy(result.logits, labels, config.label_smoothing)
    if config.distill is not None:
      loss = config.distill.loss(loss, result, told)
    return loss, (result.stats, losses.accuracy(result.logits, labels))

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, images, labels, taught=()):
    told = teacher.forward(taught, images) if teacher else None
    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
    (loss, (stats, accuracy)), grads = value_and_grad(
      sparse(config, state), images, labels, told
    )
    refuse_statistics(config, state, stats)
    # optax raises floats to integer powers, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
      changes, moved = optimizer.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, changes)
    return State(with_statistics(params, stats), moved), loss, accuracy

  return init, update


def optimizer_of(config: TrainConfig, steps: int) -> optax.GradientTransformation:
  """The optimizer of a run of so many steps, masks included."""
  rate = schedule(config, steps)
  if config.optimizer == "adamw":
    plain = optax.adamw(rate, b2=config.b2, weight_decay=config.weight_decay)
  else:
    plain = optax.chain(
      optax.add_decayed_weights(config.weight_decay), optax.sgd(rate, momentum=0.9)
    )
  if config.clip:
    plain = optax.chain(optax.clip_by_global_norm(config.clip), plain)
  if config.sparsity is None:
    return plain
  return config.sparsity.wrap(plain, steps)


def sparse(config: TrainConfig, state: Any) -> Any:
  """The parameters that the network has: those of a state, under its masks."""
  if config.sparsity is None:
    return state.params
  return pruning.sparse(state.params, state.optimizer)


def _run(apply, forward, params, images) -> Forward:
  if forward is None:
    return Forward(apply(params, images), (), None)
  return forward(params, images, train=True)


def refuse_statistics(config: TrainConfig, state: Any, stats: Any) -> None:
  """Raises a ValueError if a running statistic is under a mask.

  Args:
    config: Of the training.
    state: Anything with `params` and `optimizer`.
    stats: `Forward.stats`.
  """
  if config.sparsity is None or stats is None:
    return
  masks = pruning.masks_of(state.optimizer)
  structure = jax.tree.structure(state.params)
  for name, mask, moved in zip(
    tree.names(state.params),
    structure.flatten_up_to(masks),
    structure.flatten_up_to(stats),
  ):
    if mask is not None and moved is not None:
      raise ValueError(
        f"{name} is a running statistic and may not be pruned; name the kernels, as "
        "'*/kernel' does"
      )


def with_statistics(params: Any, stats: Any) -> Any:
  """`params` with the running statistics of `stats`, None for other leaves."""
  if stats is None:
    return params
  return jax.tree.map(
    lambda new, old: old if new is None else new,
    stats,
    params,
    is_leaf=lambda x: x is None,
  )
