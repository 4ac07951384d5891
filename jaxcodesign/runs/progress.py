"""The progress of training on a terminal, and one line an epoch everywhere else."""

from collections.abc import Iterator
import contextlib
from typing import Protocol

import rich.console
import rich.progress

from jaxcodesign.runs import fit


class Progress(Protocol):
  """The two callbacks of `fit.train`."""

  def on_step(self, step: fit.Step) -> None:
    """Moves the bar."""

  def on_epoch(self, epoch: fit.Epoch) -> None:
    """Prints the epoch's line."""


class _Lines:
  """Where there is no terminal: nothing moves, each epoch is one line."""

  def __init__(self, console: rich.console.Console):
    self._console = console

  def on_step(self, step: fit.Step) -> None:
    """Says nothing: a log is no place for a bar."""

  def on_epoch(self, epoch: fit.Epoch) -> None:
    self._console.print(
      f"epoch {epoch.epoch}: loss {epoch.loss:.3f}, train {epoch.train_accuracy:.1%}, "
      f"test {epoch.test_accuracy:.1%}, {epoch.seconds:.1f} s",
      soft_wrap=True,
      highlight=False,
    )


class _Bar(_Lines):
  """On a terminal: a bar with loss, throughput and time left below those lines."""

  def __init__(self, bar: rich.progress.Progress, title: str):
    super().__init__(bar.console)
    self._bar = bar
    self._task = bar.add_task(title, total=None, loss="", speed="")
    self._images = 0

  def on_step(self, step: fit.Step) -> None:
    self._images += step.images
    elapsed = self._bar.tasks[self._task].elapsed
    speed = f"{self._images / elapsed:,.0f} images/s" if elapsed else ""
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

  Use: `with bar("training") as p: train(..., on_step=p.on_step, on_epoch=p.on_epoch)`.

  Args:
    title: In front of the bar.
    console: Where to print; standard output by default. On a terminal a bar shows loss,
      images a second and the time left; elsewhere only each epoch's line is printed.

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
