"""A polite end: signals set a flag, and the loop looks at it between two steps.

with Interruption() as signals:
  for step, batch in enumerate(batches):
    ...
    if signals.agreed(step):
      save and leave
"""

import signal
import threading
from types import FrameType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils
import numpy as np

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
  """Context in which SIGTERM and the first SIGINT are requests.

  A second SIGINT raises KeyboardInterrupt as ever. Previous handlers are back at the
  end. Off the main thread Python can install no handler: there it does nothing, and
  nothing is ever requested by this process.

  With several processes it must be entered after `jax.distributed.initialize`, which
  takes SIGTERM for itself, and a request counts once all have agreed on it: schedulers
  send the signal to each process at another time, or to one alone.
  """

  def __init__(self, every: int = 8):
    """A context that is not entered.

    Args:
      every: Of how many calls of `agreed` one asks the other processes. Asking waits
        for the steps that have been started.

    Raises:
      ValueError: If `every` is below 1.
    """
    if every < 1:
      raise ValueError(f"every={every} must be at least 1")
    self._every, self._calls = every, 0
    self._seen: signal.Signals | None = None
    self._requested: str | None = None
    self._previous: dict[signal.Signals, Any] = {}

  @property
  def requested(self) -> str | None:
    """Name of the signal: of this process alone if it is the only one, else agreed."""
    if self._requested is None and self._seen is not None and jax.process_count() == 1:
      self._requested = self._seen.name
    return self._requested

  def agreed(self, step: int) -> str | None:
    """Name of the signal that any process has seen, the same in all of them.

    All processes must call it after the same steps. Costs nothing in a single process.

    Args:
      step: Number of the step, for the message where processes are not at the same.

    Raises:
      ValueError: If processes ask after different steps.
    """
    if jax.process_count() == 1 or self._requested is not None:
      return self.requested
    self._calls += 1
    if self._calls % self._every == 0:
      seen = 0 if self._seen is None else int(self._seen)
      told = multihost_utils.process_allgather(np.array([seen, step], np.int32))
      if len(set(told[:, 1].tolist())) > 1:
        raise ValueError(
          f"processes ask for signals after different steps: {told[:, 1].tolist()}"
        )
      if told[:, 0].any():
        self._requested = signal.Signals(int(told[:, 0].max())).name
    return self._requested

  def __enter__(self) -> Self:
    if threading.current_thread() is threading.main_thread():
      for number in _SIGNALS:
        self._previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._previous.items():
      # None stands for a handler that was not installed from Python.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._previous.clear()

  def _note(self, number: int, _: FrameType | None) -> None:
    if number == signal.SIGINT:
      signal.signal(signal.SIGINT, signal.default_int_handler)
    if self._seen is None:
      self._seen = signal.Signals(number)
