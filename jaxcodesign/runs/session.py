"""A run made ready: data, compiled step, state on the mesh, and where it goes on."""

from collections.abc import Callable
import dataclasses
import functools
import hashlib
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from jaxcodesign.data import pipeline
from jaxcodesign.data.content import Content
from jaxcodesign.runs import agreement, mesh, origin
from jaxcodesign.runs.fingerprint import fingerprint
from jaxcodesign.runs.job import TrainJob
from jaxcodesign.runs.processes import Processes
from jaxcodesign.training import step
from jaxcodesign.training.step import Step, TrainState
from jaxcodesign.training.task import Loaded

# Examples of an evaluation step, at least as many as in training. Formats that look at
# a whole batch see it: it is the same on every mesh whose data axes divide it.
TEST_BATCH = 512


@dataclasses.dataclass(frozen=True)
class Session:
  """What a run needs and never changes.

  Attributes:
    job: The config.
    loaded: The task.
    steps: In the whole run.
    per_epoch: Steps of an epoch.
    mesh: Of all devices.
    processes: Which of how many this one is.
    functions: Of the run, not jitted.
    state: Shapes and shardings of the state.
    mark: Fingerprint of what decides the numbers; None: that of the job.
    start_from: Parameters to start from; None draws them.
  """

  job: TrainJob
  loaded: Loaded
  steps: int
  per_epoch: int
  mesh: Mesh
  processes: Processes
  functions: Step
  state: TrainState
  mark: str | None = None
  start_from: Any = None

  @functools.cached_property
  def step(self) -> jax.stages.Wrapped:
    """The jitted step; it consumes the state it is given."""
    return jax.jit(
      self.functions.step,
      donate_argnums=0,
      in_shardings=(self._shardings, self.over_batch, self.everywhere),
      out_shardings=(self._shardings, self.everywhere),
    )

  @functools.cached_property
  def _evaluate(self) -> Callable[..., Any]:
    return jax.jit(
      self.functions.evaluate,
      in_shardings=(self._shardings, self.over_batch, self.everywhere),
      out_shardings=self.everywhere,
    )

  @property
  def _shardings(self) -> TrainState:
    return jax.tree.map(lambda x: x.sharding, self.state)

  @property
  def over_batch(self) -> NamedSharding:
    """How batches lie."""
    return mesh.batch_sharding(self.mesh)

  @property
  def everywhere(self) -> NamedSharding:
    """How scalars and frozen parameters lie: the same on every device."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def evaluate_every(self) -> int:
    """Steps between two evaluations."""
    return self.job.evaluate_every or self.per_epoch

  @property
  def checkpoint_every(self) -> int:
    """Steps between two checkpoints."""
    return self.job.run.checkpoint_every or self.evaluate_every

  @property
  def fingerprint(self) -> str:
    """Of what decides the numbers, but for the data, which a person may change."""
    if self.mark is not None:
      return fingerprint(self.mark, origin.numbers())
    train = self.job.train
    taught = train.distill.digest() if train.distill else ""
    return fingerprint(origin.without_run(self.job), taught, origin.numbers())

  @functools.cached_property
  def data(self) -> Content:
    """What the examples are."""
    return content(self.loaded)

  @property
  def _part(self) -> tuple[int, int]:
    """Which part of every batch is read here, of how many."""
    own = mesh.part(self.mesh)
    return own.index, own.count

  @functools.cached_property
  def frozen(self) -> Any:
    """Parameters that are never trained, on every device."""
    frozen = self.loaded.frozen
    return mesh.place(frozen, jax.tree.map(lambda _: self.everywhere, frozen))

  def network(self, state: TrainState) -> Any:
    """The parameters that the network has in a state."""
    return self._network(state)

  @functools.cached_property
  def _network(self) -> Callable[..., Any]:
    return jax.jit(self.functions.network)

  def start(self) -> TrainState:
    """The state before the first step: the same on any number of devices."""
    draw, key = jax.random.split(jax.random.key(self.job.train.seed))
    if self.start_from is None:
      made = jax.jit(
        lambda draw, key: self.functions.init(self.loaded.init(draw), key),
        out_shardings=self._shardings,
      )
      return made(draw, key)
    begin = jax.jit(self.functions.init, out_shardings=self._shardings)
    return begin(mesh.place(self.start_from, self._shardings.params), key)

  def lay(self, state: TrainState) -> TrainState:
    """A state of the host on the devices, as steps want it."""
    return mesh.place(state, self._shardings)

  def batches(self, first: int) -> pipeline.Stream:
    """Training batches from step `first` on, this process's part of them."""
    run = self.job.run
    return pipeline.batches(
      self.loaded.train,
      batch_size=self.job.train.batch_size,
      steps=self.steps,
      first=first,
      seed=self.job.train.seed,
      process=self._part,
      prefetch=run.prefetch,
      threads=run.threads,
    )

  def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A global batch of this process's part of it."""
    return mesh.global_batch(self.mesh, batch)

  def evaluate(self, state: TrainState) -> tuple[float, float]:
    """Mean loss and accuracy over all test examples."""
    sums = np.zeros(3)
    parts = []
    run = self.job.run
    with pipeline.evaluation(
      self.loaded.test,
      batch_size=_test_batch(self.mesh, self.job.train.batch_size),
      process=self._part,
      prefetch=run.prefetch,
      threads=run.threads,
    ) as stream:
      for batch in stream:
        found = self._evaluate(state, self.place(batch), self.frozen)
        parts.append((found.loss * found.counted, found.correct, found.counted))
    for part in parts:
      sums += [float(x) for x in part]
    return float(sums[0] / sums[2]), float(sums[1] / sums[2])


