"""Timing by ratios: what is measured and its floor run in turns, in one process."""

from collections.abc import Callable
import statistics
import time
from typing import Any, NamedTuple

import jax


class Measurement(NamedTuple):
  """A ratio, what it is measured against, and what it should be."""

  name: str
  value: float
  unit: str
  floor: str
  target: str
  seconds: float  # of one repetition of the thing measured


def seconds(run: Callable[[], Any], repetitions: int) -> list[float]:
  """Wall time of each of several runs, the first left out."""
  jax.block_until_ready(run())
  taken = []
  for _ in range(repetitions):
    began = time.perf_counter()
    jax.block_until_ready(run())
    taken.append(time.perf_counter() - began)
  return taken


def ratio(
  run: Callable[[], Any], floor: Callable[[], Any], repetitions: int = 7
) -> tuple[float, float]:
  """Median of the ratios of paired repetitions, and the median seconds of `run`."""
  pairs = [(seconds(run, 1)[0], seconds(floor, 1)[0]) for _ in range(repetitions)]
  return (
    statistics.median(a / b for a, b in pairs),
    statistics.median(a for a, _ in pairs),
  )
