"""A run from its last checkpoint to its end: steps, evaluations, checkpoints, logs.

The device is always a step ahead: what steps told is read while the next one runs, of
short steps many at once, for reading takes the host from the device where both are one.
What is saved has been seen to be finite.
"""

import contextlib
import json
import math
import pathlib
import time
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from rich.console import Console

from jaxcodesign.figures import training
from jaxcodesign.numerics.sparsity.column_groups import Groups
from jaxcodesign.runs import files, origin, progress
from jaxcodesign.runs import metrics as metrics_log
from jaxcodesign.runs import session as sessions
from jaxcodesign.runs.checkpoints import Checkpoints
from jaxcodesign.runs.fit import Step
from jaxcodesign.runs.pace import Clock, profiled
from jaxcodesign.runs.session import Session
from jaxcodesign.runs.signals import Interruption
from jaxcodesign.training import diagnosis, pruning
from jaxcodesign.training.combining import Combine, Combined
from jaxcodesign.training.step import sparse
from jaxcodesign.training.update import TrainState

Status = Literal["finished", "target", "interrupted"]
FINAL = "final.json"
_READ_S = 0.1  # between two reads of what steps told, at least
_UNREAD = 8  # steps at most


class Result(NamedTuple):
  """How a run ended.

  Attributes:
    status: All steps done, the target reached, or stopped by a signal.
    step: Steps made.
    steps: Of the whole run.
    loss: Of the last evaluation, NaN if there was none.
    score: The same.
    digest: Of every bit of the last state.
    seconds: Of this start.
    state: The last one.
  """

  status: Status
  step: int
  steps: int
  loss: float
  score: float
  digest: str
  seconds: float
  state: TrainState


def run(
  session: Session,
  folder: pathlib.Path,
  *,
  command: str,
  console: Console,
  signals: Interruption | None = None,
) -> Result:
  """Trains from where the checkpoints of `folder` are, or from the start.

  Args:
    session: What `session.prepare` returned.
    folder: Of the run; holds checkpoints, metrics.jsonl, config.json, origin.json and
      in the end final.json.
    command: That started it, for origin.json.
    console: For the progress bar and what there is to say.
    signals: Of the program, entered; None: SIGTERM and SIGINT are requests to stop
      while steps are made, and what they always are before and after.

  Raises:
    ValueError: If the folder holds a run of another config, saying what differs, or no
      checkpoint that is whole.
    FloatingPointError: At the first loss or gradient that is not finite, naming the
      step, the suspected tensor and the last good checkpoint.
    OSError: If the disk is full; the previous checkpoint is whole.
  """
  origin.check(session.job, folder)
  first = session.processes.index == 0
  if first:
    origin.write(session.job, folder, command)
  how = session.job.run
  began = time.perf_counter()
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      contextlib.closing(
        Checkpoints(
          folder / "checkpoints",
          fingerprint=session.fingerprint,
          keep_last=how.keep_last,
          keep_best=how.keep_best,
        )
      )
    )
    state, position = _restored(session, checkpoints, console)
    metrics = None
    if first:
      metrics = stack.enter_context(
        contextlib.closing(
          metrics_log.Metrics(folder, position.step, tensorboard=how.tensorboard)
        )
      )
    signals = signals or stack.enter_context(Interruption(how.ask_every))
    loop = _Loop(session, checkpoints, metrics, folder, console, position, signals)
    status, state = loop.run(state)
    checkpoints.wait()
  digest = sessions.digest(state)
  seconds = time.perf_counter() - began
  at = loop.position
  found = Result(
    status, at.step, session.steps, at.loss, at.score, digest, seconds, state
  )
  if first and status != "interrupted":
    plain = found._replace(state=None)._asdict()
    plain |= {"loss": _plain(found.loss), "score": _plain(found.score)}
    text = json.dumps(plain, indent=2, allow_nan=False)
    files.write_atomically(folder / FINAL, text + "\n")
  return found


