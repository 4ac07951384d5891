"""Accuracy against modelled time and energy, and what the target costs each system."""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any, NamedTuple

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
import numpy as np

from jaxcodesign.figures.canvas import COLOURS, INK, MARKERS, MUTED, PAPER, blank, style
from jaxcodesign.figures.findings import quantity

_AXES = (("time_s", "s", "modelled time"), ("energy_j", "J", "modelled energy"))
_ALL = (*COLOURS, "#882255", "#999933", "#44AA99", INK)
MOST = len(_ALL)  # systems that a picture can tell apart


class Run(NamedTuple):
  """A run, or the mean of all runs of a system: [N] each."""

  at: np.ndarray  # iterations
  spent: np.ndarray  # [2, N] seconds and joules
  metric: np.ndarray


class Reached(NamedTuple):
  """What the target took a system.

  Attributes:
    seeds: Runs of the system.
    time_s: Modelled seconds of each run that reached it.
    energy_j: Modelled joules of the same.
  """

  seeds: int
  time_s: Sequence[float]
  energy_j: Sequence[float]


def draw(
  runs: Mapping[str, Sequence[Run]],
  reached: Mapping[str, Reached],
  target: float,
  *,
  metric: str = "test accuracy",
) -> Figure:
  """Draws every system: metric over time and energy above, what the target took below.

  Thin lines are seeds, a thick one their mean at evaluations that all seeds have. Below
  stands a mark for each seed that reached the target, and the mean in words.

  Args:
    runs: Of each system, one a seed.
    reached: Of each system.
    target: The dashed line.
    metric: Name of the metric; one that ends in "accuracy" is written in percent.

  Raises:
    ValueError: If there is no system or more than MOST.
  """
  if not 1 <= len(runs) <= MOST:
    raise ValueError(f"{len(runs)} systems: 1 to {MOST} can be told apart")
  picture = blank(10.4, 5.0 + 0.26 * len(runs))
  ratio = [4.2, 0.5 + 0.26 * len(runs)]
  axes = picture.subplots(2, 2, sharex="col", sharey="row", height_ratios=ratio)
  low, high = _range(runs, target)
  for column, (key, unit, title) in enumerate(_AXES):
    above, below = axes[0][column], axes[1][column]
    _lines(above, runs, column, target)
    _marks(below, reached, key, unit)
    _scale(below, runs, column, low, unit, f"{title} (log)")
  axes[0][0].set_ylabel(metric, color=INK, fontsize=9.5)
  axes[0][0].set_ylim(low, high)
  percent = metric.endswith("accuracy")
  if percent:
    axes[0][0].yaxis.set_major_formatter(ticker.PercentFormatter(1))
  said = f"target {target:.1%}" if percent else f"target {target:g}"
  names = [_safe(name) for name in runs]
  axes[1][0].set_yticks(range(len(names)), names)
  for text, name in zip(axes[1][0].get_yticklabels(), runs):
    text.set_color(_look(list(runs).index(name))["color"])
  axes[1][0].set_ylim(len(names) - 0.5, -0.5)
  picture.draw_without_rendering()
  for column in range(2):
    _names(axes[0][column], runs, column, target, said)
  return picture


def _mean(runs: Sequence[Run]) -> Run:
  """The mean of runs at the iterations that all of them have."""
  at = runs[0].at
  for run in runs[1:]:
    at = np.intersect1d(at, run.at)
  rows = [np.searchsorted(run.at, at) for run in runs]
  spent = np.mean([run.spent[:, i] for run, i in zip(runs, rows)], axis=0)
  return Run(at, spent, np.mean([run.metric[i] for run, i in zip(runs, rows)], axis=0))


def _look(index: int) -> dict[str, Any]:
  return {"color": _ALL[index], "ls": "-" if index < len(COLOURS) else (0, (4, 1.6))}


def _lines(
  ax: Axes, runs: Mapping[str, Sequence[Run]], column: int, target: float
) -> None:
  style(ax)
  ax.axhline(target, color=INK, lw=1, ls=(0, (5, 4)), zorder=1)
  for index, seeds in enumerate(runs.values()):
    look = _look(index)
    for run in seeds:
      ax.plot(run.spent[column], run.metric, lw=0.7, alpha=0.4, zorder=2, **look)
    mean = _mean(seeds)
    ax.plot(mean.spent[column], mean.metric, lw=2, zorder=3, **look)


def _marks(ax: Axes, reached: Mapping[str, Reached], key: str, unit: str) -> None:
  """A mark for each seed at what the target took, the mean beside them."""
  style(ax)
  ax.grid(axis="y", visible=False)
  ax.tick_params(axis="y", length=0)
  for index, found in enumerate(reached.values()):
    spent = getattr(found, key)
    ax.plot(
      spent, [index] * len(spent), MARKERS[index % len(MARKERS)], ms=5,
      color=_look(index)["color"],
    )  # fmt: skip
    every = len(spent) == found.seeds
    said = f"{len(spent)} of {found.seeds} seeds reach it"
    if every:
      said = quantity(sum(spent) / len(spent), unit)
    # Beside the last mark, or at the left edge where there is none.
    at, where = (max(spent), ax.transData) if spent else (0.0, ax.get_yaxis_transform())
    ax.annotate(
      said, (at, index), xycoords=where, xytext=(7, 0), textcoords="offset points",
      va="center", fontsize=8, color=INK if every else MUTED,
    )  # fmt: skip


