"""Pictures of a systolic array that fills and drains: a film strip and an animation.

Every picture shows whole folds of `activity`, one a row or side by side, on colours
that every kind of colour vision tells apart, also by their lightness.
"""

from collections.abc import Mapping, Sequence
import pathlib
import tempfile
from typing import Any

from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
import numpy as np

from jaxcodesign.figures.canvas import BLUE, GRID, INK, MUTED, PAPER, blank, style
from jaxcodesign.hardware.simulators.activity import MULTIPLYING, NAMES, Fold

STATES = ("#eceff3", "#E69F00", BLUE, "#56B4A0")  # in the order of activity.NAMES
_COLOURS = ListedColormap(list(STATES))
_LEVELS = BoundaryNorm(np.arange(len(STATES) + 1) - 0.5, len(STATES))
_GAP = 0.16  # between cells, of their size, where there is room for one


def moments(folds: Sequence[Fold], count: int) -> list[int]:
  """Cycles to look at: `count` of them, or all, in order.

  They are close together while cells change what they do, and far apart while the
  array only goes on: equal steps of half the time and half the changes.
  """
  cycles = max(fold.cycles for fold in folds)
  if count >= cycles:
    return list(range(cycles))
  pace = np.full(cycles, 0.5 / cycles)
  for fold in folds:
    change = np.abs(np.diff(fold.cells(), prepend=0)).sum(axis=0)
    # A wavefront moves by a cell in each row and column; what starts or ends all at
    # once is seen in one picture and needs no more of them.
    change = np.minimum(change, sum(fold.spans[0].first.shape))
    pace[: len(change)] += 0.5 * change / change.sum() / len(folds)
  middles = (np.arange(count) + 0.5) / count
  found = np.searchsorted(np.cumsum(pace), middles)
  for i in range(1, count):  # fewer pictures than cycles: each has one of its own
    found[i] = max(found[i], found[i - 1] + 1)
  return np.minimum(found, cycles - np.arange(count, 0, -1)).tolist()


def strip(folds: Mapping[str, Fold], title: str = "", *, count: int = 8) -> Figure:
  """A film strip of each fold above its cells over time.

  Args:
    folds: Name -> fold, a pair of rows each.
    title: Of the picture.
    count: Moments of each fold.
  """
  fig = blank(1.32 * count, 0.6 + 3.0 * len(folds))
  ratios = [1.85, 1.15] * len(folds)
  rows: Any = fig.subfigures(len(folds) * 2, 1, height_ratios=ratios)
  for i, (name, fold) in enumerate(folds.items()):
    chosen = moments([fold], count)
    film, below = rows[2 * i], rows[2 * i + 1]
    film.suptitle(name, x=0.008, ha="left", color=INK, fontsize=10.5, weight="bold")
    for ax, cycle in zip(film.subplots(1, count), chosen + [None] * count):
      if cycle is None:
        ax.set_axis_off()
        continue
      _cells(ax, fold.states(cycle))
      busy = fold.cells()[MULTIPLYING, cycle] / fold.spans[0].first.size
      ax.set_title(f"cycle {cycle:,}", fontsize=8.5, color=INK, pad=3)
      ax.set_xlabel(f"{busy:.0%} busy", fontsize=8.5, color=MUTED, labelpad=3)
    _over_time(below.subplots(), fold, chosen)
  _legend(fig, title, folds)
  return fig