class _Position:
  """Where a run is, besides its state: what a checkpoint keeps as JSON."""

  def __init__(self, extra: dict[str, Any] | None = None, step: int = 0):
    extra = extra or {}
    self.step = step
    number = lambda x: math.nan if x is None else x
    self.loss: float = number(extra.get("loss"))
    self.score: float = number(extra.get("score"))
    self.stopped: bool = extra.get("stopped", False)
    self.groups = {
      name: Groups(np.array(g["members"], np.int32), g["columns"])
      for name, g in extra.get("groups", {}).items()
    }

  def plain(self) -> dict[str, Any]:
    groups = {
      name: {"members": np.asarray(g.members).tolist(), "columns": g.columns}
      for name, g in self.groups.items()
    }
    return {"loss": _plain(self.loss), "score": _plain(self.score),
            "stopped": self.stopped, "groups": groups}  # fmt: skip


def _plain(x: float) -> float | None:
  """A number that JSON has."""
  return x if math.isfinite(x) else None


def _restored(
  session: Session, checkpoints: Checkpoints, console: Console
) -> tuple[TrainState, _Position]:
  found = checkpoints.restore(session.state)
  if found is None:
    return session.start(), _Position()
  for words in found.refused:
    console.print(f"warning: {words}", highlight=False, soft_wrap=True)
  console.print(
    f"going on from step {found.step:,} of {session.steps:,}", highlight=False
  )
  return found.state, _Position(found.extra, found.step)


