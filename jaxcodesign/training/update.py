"""One step of a run as a pure function of its state and a batch.

Precision, accumulation, rematerialization, mixed precision and pruning are all done to
the task's loss here; how the arrays lie on devices is the caller's. A step whose loss
or gradient is not finite leaves the state as it was and says so: what is saved
afterwards is good. It stays so in the steps after it, which have begun already when
the host hears of it.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from jaxcodesign.programs import fast, precision
from jaxcodesign.programs.fast import Fast
from jaxcodesign.programs.policy import Rule
from jaxcodesign.training import step
from jaxcodesign.training.step import TrainConfig
from jaxcodesign.training.task import Batch, Outcome

Precision = Fast | tuple[Rule, ...] | None
Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "dots", "all"]
BUCKETS = 100  # of a run, in each of which telemetry is summed


class TrainState(NamedTuple):
  """All that a step changes, and nothing else decides the next one but the batch.

  Attributes:
    step: int32, steps made.
    params: Latent parameters in float32; `step.sparse` has those of the network.
    optimizer: With masks inside, if there are any.
    key: Of the run; a step folds its number in.
    telemetry: float32 [BUCKETS, products, 6], see `fast.quantize`, () without FAST.
    good: bool, False from the first step on that was not finite: nothing moves then.
  """

  step: jax.Array
  params: Any
  optimizer: Any
  key: jax.Array
  telemetry: Any
  good: jax.Array


class Told(NamedTuple):
  """What a step says, float32 scalars.

  Attributes:
    loss: Mean over the batch.
    accuracy: In [0, 1], over the batch.
    gradient: Norm of all gradients together.
    learning_rate: Of the step.
    finite: Whether loss and gradient are; if not, the state has not changed.
  """

  loss: jax.Array
  accuracy: jax.Array
  gradient: jax.Array
  learning_rate: jax.Array
  finite: jax.Array


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What, with the task, decides the numbers of a run.

  Attributes:
    train: Optimizer, schedule, pruning.
    steps: In the whole run.
    precision: `Fast`, rules as `quantize` takes them, or None for none.
    dtype: Of everything in forward and backward passes but sums, losses and running
      statistics; parameters are kept in float32.
    accumulate: Parts in which a batch goes through, gradients averaged: example i is in
      part i modulo their number, so every device has its share of each.
    remat: What backward passes compute again: nothing, all but products, or all.
  """

  train: TrainConfig
  steps: int
  precision: Precision = None
  dtype: Dtype = "float32"
  accumulate: int = 1
  remat: Remat = "none"

  def __post_init__(self):
    for name, kinds in (("dtype", Dtype), ("remat", Remat)):
      if getattr(self, name) not in get_args(kinds):
        raise ValueError(f"{name}={getattr(self, name)!r} is none of {get_args(kinds)}")
    if self.accumulate < 1 or self.train.batch_size % self.accumulate:
      raise ValueError(
        f"accumulate={self.accumulate} must divide batch_size={self.train.batch_size}"
      )


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
  """The functions of a run, to be jitted by the caller.

  Attributes:
    loss: (params, batch, train=) -> `Outcome`.
    recipe: What is done to it.
    teach: See `task.Loaded`.
    plan: Of the products, for the telemetry of FAST; None keeps none.
    gather: What makes parameters whole that are spread over devices, see
      `mesh.gathered`.
  """

  loss: Callable[..., Outcome]
  recipe: Recipe
  teach: Callable[[Any, Batch], Batch] = lambda frozen, batch: batch
  plan: fast.Plan | None = None
  gather: Callable[[Any], Any] = lambda params: params

  @functools.cached_property
  def _optimizer(self) -> optax.GradientTransformation:
    return step.optimizer_of(self.recipe.train, self.recipe.steps)

  def plain(self, params: Any, batch: Batch) -> Outcome:
    """The loss in training, in its dtype and without precision: what is traced."""
    return _in_dtype(self.loss, self.recipe.dtype, params, batch)

  def init(self, params: Any, key: jax.Array) -> TrainState:
    """The state before the first step."""
    telemetry: Any = ()
    if self.plan is not None:
      telemetry = jnp.zeros((BUCKETS, *self.plan.probe().shape))
    zero, good = jnp.zeros((), jnp.int32), jnp.ones((), bool)
    return TrainState(zero, params, self._optimizer.init(params), key, telemetry, good)

  def step(self, state: TrainState, batch: Batch, frozen: Any) -> Any:
    """One step: (`TrainState`, `Told`)."""
    config, steps = self.recipe.train, self.recipe.steps
    params = step.sparse(config, state)
    grads, told, outcome, stats = _accumulated(
      functools.partial(self._gradients, state),
      params,
      self.teach(frozen, batch),
      self.recipe.accumulate,
    )
    step.refuse_statistics(config, state, stats)
    # optax raises floats to integer powers, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
      norm = optax.tree.norm(grads)
      changes, moved = self._optimizer.update(grads, state.optimizer, state.params)
      rate = jnp.asarray(step.schedule(config, steps)(state.step), jnp.float32)
    after = step.with_statistics(optax.apply_updates(state.params, changes), stats)
    finite = jnp.isfinite(outcome.loss) & jnp.isfinite(norm) & state.good
    keep = lambda new, old: jnp.where(finite, new, old)
    telemetry = state.telemetry
    if self.plan is not None:
      bucket = _bucket(state.step, steps)
      telemetry = telemetry.at[bucket].add(jnp.where(finite, told, 0.0))
    moved = TrainState(
      state.step + finite.astype(jnp.int32),
      jax.tree.map(keep, after, state.params),
      jax.tree.map(keep, moved, state.optimizer),
      state.key,
      telemetry,
      finite,
    )
    accuracy = outcome.correct / outcome.counted
    return moved, Told(outcome.loss, accuracy, norm, rate, finite)

  def evaluate(self, state: TrainState, batch: Batch, frozen: Any) -> Outcome:
    """The outcome of a batch with "weight", in the precision of the state's step."""
    del frozen
    run = functools.partial(_in_dtype, self.loss, self.recipe.dtype, train=False)
    run = _precise(run, self.recipe.precision, self._progress(state), state.key, None)
    params = self.gather(step.sparse(self.recipe.train, state))
    return run(params, batch)._replace(stats=None)

  def _progress(self, state: TrainState) -> jax.Array:
    return state.step.astype(jnp.float32) / self.recipe.steps

  def _gradients(self, state: TrainState, params: Any, batch: Batch, part: Any) -> Any:
    """Gradients, telemetry and outcome of a part of a batch."""
    # A key for each step and part: microbatches must not share their noise.
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), part)

    def objective(params: Any, probe: Any) -> tuple[jax.Array, Outcome]:
      how = self.recipe.precision
      run = _precise(self.plain, how, self._progress(state), key, probe)
      outcome = _rematerialized(run, self.recipe.remat)(self.gather(params), batch)
      return outcome.loss, outcome

    probe = self.plan.probe() if self.plan else None
    (_, outcome), (grads, told) = jax.value_and_grad(
      objective, argnums=(0, 1), has_aux=True
    )(params, probe)
    return grads, told, outcome