def prepare(
  job: TrainJob,
  processes: Processes,
  devices: Any = None,
  *,
  loaded: Loaded | None = None,
  mark: str | None = None,
  start_from: Any = None,
) -> Session:
  """Loads the task and traces everything once, on shapes.

  Args:
    job: The config.
    processes: What `distributed.initialize` returned.
    devices: All by default.
    loaded: The task, if it is loaded already.
    mark: See `Session`.
    start_from: See `Session`.

  Raises:
    ValueError: If the batch does not fit data or mesh, a rule decides nothing, whatever
      else shapes tell, or a process has another config or other data.
    FileNotFoundError: If data are missing.
  """
  loaded = loaded or job.task.load(job.train)
  size = job.train.batch_size
  per_epoch = len(loaded.train) // size
  if not per_epoch:
    raise ValueError(
      f"batch_size={size} does not fit the {len(loaded.train):,} examples of "
      f"{loaded.train.name}; lower it"
    )
  steps = per_epoch * job.train.epochs
  made = job.run.mesh.make(devices)
  _check_batch(job, made)
  for method in job.train.every_method():
    method.rounds(steps)
  params = _shapes(loaded.init)
  spread = mesh.parameter_shardings(made, job.run.mesh, params)
  functions = step.prepare(
    loaded.loss,
    job.train,
    steps,
    params,
    loaded.train.shapes(size // job.train.accumulate),
    teach=loaded.teach,
    frozen=loaded.frozen,
    gather=functools.partial(mesh.gathered, shardings=spread),
  )
  state = jax.eval_shape(functions.init, params, jax.random.key(0))
  shardings = mesh.state_shardings(made, job.run.mesh, state)
  state = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
  )
  session = Session(
    job, loaded, steps, per_epoch, made, processes, functions, state, mark, start_from
  )
  jax.eval_shape(session.step, state, loaded.train.shapes(size), loaded.frozen)
  _agree(session)
  return session


def _agree(session: Session) -> None:
  """Refuses a run whose processes were given different configs or data."""
  if session.processes.count == 1:
    return
  config = origin.decisive(session.job) | {"numbers": origin.numbers()}
  own = {"config": config, "data": session.data, "mark": session.fingerprint}
  agreement.agree(own)


def content(loaded: Loaded) -> Content:
  """What the examples of a task are."""
  return {"train": loaded.train.content(), "test": loaded.test.content()}


def _shapes(init: Callable[[jax.Array], Any]) -> Any:
  """Shapes of the parameters, of a task that draws them or of one that has them."""
  return jax.eval_shape(init, jax.random.key(0))


def batch_shapes(session: Session) -> tuple[Any, Any]:
  """Shapes and shardings of what a step takes besides its state."""
  wanted = session.loaded.train.shapes(session.job.train.batch_size)
  batch, frozen = (
    jax.tree.map(
      lambda x, s=s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes
    )
    for shapes, s in (
      (wanted, session.over_batch),
      (session.loaded.frozen, session.everywhere),
    )
  )
  return batch, frozen


def digest(state: TrainState) -> str:
  """16 hex digits of every bit of a state, the same on any mesh."""
  hashed = hashlib.sha256()
  key = jax.random.key_data(state.key)
  for leaf in jax.tree.leaves(state._replace(key=key)):
    if not leaf.is_fully_addressable:
      from jax.experimental import multihost_utils

      leaf = multihost_utils.process_allgather(leaf, tiled=True)
    hashed.update(np.ascontiguousarray(leaf).tobytes())
  return hashed.hexdigest()[:16]


def _check_batch(job: TrainJob, made: Mesh) -> None:
  size, parts = job.train.batch_size, job.train.accumulate
  if size // parts % _share(made):
    raise ValueError(
      f"batch_size={size} in {parts} parts does not divide over the "
      f"{_share(made)} devices of data * fsdp: make it a multiple of "
      f"{parts * _share(made)}, or the mesh smaller (run.mesh)"
    )


def _share(made: Mesh) -> int:
  """Devices that a batch is split over."""
  return math.prod(made.shape[name] for name in ("data", "fsdp"))


def _test_batch(made: Mesh, batch_size: int) -> int:
  """Examples of an evaluation step: a multiple of what the batch axes need."""
  least = max(TEST_BATCH, batch_size)
  return -(-least // _share(made)) * _share(made)