class _Loop:
  """The loop's moving parts."""

  def __init__(self, session, checkpoints, metrics, folder, console, position, signals):
    self.session, self.checkpoints, self.metrics = session, checkpoints, metrics
    self.folder, self.console, self.position = folder, console, position
    self.signals: Interruption = signals
    self.config = session.job.train
    self.rounds = frozenset[int]()
    if self.config.sparsity is not None:
      self.rounds = frozenset(self.config.sparsity.rounds(session.steps))
    self.saved = position.step  # step of the newest checkpoint

  def run(self, state: TrainState) -> tuple[Status, TrainState]:
    """Steps until the end, the target or a signal."""
    session, at = self.session, self.position
    if at.stopped:
      return "target", state
    quiet = session.processes.index > 0
    console = Console(quiet=True) if quiet else self.console
    title = f"training on {session.loaded.train.name}"
    with contextlib.ExitStack() as stack:
      shown = stack.enter_context(progress.bar(title, console))
      stream = stack.enter_context(session.batches(at.step))
      profile = stack.enter_context(profiled(session.job.run.profile, self.folder))
      clock = Clock()
      unread: list[tuple[int, Any]] = []
      for batch in stream:
        clock.waited()
        if session.processes.count > 1:  # else the step does so itself, in less time
          batch = session.place(batch)
        state = self._combined(state)
        state, told = session.step(state, batch, session.frozen)
        if self._enough(unread, clock):
          self._settle(unread, state, shown, clock)
        at.step += 1
        unread.append((at.step, told))
        profile(told)
        if self._due():
          self._settle(unread, state, shown, clock)
          if self._pause(state, clock):
            break
        clock.asked()
      self._settle(unread, state, shown, clock)
    if (
      self.signals.requested is not None and at.step < session.steps and not at.stopped
    ):
      return "interrupted", state
    return ("target" if at.stopped else "finished"), state

  def _due(self) -> bool:
    session, step = self.session, self.position.step
    # First: every process must ask after every step.
    asked = self.signals.agreed(step) is not None
    return (
      step % session.evaluate_every == 0
      or step % session.checkpoint_every == 0
      or step == session.steps
      or asked
    )

  def _pause(self, state: TrainState, clock: Clock) -> bool:
    """Evaluates and saves what is due; returns whether to stop."""
    session, at = self.session, self.position
    last = at.step == session.steps
    score = None
    if at.step % session.evaluate_every == 0 or last:
      at.loss, at.score = session.evaluate(state)
      score = at.score
      target = session.job.target
      at.stopped = target is not None and at.score >= target
      if self.metrics is not None:
        self.metrics.write(at.step, {"test_loss": at.loss, "test_accuracy": at.score})
        self._say_score()
        self._show(state)
    stop = at.stopped or last or self.signals.requested is not None
    if stop or score is not None or at.step % session.checkpoint_every == 0:
      self.checkpoints.save(at.step, state, at.plain(), score=score)
      self.saved = at.step
    if self.signals.requested is not None and not last:
      self.checkpoints.wait()
    clock.restart()
    return stop

  def _show(self, state: TrainState) -> None:
    """The precision of the run so far, in TensorBoard; the report has the last one."""
    session, at = self.session, self.position
    if session.plan is None or not session.job.run.tensorboard or self.metrics is None:
      return
    bits = sessions.ran_at(session, state)[:, :, :3]
    drawn = training.precision_map(bits, session.plan.names, session.steps)
    self.metrics.picture(at.step, "precision", drawn)

  def _say_score(self) -> None:
    at, steps = self.position, self.session.steps
    reached = ", the target" if at.stopped else ""
    self.console.print(
      f"step {at.step:,} of {steps:,}: test loss {at.loss:.3f}, accuracy "
      f"{at.score:.2%}{reached}",
      highlight=False,
      soft_wrap=True,
    )

  def _enough(self, unread: list[tuple[int, Any]], clock: Clock) -> bool:
    """Whether to read what steps told, the newest of which has just begun."""
    if not unread:
      return False
    most = min(_UNREAD, _READ_S / clock.step_s)
    log = unread[-1][0] % self.session.job.run.log_every == 0
    return log or len(unread) >= most or self.position.step in self.rounds

  def _settle(
    self, unread: list[tuple[int, Any]], state: Any, shown: Any, clock: Clock
  ) -> None:
    """Reads what steps told, and forgets it."""
    size, per_epoch = self.config.batch_size, self.session.per_epoch
    for number, told in jax.device_get(unread):
      if not told.finite:
        self._not_finite(number, told, state)
      clock.steps += 1
      epoch = (number - 1) // per_epoch + 1
      shown.on_step(Step(epoch, number, self.session.steps, size, float(told.loss)))
      if number % self.session.job.run.log_every == 0 and self.metrics is not None:
        values = {
          "loss": float(told.loss),
          "accuracy": float(told.accuracy),
          "gradient": float(told.gradient),
          "learning_rate": float(told.learning_rate),
        }
        self.metrics.write(number, values | clock.rates(size))
    unread.clear()

  def _not_finite(self, number: int, told: Any, state: Any) -> None:
    """Raises, with the suspected tensor: `state` is still that before the step."""
    words = "a tensor of another process"
    if self.session.processes.count == 1:
      with self.session.batches(number - 1) as stream:
        batch = self.session.loaded.teach(self.session.frozen, next(iter(stream)))
      words = diagnosis.suspect(
        self.session.update.plain, sparse(self.config, state), batch
      )
    self.checkpoints.wait()
    kept = f"the checkpoint of step {self.saved:,}" if self.saved else "no checkpoint"
    raise FloatingPointError(
      f"loss is {float(told.loss)}, gradient {float(told.gradient)} in step {number:,} "
      f"of {self.session.steps:,} at learning rate {float(told.learning_rate):.3g}; "
      f"suspected: {words}. {kept} in {self.folder / 'checkpoints'} is good; lower "
      f"learning_rate={self.config.learning_rate:g}, lengthen warmup="
      f"{self.config.warmup:g} or clip gradients (train.clip), in another --out"
    )

  def _combined(self, state: TrainState) -> TrainState:
    """`state` under new masks, if a round of column combining is due."""
    sparsity, at = self.config.sparsity, self.position
    if at.step not in self.rounds or not isinstance(sparsity, Combine):
      return state
    if self.session.processes.count > 1:
      raise ValueError("column combining runs in one process: use one host, or Prune")
    before = Combined(jax.device_get(pruning.masks_of(state.optimizer)), at.groups)
    found = sparsity.combine(
      jax.device_get(state.params), before, at.step, self.session.steps
    )
    at.groups = found.groups
    moved = pruning.with_masks(state.optimizer, found.masks)
    shardings = jax.tree.map(lambda x: x.sharding, self.session.state.optimizer)
    return state._replace(optimizer=jax.device_put(moved, shardings))
