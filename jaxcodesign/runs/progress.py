"""The progress of training on a terminal, and one line an epoch everywhere else."""

from collections.abc import Callable, Iterator
import contextlib
import time
from typing import NamedTuple, Protocol

import rich.console
import rich.progress

from jaxcodesign.runs.position import Epoch, Position

QUIET_S = 20.0  # without a line, where there is no terminal


class StepTold(NamedTuple):
  """What a bar hears of a step."""

  step: int  # of the whole run, from 1
  steps: int  # in the whole run
  examples: int  # in the step
  loss: float  # nats, mean over the step


class Progress(Protocol):
  """What the loop tells."""

  def on_step(self, step: StepTold) -> None:
    """Moves the bar."""

  def on_epoch(self, epoch: Epoch, at: Position, steps: int) -> None:
    """Prints the line of an evaluation."""


@contextlib.contextmanager
def working(
  console: rich.console.Console, what: str
) -> Iterator[Callable[[str], None]]:
  """Says what a program is at, on a terminal until it is done, else in a line.

  Yields:
    What says that it is at something else now; elsewhere than on a terminal it may wait
    until QUIET_S have passed since the last line.
  """
  if console.is_terminal:
    with console.status(what) as status:
      yield status.update
    return
  said = _Seldom(console)
  said(what, now=True)
  yield said


class _Seldom:
  """Lines of which one is printed each QUIET_S at most."""

  def __init__(self, console: rich.console.Console):
    self._console, self._last = console, time.monotonic()

  def __call__(self, line: str, *, now: bool = False) -> None:
    if now or time.monotonic() - self._last > QUIET_S:
      self._console.print(line, soft_wrap=True, highlight=False, markup=False)
      self.reset()

  def reset(self) -> None:
    """Something else was printed."""
    self._last = time.monotonic()


class _Lines:
  """Where there is no terminal: nothing moves, each epoch is one line.

  Whoever waits longer than QUIET_S for it is told the step.
  """

  def __init__(self, console: rich.console.Console):
    self._console, self._between = console, _Seldom(console)

  def on_step(self, step: StepTold) -> None:
    """A line now and then: a log is no place for a bar."""
    self._between(f"step {step.step:,} of {step.steps:,}: loss {step.loss:.3f}")

  def on_epoch(self, epoch: Epoch, at: Position, steps: int) -> None:
    self._between.reset()
    reached = ", the target" if at.stopped else ""
    self._console.print(
      f"epoch {epoch.epoch:g}, step {at.step:,} of {steps:,}: loss {epoch.loss:.3f}, "
      f"train {epoch.train_accuracy:.1%}, test {epoch.test_accuracy:.1%}{reached}, "
      f"{epoch.seconds:.1f} s",
      soft_wrap=True,
      highlight=False,
    )


class _Bar(_Lines):
  """On a terminal: a bar with loss, throughput and time left below those lines."""

  def __init__(self, bar: rich.progress.Progress, title: str):
    super().__init__(bar.console)
    self._bar = bar
    self._task = bar.add_task(title, total=None, loss="", speed="")
    self._examples = 0

  def on_step(self, step: StepTold) -> None:
    self._examples += step.examples
    elapsed = self._bar.tasks[self._task].elapsed
    speed = f"{self._examples / elapsed:,.0f} examples/s" if elapsed else ""
    self._bar.update(
      self._task,
      completed=step.step,
      total=step.steps,
      loss=f"loss {step.loss:.3f}",
      speed=speed,
    )


@contextlib.contextmanager
def bar(title: str, console: rich.console.Console | None = None) -> Iterator[Progress]:
  """Shows how far training is, while the context is open.

  Args:
    title: In front of the bar.
    console: Where to print; standard output by default. On a terminal a bar shows loss,
      examples a second and the time left; elsewhere only each epoch's line is printed.

  Yields:
    The callbacks. Leaving the context, by an exception too, puts the terminal back.
  """
  if console is None:
    console = rich.console.Console()
  if not console.is_terminal:
    _Seldom(console)(f"{title}; the first step compiles", now=True)
    yield _Lines(console)
    return
  columns = [
    rich.progress.TextColumn("{task.description}"),
    rich.progress.BarColumn(),
    rich.progress.TaskProgressColumn(),
    rich.progress.TextColumn("{task.fields[loss]}"),
    rich.progress.TextColumn("{task.fields[speed]}"),
    rich.progress.TimeRemainingColumn(),
  ]
  with rich.progress.Progress(*columns, console=console, transient=True) as shown:
    yield _Bar(shown, title)