def bucket_steps(steps: int) -> list[int]:
  """How many steps of a run of `steps` each bucket of telemetry has, [BUCKETS]."""
  counts = [0] * BUCKETS
  for i in range(steps):
    counts[i * min(BUCKETS, steps) // steps] += 1
  return counts


def _bucket(number: jax.Array, steps: int) -> jax.Array:
  # A product of int32 would overflow in long runs: whole steps of a bucket instead.
  buckets = min(BUCKETS, steps)
  edges = jnp.asarray([-(-i * steps // buckets) for i in range(1, buckets)], jnp.int32)
  return jnp.searchsorted(edges, number, side="right")


def _precise(
  run: Callable[..., Outcome], how: Precision, progress: Any, key: Any, probe: Any
) -> Callable[..., Outcome]:
  """`run` with its products in a precision."""
  if how is None:
    return run
  if isinstance(how, Fast):
    noisy = key if how.stochastic else None
    return fast.quantize(run, how, progress=progress, key=noisy, probe=probe)
  return precision.quantize(run, how, key=key if any(map(_noisy, how)) else None)


def _noisy(rule: Rule) -> bool:
  """Whether a rule rounds an operand stochastically."""
  return any(getattr(rule, operand) is not None for operand in rule.stochastic)


def _rematerialized(run: Callable[..., Any], how: Remat) -> Callable[..., Any]:
  policies = jax.checkpoint_policies
  if how == "none":
    return run
  policy = policies.dots_saveable if how == "dots" else policies.nothing_saveable
  return jax.checkpoint(run, policy=policy)  # pyright: ignore[reportPrivateImportUsage]


def _in_dtype(
  loss: Callable[..., Outcome], dtype: Dtype, params: Any, batch: Batch, train=True
) -> Outcome:
  """The loss with parameters and inputs in `dtype`, its outcome in float32."""
  if dtype == "float32":
    return loss(params, batch, train=train)
  narrow = lambda x: (
    x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x
  )
  stats = jax.eval_shape(lambda p, b: loss(p, b, train=True), params, batch).stats
  cast = jax.tree.map(narrow, params)
  if stats is not None:
    # Running statistics move by less than bfloat16 can tell apart.
    moving = jax.tree.map(
      lambda new, old: None if new is None else old,
      stats,
      params,
      is_leaf=lambda x: x is None,
    )
    cast = step.with_statistics(cast, moving)
  exact = {"weight", "label", "tokens"}
  inputs = {k: v if k in exact else jax.tree.map(narrow, v) for k, v in batch.items()}
  # Statistics in float32 meet bfloat16, which strict promotion refuses.
  with jax.numpy_dtype_promotion("standard"):
    found = loss(cast, inputs, train=train)
  return jax.tree.map(
    lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x,
    found,
  )


def _accumulated(
  gradients: Callable[..., Any], params: Any, batch: Batch, parts: int
) -> tuple[Any, Any, Outcome, Any]:
  """Mean gradients, summed telemetry, the outcome and statistics of all parts."""
  if parts == 1:
    grads, told, outcome = gradients(params, batch, 0)
    return grads, told, outcome, outcome.stats

  def split(x: jax.Array) -> jax.Array:
    return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

  def body(carry: Any, part: Any) -> Any:
    params, total = carry
    number, piece = part
    grads, told, outcome = gradients(params, piece, number)
    stats, outcome = outcome.stats, outcome._replace(stats=None)
    # Statistics move from part to part, as they would from step to step.
    params = step.with_statistics(params, stats)
    return (params, jax.tree.map(jnp.add, total, (grads, told, outcome))), stats

  pieces = jax.tree.map(split, batch)
  first = jax.tree.map(lambda x: x[0], pieces)
  shapes = jax.eval_shape(gradients, params, first, jnp.int32(0))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  zeros = (zeros[0], zeros[1], zeros[2]._replace(stats=None))
  numbers = jnp.arange(parts, dtype=jnp.int32)
  (_, total), every = jax.lax.scan(body, (params, zeros), (numbers, pieces))
  grads, told, outcome = total
  grads = jax.tree.map(lambda g: g / parts, grads)
  outcome = outcome._replace(loss=outcome.loss / parts)
  stats = jax.tree.map(lambda x: x[-1], every)
  return grads, told, outcome, stats


def describe(how: Precision, dtype: Dtype) -> str:
  """A precision in a few words."""
  if isinstance(how, Fast):
    return f"FAST, {how.schedule}"
  if isinstance(how, Sequence):
    return "; ".join(f"{rule.leaf}: {_formats(rule)}" for rule in how)
  return dtype


def _formats(rule: Rule) -> str:
  back = rule.backward
  sides = {
    "W": rule.weight,
    "A": rule.activation,
    "G": back.input_gradient if back else None,
  }
  return ", ".join(
    f"{side} {type(fmt).__name__} {float(fmt.bits_per_value()):g} bit"
    for side, fmt in sides.items()
    if fmt is not None
  )
