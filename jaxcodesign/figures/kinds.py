"""What kinds of layers ask for and what they take: multiplications beside cycles."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from jaxcodesign.figures.canvas import COLOURS, INK, MUTED, blank, style
from jaxcodesign.figures.layers import percent
from jaxcodesign.hardware.pricing.layers import Priced, by_kind


def figure(many: Sequence[Priced], title: str = "") -> Figure:
  """Draws each kind's share of multiplications, and of the cycles of each array.

  The utilization of a kind stands beside its cycles.

  Args:
    many: One network on some arrays.
    title: Above the picture.

  Raises:
    ValueError: If there are more than five arrays: shares would not be told apart.
  """
  if not 1 <= len(many) < len(COLOURS):
    raise ValueError(f"{len(many)} arrays: 1 to {len(COLOURS) - 1} can be told apart")
  rows = [by_kind(priced) for priced in many]
  first, bars = rows[0], len(many) + 1
  high = 0.8 / bars
  picture = blank(8.6, 1.3 + 0.24 * len(first) * bars)
  axes = picture.subplots()
  place = lambda bar: [i - 0.4 + (bar + 0.5) * high for i in range(len(first))]
  shares = [x.macs_share for x in first]
  axes.barh(place(0), shares, high, color=MUTED, label="multiplications")
  for bar, (priced, mine) in enumerate(zip(many, rows), start=1):
    widths = [x.cycles_share for x in mine]
    colour = COLOURS[bar - 1]
    axes.barh(place(bar), widths, high, color=colour, label=f"cycles, {priced.name}")
    for y, x in zip(place(bar), mine):
      said = f" {percent(x.cycles_share)}, {percent(x.utilization)} used"
      axes.text(x.cycles_share, y, said, va="center", fontsize=8, color=MUTED)
  for y, share in zip(place(0), shares):
    axes.text(share, y, f" {percent(share)}", va="center", fontsize=8, color=MUTED)
  style(axes, xlabel="share of all layers")
  axes.grid(axis="y", visible=False)
  axes.tick_params(axis="y", length=0, labelcolor=INK)
  axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
  axes.set_yticks(range(len(first)), [x.kind for x in first])
  axes.set_ylim(len(first) - 0.5, -0.5)
  axes.set_xlim(0, 1.25 * max(max(shares), *(x.cycles_share for r in rows for x in r)))
  picture.legend(loc="outside lower left", ncols=bars, frameon=False, labelcolor=INK)
  picture.suptitle(title.replace("$", r"\$"), x=0.01, ha="left", fontsize=10, color=INK)
  return picture