def animation(
  folds: Mapping[str, Fold], title: str = "", *, frames: int = 72, fps: int = 12
) -> bytes:
  """The folds side by side on one clock, as an animated GIF that runs for ever.

  Args:
    folds: Name -> fold; one that is done stays idle while others run.
    title: Of the picture.
    frames: At most so many; `moments` chooses the cycles.
    fps: Frames a second.
  """
  fig = blank(max(4.2, 3.1 * len(folds)), 4.5)
  top, bottom = fig.subplots(
    2, len(folds), squeeze=False, height_ratios=[3, 1], sharex="row"
  )
  chosen = moments(list(folds.values()), frames)
  drawn = []
  for ax, below, (name, fold) in zip(top, bottom, folds.items()):
    image = _cells(ax, fold.states(0))
    ax.set_title(name, fontsize=10, color=INK, weight="bold")
    _over_time(below, fold, [])
    below.set_xlim(0, chosen[-1] + 1)
    line = below.axvline(0, color=INK, lw=1.2)
    drawn.append((fold, image, ax, line))
  heading = _legend(fig, title, folds)
  for frame in (chosen[-1], 0):
    _show(drawn, heading, title, frame)
  fig.draw_without_rendering()
  fig.set_layout_engine("none")  # or axes would breathe with the width of numbers
  writer = PillowWriter(fps=fps)
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "array.gif"
    with writer.saving(fig, str(file), dpi=100):
      for cycle in chosen:
        _show(drawn, heading, title, cycle)
        writer.grab_frame()
    return file.read_bytes()


def _show(drawn: Sequence[Any], heading: Any, title: str, cycle: int) -> None:
  heading.set_text(f"{title}   cycle {cycle:,}".strip())
  for fold, image, ax, line in drawn:
    image.set_data(fold.states(cycle))
    line.set_xdata([cycle + 0.5] * 2)
    busy = fold.cells()[MULTIPLYING]
    share = busy[cycle] / fold.spans[0].first.size if cycle < fold.cycles else 0
    done = f"done after {fold.cycles:,} cycles"
    ax.set_xlabel(
      f"{share:.0%} busy" if cycle < fold.cycles else done,
      fontsize=9,
      color=MUTED,
      labelpad=4,
    )


def _cells(ax: Axes, states: np.ndarray) -> Any:
  """Draws an array; returns the image."""
  image = ax.imshow(states, _COLOURS, _LEVELS, interpolation="nearest")
  rows, cols = states.shape
  width = ax.get_position().width * ax.figure.bbox.width / cols  # dots a cell
  gap = _GAP * width * 72 / ax.figure.dpi
  if gap > 0.5:
    for lines, size, other in ((ax.hlines, rows, cols), (ax.vlines, cols, rows)):
      lines(np.arange(1, size) - 0.5, -0.5, other - 0.5, color=PAPER, lw=gap)
  ax.set_xticks([])
  ax.set_yticks([])
  for spine in ax.spines.values():
    spine.set(color=MUTED, linewidth=0.6)
  return image


def _over_time(ax: Axes, fold: Fold, marked: Sequence[int]) -> None:
  """Cells in each state but idle, stacked over cycles."""
  style(ax, xlabel="clock cycle", ylabel="cells")
  cells, edges = fold.cells()[1:], np.arange(fold.cycles + 1)
  ax.stackplot(edges, np.c_[cells, cells[:, -1]], colors=STATES[1:], lw=0, step="post")
  for cycle in marked:
    ax.axvline(cycle + 0.5, color=INK, lw=0.8, ls=(0, (2, 2)))
  ax.set_xlim(0, fold.cycles)
  ax.set_ylim(0, fold.spans[0].first.size)
  ax.grid(axis="x", visible=False)
  ax.locator_params("y", nbins=4)


def _legend(fig: Figure, title: str, folds: Mapping[str, Fold]) -> Any:
  """One for all, of what there is, below; returns the heading."""
  seen = sum(fold.cells().sum(axis=1) for fold in folds.values())
  marks = [
    Patch(facecolor=colour, edgecolor=GRID, label=name)
    for colour, name, cells in zip(STATES, NAMES, np.atleast_1d(seen))
    if cells
  ]
  fig.legend(
    handles=marks, loc="outside lower center", ncols=len(marks), frameon=False,
    fontsize=9, labelcolor=INK,
  )  # fmt: skip
  return fig.suptitle(title, color=INK, fontsize=12)
