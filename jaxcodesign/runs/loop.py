"""A run from its last checkpoint to its end: steps, evaluations, checkpoints, logs.

The device is always a step ahead: what steps told is read while the next one runs, of
short steps many at once, for reading takes the host from the device where both are one.
What is saved has been seen to be finite. Without a folder the same loop runs in memory:
nothing is written, and nothing else differs.
"""

from collections.abc import Callable
import contextlib
import json
import pathlib
import time
from typing import Any, Literal, NamedTuple

import jax
from rich.console import Console

from jaxcodesign.data.content import Content
from jaxcodesign.runs import metrics, progress
from jaxcodesign.runs import session as sessions
from jaxcodesign.runs.disk import files
from jaxcodesign.runs.disk.checkpoints import Checkpoints
from jaxcodesign.runs.pace import Clock, profiled
from jaxcodesign.runs.position import Epoch, Position, plain_number
from jaxcodesign.runs.progress import StepTold
from jaxcodesign.runs.session import Session
from jaxcodesign.runs.signals import Interruption
from jaxcodesign.training import diagnosis
from jaxcodesign.training.step import TrainState

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
    history: One entry an evaluation, those of earlier starts included.
    memories: What each method remembers.
  """

  status: Status
  step: int
  steps: int
  loss: float
  score: float
  digest: str
  seconds: float
  state: TrainState
  history: tuple[Epoch, ...]
  memories: tuple[dict[str, Any], ...]


def run(
  session: Session,
  folder: pathlib.Path | None = None,
  *,
  console: Console,
  signals: Interruption | None = None,
  metrics_too: bool = True,
  accept_data: bool = False,
  on_start: Callable[[], None] = lambda: None,
) -> Result:
  """Trains from where the checkpoints of `folder` are, or from the start.

  Args:
    session: What `session.prepare` returned.
    folder: Of the run, which holds checkpoints, metrics.jsonl and in the end
      final.json; None keeps everything in memory.
    console: For the progress bar and what there is to say.
    signals: Of the program, entered; None: with a folder SIGTERM and SIGINT are
      requests to stop while steps are made, else they are what they always are.
    metrics_too: Whether the folder gets numbers and pictures besides checkpoints.
    accept_data: Whether to go on from a checkpoint of other data.
    on_start: Called once nothing in the folder refuses this run, before its first step.

  Raises:
    ValueError: If the folder holds a run of another config or, unless accepted, of
      other data, no checkpoint that is whole, or one from after the run's end.
    FloatingPointError: At the first loss or gradient that is not finite, naming the
      step, the suspected tensor and the last good checkpoint.
    OSError: If the disk is full; the previous checkpoint is whole.
  """
  began = time.perf_counter()
  with contextlib.ExitStack() as stack:
    checkpoints, state, at = None, None, Position()
    if folder is not None:
      checkpoints = stack.enter_context(_checkpoints(session, folder, accept_data))
      state, at = _restored(session, checkpoints, console)
    on_start()
    board = None
    if folder is not None and metrics_too and session.processes.index == 0:
      board = stack.enter_context(
        contextlib.closing(
          metrics.Metrics(folder, at.step, tensorboard=session.job.run.tensorboard)
        )
      )
    if signals is None and folder is not None:
      signals = stack.enter_context(Interruption(session.job.run.ask_every))
    at.memories = at.memories or [{} for _ in session.functions.methods]
    loop = _Loop(session, checkpoints, board, folder, console, at, signals)
    status, state = loop.run(session.start() if state is None else state)
    if checkpoints is not None:
      checkpoints.wait()
  found = Result(
    status, at.step, session.steps, at.loss, at.score, sessions.digest(state),
    time.perf_counter() - began, state, tuple(at.history), tuple(at.memories),
  )  # fmt: skip
  if board is not None and folder is not None and status != "interrupted":
    _write_final(found, session.data, folder)
  return found


def _checkpoints(session: Session, folder: pathlib.Path, accept: bool) -> Checkpoints:
  how = session.job.run
  return Checkpoints(
    folder / "checkpoints",
    fingerprint=session.fingerprint,
    data=session.data,
    accept_data=accept,
    keep_last=how.keep_last,
    keep_best=how.keep_best,
  )


def _write_final(found: Result, data: Content, folder: pathlib.Path) -> None:
  plain = found._asdict()
  for name in ("state", "history", "memories"):
    del plain[name]
  plain |= {"loss": plain_number(found.loss), "score": plain_number(found.score)}
  plain["data"] = data
  text = json.dumps(plain, indent=2, allow_nan=False)
  files.write_atomically(folder / FINAL, text + "\n")


def _restored(
  session: Session, checkpoints: Checkpoints, console: Console
) -> tuple[TrainState | None, Position]:
  found = checkpoints.restore(session.state)
  if found is None:
    return None, Position()
  if found.step > session.steps:
    raise ValueError(
      f"the newest checkpoint in {checkpoints.folder} is of step {found.step:,}, after "
      f"the {session.steps:,} steps of this run: put the data back, or name another "
      "--out"
    )
  for words in found.refused:
    console.print(f"warning: {words}", highlight=False, soft_wrap=True)
  console.print(
    f"going on from step {found.step:,} of {session.steps:,}", highlight=False
  )
  return found.state, Position.read(found.extra, found.step)


class _Loop:
  """The loop's moving parts."""

  def __init__(self, session, checkpoints, board, folder, console, position, signals):
    self.session: Session = session
    self.checkpoints: Checkpoints | None = checkpoints
    self.board: metrics.Metrics | None = board
    self.folder: pathlib.Path | None = folder
    self.console: Console = console
    self.position: Position = position
    self.signals: Interruption | None = signals
    methods = session.functions.methods
    self.rounds = [frozenset(method.rounds(session.steps)) for method in methods]
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
      self.shown = stack.enter_context(progress.bar(title, console))
      stream = stack.enter_context(session.batches(at.step))
      steps = session.job.run.profile if self.folder is not None else 0
      profile = stack.enter_context(profiled(steps, self.folder or pathlib.Path()))
      clock = Clock()
      self.since = time.perf_counter()
      unread: list[tuple[int, Any]] = []
      for batch in stream:
        clock.waited()
        if session.processes.count > 1:  # else the step does so itself, in less time
          batch = session.place(batch)
        state = self._between(state)
        state, told = session.step(state, batch, session.frozen)
        if self._enough(unread, clock):
          self._settle(unread, state, clock)
        at.step += 1
        unread.append((at.step, told))
        profile(told)
        if self._due():
          self._settle(unread, state, clock)
          if self._pause(state, clock):
            break
        clock.asked()
      self._settle(unread, state, clock)
    if self._requested() and at.step < session.steps and not at.stopped:
      return "interrupted", state
    return ("target" if at.stopped else "finished"), state

  def _requested(self) -> bool:
    return self.signals is not None and self.signals.requested is not None

  def _due(self) -> bool:
    session, step = self.session, self.position.step
    # First: every process must ask after every step.
    asked = self.signals is not None and self.signals.agreed(step) is not None
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
      self._evaluate(state)
      score = at.score
    stop = at.stopped or last or self._requested()
    due = stop or score is not None or at.step % session.checkpoint_every == 0
    if due and self.checkpoints is not None:
      self._tick()
      self.checkpoints.save(at.step, state, at.plain(), score=score)
      self.saved = at.step
    if self._requested() and not last and self.checkpoints is not None:
      self.checkpoints.wait()
    clock.restart()
    return stop

  def _evaluate(self, state: TrainState) -> None:
    session, at = self.session, self.position
    loss, score = session.evaluate(state)
    self._tick()
    epoch = at.evaluated(loss, score, session.per_epoch)
    target = session.job.target
    at.stopped = target is not None and score >= target
    self.shown.on_epoch(epoch, at, session.steps)
    if self.board is None:
      return
    told = {"test_loss": loss, "test_accuracy": score}
    for method, kept in zip(session.functions.methods, state.kept):
      told |= method.told(kept, at.step)
      if session.job.run.tensorboard:
        for name, drawn in method.pictures(kept, at.step).items():
          self.board.picture(at.step, name, drawn)
    self.board.write(at.step, told)

  def _tick(self) -> None:
    """Moves the seconds since the last call to the position."""
    now = time.perf_counter()
    self.position.seconds += now - self.since
    self.since = now

  def _enough(self, unread: list[tuple[int, Any]], clock: Clock) -> bool:
    """Whether to read what steps told, the newest of which has just begun."""
    if not unread:
      return False
    most = min(_UNREAD, _READ_S / clock.step_s)
    log = unread[-1][0] % self.session.job.run.log_every == 0
    moved = any(self.position.step in rounds for rounds in self.rounds)
    return log or len(unread) >= most or moved

  def _settle(self, unread: list[tuple[int, Any]], state: Any, clock: Clock) -> None:
    """Reads what steps told, and forgets it."""
    size, every = self.session.job.train.batch_size, self.session.job.run.log_every
    for number, told in jax.device_get(unread):
      if not told.finite:
        self._not_finite(number, told, state)
      clock.steps += 1
      self.position.heard(float(told.loss), float(told.accuracy))
      self.shown.on_step(StepTold(number, self.session.steps, size, float(told.loss)))
      if number % every == 0:
        values = {
          "loss": float(told.loss),
          "accuracy": float(told.accuracy),
          "gradient": float(told.gradient),
          "learning_rate": float(told.learning_rate),
        } | clock.rates(size)
        if self.board is not None:
          self.board.write(number, values)
    unread.clear()

  def _not_finite(self, number: int, told: Any, state: Any) -> None:
    """Raises, with the suspected tensor: `state` is still that before the step."""
    session, config = self.session, self.session.job.train
    words = "a tensor of another process"
    if session.processes.count == 1:
      with session.batches(number - 1) as stream:
        batch = session.loaded.teach(session.frozen, next(iter(stream)))
      functions = session.functions
      words = diagnosis.suspect(functions.plain, functions.network(state), batch)
    way_out = (
      f"lower learning_rate={config.learning_rate:g}, lengthen warmup="
      f"{config.warmup:g} or clip gradients (train.clip)"
    )
    if self.checkpoints is not None and self.folder is not None:
      self.checkpoints.wait()
      kept = f"the checkpoint of step {self.saved:,}" if self.saved else "no checkpoint"
      way_out = (
        f"{kept} in {self.folder / 'checkpoints'} is good; {way_out}, in another --out"
      )
    raise FloatingPointError(
      f"loss is {float(told.loss)}, gradient {float(told.gradient)} in step {number:,} "
      f"of {session.steps:,} at learning rate {float(told.learning_rate):.3g}; "
      f"suspected: {words}. {way_out}"
    )

  def _between(self, state: TrainState) -> TrainState:
    """`state` as methods move it between two steps, where one of them is due."""
    session, at = self.session, self.position
    for i, method in enumerate(session.functions.methods):
      if at.step not in self.rounds[i]:
        continue
      if session.processes.count > 1:
        raise ValueError(
          f"{type(method).__name__} works on the host between two steps, which needs "
          "one process: use one host, or a method that works inside the step"
        )
      host = state._replace(key=None)
      host, at.memories[i] = method.between(
        jax.device_get(host), at.memories[i], at.step, session.steps
      )
      state = session.lay(host._replace(key=state.key))
    return state