def _scale(
  ax: Axes,
  runs: Mapping[str, Sequence[Run]],
  column: int,
  least: float,
  unit: str,
  title: str,
) -> None:
  """A logarithmic axis over the parts of curves from `least` on."""
  ax.set_xscale("log")
  ax.set_xlabel(title, color=INK, fontsize=9.5)
  every = [run for seeds in runs.values() for run in seeds]
  seen = [run.spent[column, max(0, _first(run, least) - 1) :] for run in every]
  low, high = min(x.min() for x in seen), max(x.max() for x in seen)
  wide = max(high / low, 2.0)
  ax.set_xlim(low / wide**0.06, high * wide**0.14)  # room for words beside marks
  few = (1, 2, 5) if wide < 300 else (1,)
  ax.xaxis.set_major_locator(ticker.LogLocator(subs=few))
  ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: quantity(x, unit)))
  ax.xaxis.set_minor_formatter(ticker.NullFormatter())


def _first(run: Run, least: float) -> int:
  """The first evaluation at or above `least`; the last one if there is none."""
  found = np.flatnonzero(run.metric >= least)
  return int(found[0]) if found.size else len(run.metric) - 1


def _range(runs: Mapping[str, Sequence[Run]], target: float) -> tuple[float, float]:
  """Of the metric: from its lower tenth, before which nothing is told apart."""
  every = np.concatenate([run.metric for seeds in runs.values() for run in seeds])
  every = every[np.isfinite(every)]
  low = min(target, *np.quantile(every, [0.1])) if every.size else target
  high = max(target, *every)
  room = 0.06 * (high - low) or 0.01
  return low - room, high + room


def _names(
  ax: Axes,
  runs: Mapping[str, Sequence[Run]],
  column: int,
  target: float,
  said: str,
) -> None:
  """Writes names beside the mean curves and at the target, where they cover least."""
  inside = ax.get_window_extent()
  corner = ax.get_xlim()[0], target
  level = ax.transData.transform(corner)[1]
  words = ax.annotate(
    said, (0, target), xycoords=ax.get_yaxis_transform(), xytext=(4, 3),
    textcoords="offset points", fontsize=8, color=INK,
  )  # fmt: skip
  line = Bbox.from_extents(inside.x0, level - 1, inside.x1, level + 1)
  taken = [line, words.get_window_extent()]
  shown = [_dots(ax, _mean(seeds), column) for seeds in runs.values()]
  for index, (name, dots) in enumerate(zip(runs, shown)):
    how: dict[str, Any] = {"color": _look(index)["color"], "weight": "bold"}
    label = ax.text(*corner, _safe(name), fontsize=8.5, va="bottom", zorder=6, **how)
    label.set_path_effects([withStroke(linewidth=2, foreground=PAPER)])
    size = label.get_window_extent()
    others = np.concatenate([*shown[:index], *shown[index + 1 :], np.zeros((0, 2))])
    boxes = [
      (Bbox.from_bounds(x + dx, y + dy, size.width, size.height), gap)
      for x, y in dots[:: max(1, len(dots) // 60)]
      for dx, dy, gap in _offsets(size.width, size.height)
    ]
    # Nearer to its own curve than to another.
    hides = lambda b, dots=dots, others=others: (
      _clash(b[0], taken, inside)
      + _inside(b[0], dots)
      + _inside(b[0].padded(b[1]), others)
    )
    box, _ = min(boxes, key=hides, default=(None, 0))
    if box is None:  # nothing of the curve is in sight
      label.remove()
      continue
    taken.append(box.padded(2))
    x, y = ax.transData.inverted().transform((box.x0, box.y0))
    label.set_position((float(x), float(y)))


def _dots(ax: Axes, run: Run, column: int) -> np.ndarray:
  """Points every few pixels along a curve, those in sight: [N, 2] pixels."""
  known = np.isfinite(run.metric) & (run.spent[column] > 0)
  if not known.any():
    return np.zeros((0, 2))
  at = ax.transData.transform(np.stack([run.spent[column], run.metric], 1)[known])
  length = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(at, axis=0).T))])
  along = np.arange(0, length[-1] + 1, 3.0)
  fine = np.stack([np.interp(along, length, x) for x in at.T], 1)
  inside = ax.get_window_extent()
  return fine[(fine[:, 1] > inside.y0) & (fine[:, 1] < inside.y1)]


def _offsets(width: float, height: float) -> list[tuple[float, float, float]]:
  """From a point to the lower left corner of a label around it, and their gap."""
  spots = []
  for gap in (5.0, 10.0):
    across = (gap, -width - gap, -width / 2)
    along = (gap, -height - gap, -height / 2)
    around = list(itertools.product(across, along))[:-1]  # the last is on the point
    spots += [(dx, dy, gap) for dx, dy in around]
  return spots


def _clash(box: Bbox, taken: Sequence[Bbox], inside: Bbox) -> float:
  """Other labels that a label hides weigh most, then how much of it is outside."""
  hidden = sum(Bbox.intersection(box.padded(2), x) is not None for x in taken)
  both = Bbox.intersection(box, inside)
  seen = both.width * both.height if both else 0.0
  return 1e4 * hidden + 1e3 * (1 - seen / (box.width * box.height))


def _inside(box: Bbox, dots: np.ndarray) -> int:
  """How many dots [N, 2] lie in a box."""
  within = (dots > [box.x0, box.y0]) & (dots < [box.x1, box.y1])
  return int(np.sum(np.all(within, axis=1)))


def _safe(name: str) -> str:
  return name.replace("$", r"\$")
