"""A cost report as a picture: energy by cause and time, product by product."""

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from jaxcodesign.figures.canvas import BLUE, INK, MUTED, PAPER, blank, style
from jaxcodesign.figures.designs import PARTS
from jaxcodesign.figures.findings import quantity
from jaxcodesign.hardware.pricing.cost import CostReport


def figure(report: CostReport, title: str = "", most: int = 24) -> Figure:
  """Draws energy, stacked by cause, and time of each product.

  Args:
    report: Of one design, not traced.
    title: Above the picture, before the totals.
    most: Products shown; with more, those that need most energy, and a note says so.

  Raises:
    ValueError: If the report holds many designs or `most` is below 1.
  """
  if np.ndim(report.time_s) or most < 1:
    raise ValueError(
      f"a figure shows one design and most={most} >= 1 products: index the report "
      "first, jax.tree.map(lambda x: x[i], report)"
    )
  energy = np.asarray(report.product_energy_j)
  kept = np.sort(np.argsort(-energy, kind="stable")[:most])
  rows = [_text(report.names[i]) for i in kept]
  picture = blank(10.4, 1.9 + 0.26 * len(kept))
  left, right = picture.subplots(1, 2, sharey=True, width_ratios=(3, 2))
  start = np.zeros(len(kept))
  for part, colour in PARTS.items():
    if part not in report.product_parts_j:
      continue  # the vector unit belongs to no product
    lengths = np.asarray(report.product_parts_j[part])[kept]
    left.barh(
      range(len(kept)), lengths, 0.7, start, color=colour, label=part, ec=PAPER, lw=0.5
    )
    start = start + lengths
  right.barh(range(len(kept)), np.asarray(report.product_time_s)[kept], 0.7, color=BLUE)
  shares = np.asarray(report.product_utilization)[kept]
  for i, share in enumerate(shares):
    time = float(np.asarray(report.product_time_s)[kept[i]])
    right.text(time, i, f" {share:.0%}", va="center", fontsize=8, color=MUTED)
  _finish(left, "energy by cause", "J")
  _finish(right, "time, and utilization of the array", "s")
  right.set_xlim(0, 1.15 * float(np.max(np.asarray(report.product_time_s)[kept])))
  left.set_yticks(range(len(kept)), rows)
  left.set_ylim(len(kept) - 0.4, -0.6)
  picture.legend(loc="outside lower left", ncols=5, frameon=False, labelcolor=INK)
  picture.suptitle(
    _headline(report, title, len(kept)), x=0.01, ha="left", fontsize=10, color=INK
  )
  return picture


def _headline(report: CostReport, title: str, shown: int) -> str:
  totals = (
    f"{quantity(float(report.energy_j), 'J')}, {quantity(float(report.time_s), 's')}"
  )
  said = f"{_text(title, 60)}: {totals}" if title else totals
  other = quantity(float(report.other_energy_j), "J")
  said += f", of these {other} in the vector unit and I/O"
  if shown < len(report.names):
    said += f"\nthe {shown} of {len(report.names)} products that need most energy"
  return said


def _finish(axes: Axes, label: str, unit: str) -> None:
  style(axes, xlabel=label)
  axes.grid(axis="y", visible=False)
  axes.tick_params(axis="y", length=0, labelcolor=INK)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
  write = lambda value, _: quantity(float(value), unit) if value else "0"
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(write))


def _text(text: str, most: int = 34) -> str:
  """Foreign text without formulas, its middle left out where it is long."""
  if len(text) > most:
    text = f"{text[: most // 2]}…{text[len(text) - most // 2 + 1 :]}"
  return text.replace("$", r"\$")
