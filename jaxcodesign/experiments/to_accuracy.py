"""Time and energy to accuracy: what a number system costs until it is good enough.

Iterations to a target, times the modelled seconds and joules of an iteration: a system
that is cheap per iteration and slow to learn, or never good enough, is found out.

Reference: Coleman et al., "Analysis of DAWNBench, a Time-to-Accuracy Machine Learning
Performance Benchmark", 2018.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import NamedTuple

from matplotlib.figure import Figure
import numpy as np
from rich.table import Table

from jaxcodesign.figures import to_accuracy as figure
from jaxcodesign.figures.findings import quantity

Curve = Sequence[tuple[int, float]]  # (iteration, test metric), more is better
Curves = Mapping[str, Mapping[int, Curve]]  # by system and seed
REFERENCES = ("FAST", "FP32")


@dataclasses.dataclass(frozen=True)
class Price:
  """Modelled seconds and joules of an iteration, in each stretch of a run.

  Attributes:
    time_s: [S] seconds an iteration, or one number for all.
    energy_j: [S] joules an iteration, likewise.
    until: [S] last iteration of each stretch, ascending; () for a single price.

  Raises:
    ValueError: If lengths differ, a price is not positive, or `until` not ascending.
  """

  time_s: float | Sequence[float] | np.ndarray
  energy_j: float | Sequence[float] | np.ndarray
  until: Sequence[float] | np.ndarray = ()

  def __post_init__(self):
    shape = (len(self.until),) if len(self.until) else ()
    for name in ("time_s", "energy_j"):
      found = np.asarray(getattr(self, name), float)
      if found.shape != shape:
        raise ValueError(
          f"Price.{name} has shape {found.shape}: {shape} is needed, a number for each "
          "stretch that `until` names, or one without `until`"
        )
      if not np.all(np.isfinite(found) & (found > 0)):
        raise ValueError(f"Price.{name}={found} must be positive and finite")
    if np.any(np.diff([0, *self.until]) <= 0):
      raise ValueError(f"Price.until={self.until} must be positive and ascend")

  def spent(self, iterations: np.ndarray | Sequence[float]) -> np.ndarray:
    """Seconds and joules of the first `iterations` [N] of a run, [2, N].

    Raises:
      ValueError: If the price is not known so far.
    """
    done = np.asarray(iterations, float)
    each = np.stack([np.asarray(x, float) for x in (self.time_s, self.energy_j)])
    if not len(self.until):
      return each[:, None] * done
    ends = np.array([0.0, *self.until])
    if np.any(done > ends[-1]):
      raise ValueError(
        f"iteration {done.max():g} is beyond {ends[-1]:g}, until which prices are known"
      )
    total = np.cumsum(each * np.diff(ends), axis=1)
    return np.stack([np.interp(done, ends, [0.0, *row]) for row in total])


# By system; for one whose price depends on the run, by seed.
Prices = Mapping[str, Price | Mapping[int, Price]]


class Row(NamedTuple):
  """One run.

  Attributes:
    system: Name.
    seed: Of the run.
    iterations: Until the first evaluation at or above the target, None without one.
    time_s: Modelled seconds until then.
    energy_j: Modelled joules.
    best: Best metric of the run.
  """

  system: str
  seed: int
  iterations: int | None
  time_s: float | None
  energy_j: float | None
  best: float


class Summary(NamedTuple):
  """All runs of a system; numbers are None unless every run reached the target.

  Attributes:
    system: Name.
    seeds: Runs.
    reached: Of these, so many reached the target.
    iterations: Mean over runs, and half the range from least to most.
    time_s: Seconds, likewise.
    energy_j: Joules, likewise.
    best: Best metric, likewise; never None.
    time_over: Mean seconds over those of each reference, None if either has none.
    energy_over: Likewise.
  """

  system: str
  seeds: int
  reached: int
  iterations: tuple[float, float] | None
  time_s: tuple[float, float] | None
  energy_j: tuple[float, float] | None
  best: tuple[float, float]
  time_over: dict[str, float | None]
  energy_over: dict[str, float | None]


def price_of(prices: Prices, system: str, seed: int) -> Price:
  """The price of a run.

  Raises:
    ValueError: If there is none.
  """
  found = prices.get(system)
  if isinstance(found, Mapping):
    found = found.get(seed)
  if found is None:
    raise ValueError(
      f"system {system!r}, seed {seed}, has no price; there are prices of "
      f"{', '.join(prices) or 'none'}"
    )
  return found


def to_accuracy(curves: Curves, prices: Prices, target: float) -> tuple[Row, ...]:
  """Iterations, time and energy of every run to a target.

  Args:
    curves: Test metric over iterations, more being better, by system and seed.
    prices: Of an iteration, by system, or by system and seed.
    target: Of the metric.

  Returns:
    One row for each run, in the order of `curves`.

  Raises:
    ValueError: If a curve is empty or its iterations do not ascend, a run has no price
      as far as it goes, or the target is no finite number.
  """
  if not math.isfinite(target):
    raise ValueError(f"target={target} must be a finite number")
  rows = []
  for system, runs in curves.items():
    for seed, curve in runs.items():
      check_curve(system, seed, curve)
      price = price_of(prices, system, seed)
      hit = next((i for i, metric in curve if metric >= target), None)
      time, energy = (None, None) if hit is None else price.spent([hit])[:, 0].tolist()
      best = max((m for _, m in curve if not math.isnan(m)), default=math.nan)
      rows.append(Row(system, seed, hit, time, energy, best))
  return tuple(rows)


def check_curve(system: str, seed: int, curve: Curve) -> None:
  """Raises a ValueError for a curve that is empty or goes back."""
  if not len(curve):
    raise ValueError(f"system {system!r}, seed {seed}: the curve has no evaluation")
  if np.any(np.diff([0, *(i for i, _ in curve)]) <= 0):
    raise ValueError(
      f"system {system!r}, seed {seed}: iterations of a curve must ascend from 1; an "
      "evaluation before training has no price"
    )


def summarize(
  rows: Sequence[Row], references: Sequence[str] = REFERENCES
) -> tuple[Summary, ...]:
  """Mean and spread over seeds, and ratios to reference systems.

  Args:
    rows: From `to_accuracy`.
    references: Systems to compare with; one that did not run has no ratio.
  """
  groups: dict[str, list[Row]] = {}
  for row in rows:
    groups.setdefault(row.system, []).append(row)
  means = {
    system: (_mean([r.time_s for r in mine]), _mean([r.energy_j for r in mine]))
    for system, mine in groups.items()
  }

  def over(system: str, which: int) -> dict[str, float | None]:
    own = means[system][which]
    others = {r: means.get(r, (None, None))[which] for r in references}
    return {r: own[0] / x[0] if own and x else None for r, x in others.items()}

  found = []
  for system, mine in groups.items():
    best = _mean([r.best for r in mine])
    assert best is not None
    found.append(
      Summary(
        system,
        len(mine),
        sum(r.iterations is not None for r in mine),
        _mean([r.iterations for r in mine]),
        *means[system],
        best,
        over(system, 0),
        over(system, 1),
      )
    )
  return tuple(found)


def draw(
  curves: Curves, prices: Prices, target: float, *, metric: str = "test accuracy"
) -> Figure:
  """Metric over modelled time and energy, and what the target took.

  Args:
    curves: As for `to_accuracy`.
    prices: As for `to_accuracy`.
    target: As for `to_accuracy`.
    metric: See `figures.to_accuracy.draw`.

  Raises:
    ValueError: As `to_accuracy`, if there is no system or more than a picture holds.
  """
  rows = to_accuracy(curves, prices, target)
  runs = {
    system: [
      _run(curve, price_of(prices, system, seed)) for seed, curve in mine.items()
    ]
    for system, mine in curves.items()
  }
  reached = {}
  for system, mine in curves.items():
    hits = [r for r in rows if r.system == system and r.iterations is not None]
    times, joules = [r.time_s or 0.0 for r in hits], [r.energy_j or 0.0 for r in hits]
    reached[system] = figure.Reached(len(mine), times, joules)
  return figure.draw(runs, reached, target, metric=metric)


def _run(curve: Curve, price: Price) -> figure.Run:
  at, metric = (np.array(x, float) for x in zip(*curve))
  return figure.Run(at, price.spent(at), metric)


def table(
  rows: Sequence[Row], target: float, references: Sequence[str] = REFERENCES
) -> Table:
  """One line for each system, in the order of `rows`; "-" where a run fell short."""
  out = Table(title=f"to a test metric of {target:g}, modelled", title_justify="left")
  out.add_column("system")
  heads = ["reached", "best", "iterations", "time", "energy"]
  heads += [f"{what} / {r}" for what in ("time", "energy") for r in references]
  for head in heads:
    out.add_column(head, justify="right")
  for s in summarize(rows, references):
    ratios = [x for each in (s.time_over, s.energy_over) for x in each.values()]
    out.add_row(
      s.system.replace("[", r"\["),
      f"{s.reached} of {s.seeds}",
      f"{s.best[0]:.4g} ± {s.best[1]:.2g}",
      f"{s.iterations[0]:,.0f} ± {s.iterations[1]:,.0f}" if s.iterations else "-",
      _shown(s.time_s, "s"),
      _shown(s.energy_j, "J"),
      *("-" if x is None else f"{x:.3g}" for x in ratios),
    )
  return out


def _mean(values: Sequence[float | None]) -> tuple[float, float] | None:
  """Mean and half the range, None if a value is missing."""
  known = [x for x in values if x is not None]
  if len(known) < len(values):
    return None
  return sum(known) / len(known), (max(known) - min(known)) / 2


def _shown(value: tuple[float, float] | None, unit: str) -> str:
  if value is None:
    return "-"
  return f"{quantity(value[0], unit)} ± {value[1] / value[0]:.1%}"
