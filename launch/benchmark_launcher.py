"""What the launcher costs beside the step that it runs, and what processes change.

A run of the training loop logs, saves and reads its batches as ever; evaluation alone
is left out. From time to time it stands still, once its checkpoint is on disk, and the
same compiled step runs as often on a batch that lies on the device: their ratio is what
the loop, its checkpoints and its threads take from the step.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import itertools
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
from rich.console import Console

from jaxcodesign.programs.fast import Fast
from jaxcodesign.runs import command_line, loop, metrics, session
from jaxcodesign.runs.job import TrainJob
from jaxcodesign.runs.processes import Processes
from jaxcodesign.runs.session import Session
from launch import children
from launch.timing import Measurement, ratio

ROOT = pathlib.Path(__file__).parents[1]
LOG_EVERY = 10  # steps
JOB = ROOT / "configs" / "fast_fashion.py"
PRECISIONS = {"float32": None, "FAST": Fast()}
CONFIG = '''"""A small CNN on eight devices, 25 steps."""

from jaxcodesign.programs.fast import Fast
from jaxcodesign.data.image_sets import FashionMnistMini
from jaxcodesign.runs.mesh import MeshConfig
from jaxcodesign.models import Cnn
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.task import Classification
from jaxcodesign.runs.job import RunConfig, TrainJob


def config():
  """An epoch."""
  return TrainJob(
    task=Classification(FashionMnistMini(), Cnn(channels=(4, 8), hidden=16)),
    train=TrainConfig(
      epochs=1, batch_size=400, augment=True, precision=PRECISION
    ),
    run=RunConfig(mesh=MeshConfig(data=8), log_every=1, tensorboard=False),
  )


smoke = config
'''
WRITTEN = {"float32": "None", "FAST": "Fast()"}


def launcher(turns: int = 8, every: int = 200) -> Iterator[Measurement]:
  """Overhead of the loop, waiting for data, and curves of one and two processes.

  Args:
    turns: Of `every` steps of the loop and as many bare ones; six times as many, and
      short ones, without checkpoints.
    every: Steps between two checkpoints.
  """
  job = command_line.load(JOB).config().job
  for name, precision in PRECISIONS.items():
    train = dataclasses.replace(job.train, precision=precision)
    precise = dataclasses.replace(job, train=train)
    for title, number, steps, saves in (
      ("training loop", 6 * turns, LOG_EVERY, False),
      (f"training loop, saved every {every} steps", turns, every, True),
    ):
      value, took = overhead(precise, number, steps, saves=saves)
      yield Measurement(
        f"{title}, {name}", value, "x", "its bare step", "<= 1.03 x", took
      )
  for name, precision in PRECISIONS.items():
    for augment in (False, True):
      title = f"{name}, {'augmented' if augment else 'as they are'}"
      train = dataclasses.replace(job.train, augment=augment, precision=precision)
      plain = dataclasses.replace(job, train=train)
      share, speed, took = waiting(plain, every=every)
      yield Measurement(
        f"waiting for batches, {title}", 100 * share, "%", "the loop", "<= 3 %", took
      )
      yield Measurement(
        f"batches made alone, {title}", speed, "x", "the bare step", ">= 1 x", took
      )
  for name in WRITTEN:
    began = time.perf_counter()
    value = processes(name)
    yield Measurement(
      f"loss curve, 2 processes x 4 devices, {name}", value, "largest relative error",
      "1 process of 8 devices", "<= 1e-6", time.perf_counter() - began,
    )  # fmt: skip


def overhead(
  job: TrainJob, turns: int, every: int, *, saves: bool
) -> tuple[float, float]:
  """Time of the loop over that of its bare step, and seconds of a step of the loop.

  The median over the turns; each is compared with the bare steps on both its sides.

  Args:
    job: What is trained.
    turns: How many there are.
    every: Steps of a turn.
    saves: Whether each has a checkpoint.
  """
  steps = every * (turns + 2)
  ready = _ready(job, steps=steps, save_every=every if saves else 2 * steps)
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    saving = lambda: any((folder / "checkpoints").glob(".step_*"))
    counted = Turns(
      ready.step, ready.start(), place=ready.place, every=every, busy=saving
    )
    vars(ready)["step"] = counted  # a cached property: what the loop calls
    _run(ready, folder)
  ratios = counted.ratios()[:turns]
  if len(ratios) < turns:
    raise ValueError(f"{turns} turns of {every} steps: {len(ratios)} were measured")
  return statistics.median(ratios), statistics.median(counted.loop) / every


class Turns:
  """A step that a loop calls, and that runs alone in between.

  Attributes:
    loop: Seconds of every `every` calls by the loop, all that it did beside included.
    bare: Seconds of as many steps alone, one more than `loop`.
  """

  def __init__(
    self,
    step: Callable[..., Any],
    state: Any,
    *,
    every: int,
    place: Callable[[Any], Any] = lambda batch: batch,
    busy: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
  ):
    """A step that has not been called.

    Args:
      step: (state, batch, frozen) -> (state, told).
      state: For the steps alone.
      every: Calls of a turn; checkpoints should be that far apart, and lie in the
        middle between two turns' ends.
      place: Lays a batch on the device.
      busy: Whether work that the loop has started goes on in a thread.
      clock: In seconds.
    """
    self.loop: list[float] = []
    self.bare: list[float] = []
    self._step, self._state, self._every = step, state, every
    self._place, self._busy, self._clock = place, busy, clock
    self._calls, self._began = 0, 0.0

  def __call__(self, state: Any, batch: Any, frozen: Any) -> Any:
    if self._calls % self._every == self._every // 2:
      jax.block_until_ready(state)
      while self._busy():
        time.sleep(1e-3)
      if self.bare:
        self.loop.append(self._clock() - self._began)
      self._alone(batch, frozen)
      self._began = self._clock()
    self._calls += 1
    return self._step(state, batch, frozen)

  def ratios(self) -> list[float]:
    """Time of each turn of the loop over the mean of the bare ones beside it."""
    around = itertools.pairwise(self.bare)
    return [2 * t / (before + after) for t, (before, after) in zip(self.loop, around)]

  def _alone(self, batch: Any, frozen: Any) -> None:
    batch = self._place(batch)
    if not self.bare:  # compiles, outside the time
      self._state, _ = self._step(self._state, batch, frozen)
    jax.block_until_ready((self._state, batch))
    began = self._clock()
    for _ in range(self._every):
      self._state, _ = self._step(self._state, batch, frozen)
    jax.block_until_ready(self._state)
    self.bare.append(self._clock() - began)


class Waiting(NamedTuple):
  """How far batches hold a run up.

  Attributes:
    share: Of the loop's time that it waits for them, in [0, 1].
    speed: Batches made a second, over steps a second, each alone.
    seconds: Of a step of the loop.
  """

  share: float
  speed: float
  seconds: float


def waiting(
  job: TrainJob, *, every: int, steps: int = 200, repetitions: int = 5
) -> Waiting:
  """How far batches hold a run of `steps` up."""
  ready = _ready(job, steps=steps, save_every=every)
  state = [ready.start()]
  with ready.batches(0) as stream:
    batch = ready.place(next(stream))

  def step() -> Any:
    for _ in range(every):
      state[0], _ = ready.step(state[0], batch, ready.frozen)
    return state[0]

  def make() -> Any:
    with ready.batches(0) as stream:
      return sum(1 for _ in itertools.islice(stream, every))

  speed, _ = ratio(step, make, repetitions)
  with tempfile.TemporaryDirectory() as scratch:
    _run(ready, pathlib.Path(scratch))
    rows = metrics.read(pathlib.Path(scratch))
  # The first line has the start in it.
  share, examples_per_s = rates([row for row in rows if "input_wait" in row][1:])
  return Waiting(share, speed, job.train.batch_size / examples_per_s)


def rates(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
  """Share of waiting and examples a second over all of a run's lines.

  Args:
    rows: Of as many examples each.
  """
  took = [1 / row["examples_per_s"] for row in rows]
  waited = sum(row["input_wait"] * seconds for row, seconds in zip(rows, took))
  return waited / sum(took), len(rows) / sum(took)


def processes(precision: str) -> float:
  """Largest relative difference of the losses of one process and of two.

  Args:
    precision: A name in WRITTEN.
  """
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    config = folder / "curve.py"
    config.write_text(CONFIG.replace("PRECISION", WRITTEN[precision]))
    return difference(*(_curve(config, folder / str(n), n) for n in (1, 2)))


def difference(one: Sequence[float], other: Sequence[float]) -> float:
  """Largest relative difference of two curves.

  Raises:
    ValueError: If they are not of one length, or have no point.
  """
  if not one or len(one) != len(other):
    raise ValueError(f"curves of {len(one)} and {len(other)} points do not compare")
  return max(abs(a - b) / abs(a) for a, b in zip(one, other))


def _curve(config: pathlib.Path, out: pathlib.Path, count: int) -> list[float]:
  """Losses of all steps of a run in `count` processes, on eight devices together."""
  environment = children.environment(JAXCODESIGN_PROCESSES=str(count))
  if count > 1:
    environment |= {"JAXCODESIGN_COORDINATOR": children.address()}
  command = [
    sys.executable, "-m", "launch.train", str(config), "--out", str(out),
    "--run.cache", "off", "--run.distributed.cpu-devices", str(8 // count),
  ]  # fmt: skip
  started = [
    subprocess.Popen(
      command,
      cwd=ROOT,
      env=environment | {"JAXCODESIGN_PROCESS": str(i)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(count)
  ]
  for process in started:
    said, _ = process.communicate()
    if process.returncode != 0:
      raise ValueError(f"{process.args} ended with {process.returncode}:\n{said}")
  rows = metrics.read(out / config.stem)
  return [row["loss"] for row in rows if "loss" in row]


def _ready(job: TrainJob, *, steps: int, save_every: int) -> Session:
  """A session of at least so many steps, evaluated at its end alone."""
  loaded = job.task.load(job.train)
  per_epoch = len(loaded.train) // job.train.batch_size
  epochs = -(-steps // per_epoch)
  run = dataclasses.replace(
    job.run, checkpoint_every=save_every, log_every=LOG_EVERY, tensorboard=True
  )
  job = dataclasses.replace(
    job,
    train=dataclasses.replace(job.train, epochs=epochs),
    evaluate_every=per_epoch * epochs,
    run=run,
  )
  return session.prepare(job, Processes(), loaded=loaded)


def _run(ready: Session, folder: pathlib.Path) -> None:
  loop.run(ready, folder, console=Console(quiet=True))
