"""One step of a run as a pure function of its state and a batch.

Accumulation, rematerialization, mixed precision and what methods do are all done to the
task's loss here; how the arrays lie on devices is the caller's. A step whose loss or
gradient is not finite leaves the state as it was and says so: what is saved afterwards
is good. It stays so in the steps after it, which have begun already when the host hears
of it.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcodesign.training import optimizer
from jaxcodesign.training.config import Remat, TrainConfig
from jaxcodesign.training.method import At, Method, Setting
from jaxcodesign.training.rounded import Dtype
from jaxcodesign.training.statistics import with_statistics
from jaxcodesign.training.task import Batch, Outcome


class TrainState(NamedTuple):
  """All that a step changes, and nothing else decides the next one but the batch.

  Attributes:
    step: int32, steps made.
    params: Latent parameters in float32; `Step.network` has those of the network.
    optimizer: With masks inside, if there are any.
    key: Of the run; a step folds its number in.
    kept: What each method keeps.
    good: bool, False from the first step on that was not finite: nothing moves then.
  """

  step: jax.Array
  params: Any
  optimizer: Any
  key: jax.Array
  kept: tuple[Any, ...]
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


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
  """The functions of a run, to be jitted by the caller.

  Attributes:
    loss: (params, batch, train=) -> `Outcome`.
    config: What is done to it.
    steps: In the whole run.
    methods: Those of the config, prepared by `prepare`.
    teach: See `task.Loaded`.
    gather: What makes parameters whole that are spread over devices, see
      `mesh.gathered`.
  """

  loss: Callable[..., Outcome]
  config: TrainConfig
  steps: int
  methods: tuple[Method, ...] = ()
  teach: Callable[[Any, Batch], Batch] = lambda frozen, batch: batch
  gather: Callable[[Any], Any] = lambda params: params

  @functools.cached_property
  def _optimizer(self) -> optax.GradientTransformation:
    return optimizer.optimizer_of(self.config, self.steps)

  def plain(self, params: Any, batch: Batch) -> Outcome:
    """The loss in training, in its dtype and without methods: what is traced."""
    return _in_dtype(self.loss, self.config.dtype, params, batch)

  def init(self, params: Any, key: jax.Array) -> TrainState:
    """The state before the first step."""
    kept = tuple(method.init() for method in self.methods)
    zero, good = jnp.zeros((), jnp.int32), jnp.ones((), bool)
    return TrainState(zero, params, self._optimizer.init(params), key, kept, good)

  def network(self, state: TrainState) -> Any:
    """The parameters that the network has: those of a state, under its masks."""
    params = state.params
    for method in self.methods:
      params = method.network(params, state.optimizer)
    return params

  def step(self, state: TrainState, batch: Batch, frozen: Any) -> Any:
    """One step: (`TrainState`, `Told`)."""
    grads, told, outcome, stats = _accumulated(
      functools.partial(self._gradients, state),
      self.network(state),
      self.teach(frozen, batch),
      self.config.accumulate,
    )
    # optax raises floats to integer powers, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
      norm = optax.tree.norm(grads)
      changes, moved = self._optimizer.update(grads, state.optimizer, state.params)
      rate = optimizer.schedule(self.config, self.steps)(state.step)
    after = with_statistics(optax.apply_updates(state.params, changes), stats)
    finite = jnp.isfinite(outcome.loss) & jnp.isfinite(norm) & state.good
    at = self._at(state, state.key, train=True)
    kept = tuple(
      method.keep(old, new, at)
      for method, old, new in zip(self.methods, state.kept, told)
    )
    choose = lambda new, old: jnp.where(finite, new, old)
    moved = TrainState(
      state.step + finite.astype(jnp.int32),
      jax.tree.map(choose, after, state.params),
      jax.tree.map(choose, moved, state.optimizer),
      state.key,
      jax.tree.map(choose, kept, state.kept),
      finite,
    )
    accuracy = outcome.correct / outcome.counted
    rate = jnp.asarray(rate, jnp.float32)
    return moved, Told(outcome.loss, accuracy, norm, rate, finite)

  def evaluate(self, state: TrainState, batch: Batch, frozen: Any) -> Outcome:
    """The outcome of a batch with "weight", as methods change it after this step."""
    del frozen
    at = self._at(state, state.key, train=False)
    loss = functools.partial(_in_dtype, self.loss, self.config.dtype, train=False)
    for method in self.methods:
      loss = method.change(loss, at, None)
    return loss(self.gather(self.network(state)), batch)._replace(stats=None)

  def _at(self, state: TrainState, key: jax.Array, *, train: bool) -> At:
    progress = state.step.astype(jnp.float32) / self.steps
    return At(state.step, progress, key, train)

  def _gradients(self, state: TrainState, params: Any, batch: Batch, part: Any) -> Any:
    """Gradients, what methods are told, and outcome of a part of a batch."""
    # A key for each step and part: microbatches must not share their noise.
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), part)
    at = self._at(state, key, train=True)

    def objective(params: Any, probes: Any) -> tuple[jax.Array, Outcome]:
      loss = self.plain
      for method, probe in zip(self.methods, probes):
        loss = method.change(loss, at, probe)
      outcome = _rematerialized(loss, self.config.remat)(self.gather(params), batch)
      return outcome.loss, outcome

    probes = tuple(method.probe() for method in self.methods)
    (_, outcome), (grads, told) = jax.value_and_grad(
      objective, argnums=(0, 1), has_aux=True
    )(params, probes)
    return grads, told, outcome


def prepare(
  loss: Callable[..., Outcome],
  config: TrainConfig,
  steps: int,
  params: Any,
  batch: Batch,
  *,
  teach: Callable[[Any, Batch], Batch] = lambda frozen, batch: batch,
  frozen: Any = (),
  gather: Callable[[Any], Any] = lambda params: params,
) -> Step:
  """A step whose methods are prepared; traces shapes, allocates nothing.

  Args:
    loss: See `Step`.
    config: See `Step`.
    steps: See `Step`.
    params: Tree of arrays or ShapeDtypeStructs.
    batch: The same of a part of a batch, of batch_size / accumulate examples.
    teach: See `Step`.
    frozen: First argument of `teach`, likewise.
    gather: See `Step`.

  Raises:
    ValueError: As methods do.
  """
  plain = Step(loss, config, steps, (), teach, gather)
  told = jax.eval_shape(teach, frozen, batch)
  setting = Setting(plain.plain, params, told, steps, config.accumulate)
  methods = tuple(method.prepared(setting) for method in config.every_method())
  return dataclasses.replace(plain, methods=methods)


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
    cast = with_statistics(cast, moving)
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
  """Mean gradients, the sum of what is told, outcome and statistics of all parts."""
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
    params = with_statistics(params, stats)
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
