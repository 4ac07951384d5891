"""A roofline as a picture: products under the roof of their chip."""

from matplotlib.figure import Figure
import numpy as np

from jaxcodesign.hardware.roofline import Roofline


def figure(found: Roofline, title: str = "") -> Figure:
  """Draws products over operations a byte; areas of the dots are shares of the time."""
  chip = found.chip
  peak = float(np.max(found.operations / found.compute_s))
  bandwidth = float(np.median(found.bytes_moved / found.memory_s))
  times = np.maximum(found.compute_s, found.memory_s)
  reached = found.operations / times
  low = min(found.intensity.min(), peak / bandwidth) / 3
  high = max(found.intensity.max(), peak / bandwidth) * 3
  x = np.geomspace(low, high, 200)
  picture = Figure(figsize=(7, 4.5), layout="constrained")
  axes = picture.add_subplot()
  axes.loglog(x, np.minimum(peak, bandwidth * x) / 1e12, color="0.2", zorder=1)
  axes.axvline(peak / bandwidth, color="0.8", linewidth=1, zorder=0)
  area = 20 + 800 * times / times.sum()
  colors = np.where(found.compute_s >= found.memory_s, "C0", "C1")
  axes.scatter(found.intensity, reached / 1e12, area, colors, alpha=0.6, zorder=2)
  for i in np.argsort(-times)[:5]:
    where = (found.intensity[i], reached[i] / 1e12)
    axes.annotate(
      found.names[i], where, fontsize=7, xytext=(4, -10), textcoords="offset points"
    )
  for color, name in (("C0", "bound by compute"), ("C1", "bound by memory")):
    axes.scatter([], [], color=color, alpha=0.6, label=name)
  axes.legend(loc="lower right", frameon=False)
  axes.set_xlabel("operations a byte")
  axes.set_ylabel("Top/s")
  axes.set_title(f"{title or chip.name}: {found.time_s * 1e3:.3g} ms")
  axes.spines[["top", "right"]].set_visible(False)
  return picture
