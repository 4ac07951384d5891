"""How fast a loop runs, and a trace of some of its steps on request."""

from collections.abc import Iterator
import contextlib
import math
import pathlib
import time
from typing import Any

import jax


class Clock:
  """Seconds of steps, and how many of them the loop waited for data.

  Attributes:
    steps: That were made since the last `restart`; the loop counts them.
    step_s: Of a step, as known so far.
  """

  def __init__(self):
    self.step_s = math.inf
    self.restart()

  def restart(self) -> None:
    """Begins again, after something that was no step."""
    self.steps, self._wait = 0, 0.0
    self._began = self._asked = time.perf_counter()

  def asked(self) -> None:
    """The next batch is wanted."""
    self._asked = time.perf_counter()

  def waited(self) -> None:
    """The next batch is there."""
    self._wait += time.perf_counter() - self._asked

  def rates(self, size: int) -> dict[str, float]:
    """Of the steps since the last call."""
    took = time.perf_counter() - self._began
    self.step_s = took / self.steps
    found = {
      "examples_per_s": self.steps * size / took,
      "input_wait": self._wait / took,
    }
    self.restart()
    return found


@contextlib.contextmanager
def profiled(steps: int, folder: pathlib.Path) -> Iterator[Any]:
  """Yields what is called after each step: it traces `steps` of them from the 11th."""
  seen = running = 0

  def after(told: Any) -> None:
    nonlocal seen, running
    seen += 1
    if steps and seen == 10:
      jax.block_until_ready(told)
      jax.profiler.start_trace(str(folder / "profile"))
      running = 1
    if running and seen == 10 + steps:
      jax.block_until_ready(told)
      jax.profiler.stop_trace()
      running = 0

  try:
    yield after
  finally:
    if running:
      jax.profiler.stop_trace()
