"""The progress of training on a terminal, and one line an epoch everywhere else."""

from collections.abc import Iterator
import contextlib
from typing import NamedTuple, Protocol

import rich.console
import rich.progress

from jaxcodesign.runs.position import Epoch, Position


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


class _Lines:
  """Where there is no terminal: nothing moves, each epoch is one line."""

  def __init__(self, console: rich.console.Console):
    self._console = console

  def on_step(self, step: StepTold) -> None:
    """Says nothing: a log is no place for a bar."""

  def on_epoch(self, epoch: Epoch, at: Position, steps: int) -> None:
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
