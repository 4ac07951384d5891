"""Score against cost, one line for each family of formats."""

from collections.abc import Mapping, Sequence

from matplotlib import ticker
from matplotlib.figure import Figure

from jaxcodesign.figures.canvas import COLOURS, INK, MARKERS, MUTED, blank, style

Point = tuple[float, float, str]  # cost, score, name


def curve(
  families: Mapping[str, Sequence[Point]], reference: float, xlabel: str, ylabel: str
) -> Figure:
  """Every point by name, and the best of each family joined by a line.

  Args:
    families: Name -> points (cost, score, name).
    reference: Score of float32, a dashed line.
    xlabel: What the cost is.
    ylabel: What the score is: "accuracy" in [0, 1], else the less the better.
  """
  fig = blank(9.0, 5.2)
  ax, more = fig.subplots(), ylabel == "accuracy"
  style(ax, xlabel=xlabel, ylabel=ylabel)
  for (name, points), colour, marker in zip(families.items(), COLOURS, MARKERS):
    best = front(points, more)
    x, y = [[p[i] for p in best] for i in (0, 1)]
    ax.plot(x, y, color=colour, lw=1.4, zorder=2)
    x, y = [[p[i] for p in points] for i in (0, 1)]
    ax.plot(x, y, marker, color=colour, ms=6, label=name, zorder=3)
    for cost, score, text in best:
      ax.annotate(
        text, (cost, score), xytext=(3, -4 if more else 4),
        rotation=-35 if more else 35, rotation_mode="anchor",
        textcoords="offset points", ha="left", va="top" if more else "bottom",
        fontsize=7.5, color=MUTED,
      )  # fmt: skip
  ax.axhline(reference, color=INK, lw=1, ls=(0, (5, 4)), label="float32", zorder=1)
  ax.set_xscale("log")
  ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  ax.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
  ax.xaxis.set_minor_formatter(ticker.NullFormatter())
  if more:
    ax.yaxis.set_major_formatter(ticker.PercentFormatter(1))
  else:
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5)))
    ax.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())
  ax.legend(frameon=False, fontsize=9, labelcolor=INK)
  return fig


def front(points: Sequence[Point], more: bool = True) -> list[Point]:
  """Points that no cheaper one equals, in order of cost; `more` or less is better."""
  best: list[Point] = []
  sign = 1 if more else -1
  for point in sorted(points, key=lambda p: (p[0], -sign * p[1])):
    if not best or sign * point[1] > sign * best[-1][1]:
      best.append(point)
  return best
