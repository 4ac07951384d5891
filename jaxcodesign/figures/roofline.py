"""A roofline as a picture: products under the roof of their chip."""

from matplotlib.figure import Figure
import numpy as np

from jaxcodesign.figures import canvas
from jaxcodesign.hardware.pricing.roofline import Roofline

_NAMED = 4  # products that take the most time


def figure(found: Roofline, title: str = "") -> Figure:
  """Draws products over operations a byte; areas of the dots are shares of the time."""
  times = np.maximum(found.compute_s, found.memory_s)
  reached = found.operations / times / 1e12
  picture = canvas.blank(7.4, 4.6)
  axes = picture.add_subplot()
  ridge = _roof(axes, found)
  canvas.style(axes, xlabel="operations a byte", ylabel="Top/s")
  bound = found.compute_s >= found.memory_s
  for mask, color, name in (
    (bound, canvas.COLOURS[0], "bound by compute"),
    (~bound, canvas.COLOURS[1], "bound by memory"),
  ):
    area = 14 + 700 * times[mask] / times.sum()
    where = (found.intensity[mask], reached[mask])
    axes.scatter(*where, area, color, alpha=0.55, lw=0, zorder=3)
    axes.scatter([], [], 30, color, alpha=0.7, lw=0, label=name)
  _name(axes, found, times, reached)
  axes.legend(loc="upper left", frameon=False, fontsize=8.5)
  axes.annotate(
    f"ridge {ridge:.0f}", (ridge, 0), (3, 4), ("data", "axes fraction"),
    textcoords="offset points", fontsize=8, color=canvas.MUTED,
  )  # fmt: skip
  total = f"{found.time_s * 1e3:.3g} ms"
  axes.set_title(f"{title or found.chip.name}: {total}", fontsize=10.5, loc="left")
  return picture


def _roof(axes: canvas.Axes, found: Roofline) -> float:
  """Draws the peak and the bandwidth; returns where they meet."""
  peak = float(np.max(found.operations / found.compute_s))
  bandwidth = float(np.median(found.bytes_moved / found.memory_s))
  ridge = peak / bandwidth
  low = min(found.intensity.min(), ridge) / 3
  x = np.geomspace(low, max(found.intensity.max(), ridge) * 3, 200)
  roof = np.minimum(peak, bandwidth * x) / 1e12
  axes.loglog(x, roof, color=canvas.INK, lw=1.4, zorder=2)
  axes.fill_between(x, roof, roof.min() / 3, color=canvas.GRID, alpha=0.35, lw=0)
  axes.axvline(ridge, color=canvas.MUTED, lw=0.8, ls=":", zorder=1)
  axes.set_xlim(x[0], x[-1])
  axes.set_ylim(roof.min() / 3, peak / 1e12 * 2)
  return ridge


def _name(axes: canvas.Axes, found: Roofline, times, reached) -> None:
  """Names the longest products, one of each place."""
  taken: list[tuple[float, float]] = []
  for i in np.argsort(-times, kind="stable"):
    at = (float(np.log(found.intensity[i])), float(np.log(reached[i])))
    if len(taken) == _NAMED:
      return
    if any(abs(at[0] - x) < 0.5 and abs(at[1] - y) < 0.35 for x, y in taken):
      continue
    taken.append(at)
    axes.annotate(
      found.names[i], (found.intensity[i], reached[i]), (9, -11), fontsize=7.5,
      textcoords="offset points", color=canvas.INK,
    )  # fmt: skip
