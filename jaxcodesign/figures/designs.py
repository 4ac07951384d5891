"""Figures of a co-design report: matplotlib's objects without pyplot's global state.

Every figure is a function of plain numbers and returns a `Figure`. Colours are
Okabe and Ito's and Tol's, told apart by every kind of colour vision, and each
accelerator has a marker or a place besides its colour. The five named colours are for
a page to replace by those of its theme.
"""

from collections.abc import Callable, Sequence
import itertools
import math
from typing import Any

from matplotlib import font_manager, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox
import numpy as np

from jaxcodesign.figures.canvas import COLOURS, INK, MARKERS, MUTED, PAPER, blank, style
from jaxcodesign.figures.findings import pareto, quantity

PARTS = {
  "mac": "#4477AA",
  "sram": "#66CCEE",
  "dram": "#EE6677",
  "leakage": "#999999",
  "vector": "#CCBB44",
}
_DEPTH = 0.1  # less accurate designs than the best by more are only listed
_SMALL = 0.01  # a leaf that moves EDP by less is summed up in words


def tradeoff(costs: Sequence[dict[str, Any]], reference: dict[str, Any]) -> Figure:
  """Accuracy against energy and against cycles, with the front of each.

  Args:
    costs: Designs with accuracy, energy_j, cycles, variant and accelerator.
    reference: Variant whose accuracy is the dashed line.
  """
  fig = blank(10.4, 4.9)
  best = max(c["accuracy"] for c in costs)
  floor = min(c["accuracy"] for c in costs if c["accuracy"] >= best - _DEPTH)
  top = max(reference["accuracy"], best)
  left, right = fig.subplots(1, 2, sharey=True)
  for ax, key, unit, name in (
    (left, "energy_j", "J", "energy per image"),
    (right, "cycles", "", "clock cycles per image"),
  ):
    style(ax, xlabel=name, ylabel="test accuracy" if ax is left else "")
    _points(ax, costs, key)
    ax.axhline(reference["accuracy"], color=INK, lw=1, ls=(0, (5, 4)), zorder=1)
    _scale(ax, [c[key] for c in costs], unit)
    ax.set_ylim(floor - 0.08 * (top - floor) - 0.002, top + 0.1 * (top - floor) + 0.002)
    ax.yaxis.set_major_formatter(ticker.PercentFormatter(1))
  said = _text(f"{reference['name']}, {reference['accuracy']:.1%}")
  names = list(dict.fromkeys(c["accelerator"] for c in costs))
  marks: list[Any] = [
    Line2D([], [], color=colour, marker=marker, ls="", ms=7, label=_text(name))
    for name, colour, marker in zip(names, *_looks(len(names)))
  ]
  marks.append(Line2D([], [], color=MUTED, lw=1.4, label="Pareto front"))
  marks.append(Line2D([], [], color=INK, lw=1, ls=(0, (5, 4)), label=said))
  _legend(fig, marks)
  fig.draw_without_rendering()
  for ax, key in ((left, "energy_j"), (right, "cycles")):
    shown = [c for c in costs if c["accuracy"] >= floor]
    _name_front(ax, shown, key, reference["accuracy"])
    _name_hidden(ax, [c for c in costs if c["accuracy"] < floor])
  return fig


def _points(ax: Axes, costs: Sequence[dict[str, Any]], key: str) -> None:
  front = [costs[i] for i in pareto([(c["accuracy"], c[key]) for c in costs])]
  ax.step(
    [c[key] for c in front],
    [c["accuracy"] for c in front],
    where="post",
    color=MUTED,
    lw=1.4,
    zorder=2,
  )
  names = list(dict.fromkeys(c["accelerator"] for c in costs))
  for name, colour, marker in zip(names, *_looks(len(names))):
    for chosen, alpha, size in ((True, 1.0, 62), (False, 0.55, 34)):
      dots = [c for c in costs if c["accelerator"] == name and (c in front) == chosen]
      ax.scatter(
        [c[key] for c in dots],
        [c["accuracy"] for c in dots],
        s=size,
        color=colour,
        marker=marker,
        alpha=alpha,
        edgecolors=PAPER,
        linewidths=0.8,
        zorder=4 if chosen else 3,
      )


def _name_front(
  ax: Axes, costs: Sequence[dict[str, Any]], key: str, reference: float
) -> None:
  """Writes the front's variants beside their points, each where it covers least."""
  points = [(c["accuracy"], c[key]) for c in costs]
  shown = ax.transData.transform([(x, y) for y, x in points])
  inside, dpi = ax.get_window_extent(), ax.figure.dpi
  taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in shown]
  front = shown[pareto(points)]
  for (x0, y0), (x1, y1) in itertools.pairwise(front):
    taken.append(Bbox.from_extents(x0, y0 - 1, x1, y0 + 1))
    taken.append(Bbox.from_extents(x1 - 1, y0, x1 + 1, y1))
  level = ax.transData.transform((points[0][1], reference))[1]
  taken.append(Bbox.from_extents(inside.x0, level - 2, inside.x1, level + 2))
  for i in pareto(points):
    text = ax.annotate(
      _text(costs[i]["variant"], 18),
      (points[i][1], points[i][0]),
      fontsize=8,
      color=INK,
      zorder=6,
    )
    size = text.get_window_extent()

    def penalty(spot, size=size, at=shown[i]):
      box = _beside(at, spot, size.width, size.height, dpi)
      lost = 1 - (_overlap(box, inside) / (box.width * box.height))
      return sum(_overlap(box, t) for t in taken) + 1e4 * lost + spot[0]

    spots = itertools.product((7, 15, 24, 34), (135, 90, 180, -45, -90, 0, 45, -135))
    radius, angle = min(spots, key=penalty)
    box = _beside(shown[i], (radius, angle), size.width, size.height, dpi)
    taken.append(box)
    text.remove()
    ax.annotate(
      text.get_text(),
      (points[i][1], points[i][0]),
      xytext=((box.x0 - shown[i][0]) * 72 / dpi, (box.y0 - shown[i][1]) * 72 / dpi),
      textcoords="offset points",
      fontsize=8,
      color=INK,
      zorder=6,
      arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkB": 3}
      if radius > 10
      else None,
    )


def _beside(at, spot, width: float, height: float, dpi: float) -> Bbox:
  radius, angle = spot[0] * dpi / 72, math.radians(spot[1])
  x = at[0] + radius * math.cos(angle) + width * (math.cos(angle) - 1) / 2
  y = at[1] + radius * math.sin(angle) + height * (math.sin(angle) - 1) / 2
  return Bbox.from_bounds(x, y, width, height)


def _overlap(a: Bbox, b: Bbox) -> float:
  both = Bbox.intersection(a, b)
  return both.width * both.height if both else 0.0


def _name_hidden(ax: Axes, costs: Sequence[dict[str, Any]]) -> None:
  hidden = {c["variant"]: c["accuracy"] for c in costs}
  if not hidden:
    return
  few = [f"{name} {value:.0%}" for name, value in itertools.islice(hidden.items(), 4)]
  more = f" and {len(hidden) - 4} more" if len(hidden) > 4 else ""
  ax.text(
    0.985,
    0.02,
    _text(f"below: {', '.join(few)}{more}", 70),
    transform=ax.transAxes,
    ha="right",
    fontsize=8,
    color=MUTED,
  )


def layers(costs: Sequence[dict[str, Any]], most: int = 24) -> Figure:
  """Time, energy and utilization of each layer, one bar per accelerator.

  Args:
    costs: One design per accelerator, all with the same layers.
    most: Layers shown; with more, those that need most energy, and a note says so.
  """
  names = [layer["name"] for layer in costs[0]["layers"]]
  energy = [sum(c["layers"][i]["energy_j"] for c in costs) for i in range(len(names))]
  kept = sorted(sorted(range(len(names)), key=lambda i: -energy[i])[:most])
  fig = blank(10.4, 1.4 + 0.18 * (len(costs) + 1) * len(kept))
  thick = 0.8 / len(costs)
  for ax, (key, unit) in zip(
    fig.subplots(1, 3, sharey=True),
    (("time_s", "s"), ("energy_j", "J"), ("utilization", "%")),
  ):
    style(ax, xlabel=f"{key.split('_')[0]} per image" if unit != "%" else key)
    ax.grid(axis="y", visible=False)
    for j, (cost, colour) in enumerate(zip(costs, _looks(len(costs))[0])):
      lengths = [cost["layers"][i][key] for i in kept]
      rows = np.arange(len(kept)) + thick * (j - (len(costs) - 1) / 2)
      label = _text(f"{cost['accelerator']} running {cost['variant']}", 48)
      ax.barh(rows, lengths, 0.9 * thick, color=colour, label=label)
    if unit == "%":
      ax.set_xlim(0, 1)
      ax.xaxis.set_major_formatter(ticker.PercentFormatter(1))
    else:
      _engineering(ax, unit)
    ax.set_yticks(range(len(kept)), [_text(names[i], 28) for i in kept])
    ax.tick_params(axis="y", length=0, labelcolor=INK)
  fig.axes[0].invert_yaxis()
  if len(kept) < len(names):
    note = f"the {len(kept)} of {len(names)} layers that need most energy"
    fig.axes[0].set_title(note, fontsize=8, color=MUTED, loc="left")
  _legend(fig, fig.axes[0].get_legend_handles_labels()[0])
  return fig


def sensitivities(
  groups: Sequence[tuple[str, Sequence[dict[str, Any]]]], most: int = 14
) -> Figure:
  """d log EDP / d log leaf, one panel per design, the largest effects first.

  Args:
    groups: Title and entries (leaf, value) of each panel.
    most: Leaves drawn per panel; the others are counted in a line below.
  """
  shown = [_largest(entries, most) for _, entries in groups]
  columns = min(3, len(groups))
  rows = -(-len(groups) // columns)
  bars = max(3, *(len(s) for s in shown))
  fig = blank(10.4, rows * (1.35 + 0.235 * bars))
  grid = fig.subplots(rows, columns, squeeze=False).ravel()
  reach = max((abs(e["value"]) for _, es in groups for e in es), default=0) or 1
  for ax, (title, entries), large, colour in zip(
    grid, groups, shown, _looks(len(groups))[0]
  ):
    style(ax, xlabel=f"d log EDP / d log leaf\n{_rest(entries, large)}")
    ax.grid(axis="y", visible=False)
    ax.set_title(_text(title, 48), fontsize=9.5, color=INK, loc="left", weight="bold")
    ax.barh(range(len(large)), [e["value"] for e in large], 0.66, color=colour)
    ax.axvline(0, color=INK, lw=0.8)
    for i, entry in enumerate(large):
      _signed_bar(ax, i, entry, reach)
    ax.set(xlim=(-1.5 * reach, 1.5 * reach), ylim=(bars - 0.3, -0.7), yticks=[])
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
  for ax in grid[len(groups) :]:
    ax.remove()
  return fig


def _largest(entries: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
  ranked = sorted(entries, key=lambda e: -abs(e["value"]))[:most]
  return [e for e in ranked if abs(e["value"]) >= _SMALL]


def _rest(entries: Sequence[dict[str, Any]], large: Sequence[dict[str, Any]]) -> str:
  rest = [abs(e["value"]) for e in entries if e not in large]
  bound = max([_SMALL, *(math.ceil(100 * r) / 100 for r in rest)])
  said = f"not drawn: {len(rest)} of {len(entries)} leaves, each within ±{bound:.2g}"
  return said if rest else "all leaves are drawn"


def _signed_bar(ax: Axes, row: int, entry: dict[str, Any], reach: float) -> None:
  # The name stands across the zero line from its bar, where nothing else is drawn.
  side = 1 if entry["value"] >= 0 else -1
  near, far = ("left", "right") if side > 0 else ("right", "left")
  style: dict[str, Any] = {"va": "center", "fontsize": 8, "color": INK}
  style["in_layout"] = False
  leaf = entry["leaf"]
  name = _text(leaf if len(leaf) <= 26 else f"…{leaf[-25:]}")
  ax.text(-0.03 * side * reach, row, name, ha=far, **style)
  value = f"{entry['value']:+.2f}".replace("-", "\u2212")
  ax.text(entry["value"] + 0.03 * side * reach, row, value, ha=near, **style)


def training(history: Sequence[dict[str, Any]]) -> Figure:
  """Loss and accuracy after each epoch."""
  fig = blank(10.4, 3.3)
  left, right = fig.subplots(1, 2)
  epochs = [h["epoch"] for h in history]
  style(left, xlabel="epoch", ylabel="training loss")
  style(right, xlabel="epoch", ylabel="accuracy")
  left.plot(epochs, [h["loss"] for h in history], color=INK, marker="o", ms=3.5, lw=1.6)
  left.set_ylim(bottom=0)
  for key, colour, marker in (
    ("train_accuracy", COLOURS[0], "o"),
    ("test_accuracy", COLOURS[1], "s"),
  ):
    values = [h[key] for h in history]
    label = f"{key.split('_')[0]}, {values[-1]:.1%} at the end"
    right.plot(epochs, values, color=colour, marker=marker, ms=3.5, lw=1.6, label=label)
  right.yaxis.set_major_formatter(ticker.PercentFormatter(1))
  right.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower right")
  for ax in (left, right):
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  return fig


def energy(costs: Sequence[dict[str, Any]]) -> Figure:
  """Where the energy of each design goes, as stacked bars with their totals."""
  fig = blank(10.4, 1.5 + 0.42 * len(costs))
  ax = fig.subplots()
  style(ax, xlabel="energy per image")
  ax.grid(axis="y", visible=False)
  start = np.zeros(len(costs))
  for part, colour in PARTS.items():
    lengths = np.array([c["energy_parts_j"][part] for c in costs])
    ax.barh(
      range(len(costs)),
      lengths,
      0.68,
      start,
      color=colour,
      label=part,
      ec=PAPER,
      lw=0.5,
    )
    start += lengths
  for i, total in enumerate(start):
    text = f" {quantity(float(total), 'J')}"
    ax.text(total, i, text, va="center", fontsize=8.5, color=INK)
  _engineering(ax, "J")
  names = [_text(f"{c['accelerator']} running {c['variant']}", 48) for c in costs]
  ax.set_yticks(range(len(costs)), names)
  ax.tick_params(axis="y", length=0, labelcolor=INK)
  ax.set_xlim(0, 1.12 * start.max())
  ax.invert_yaxis()
  _legend(fig, ax.get_legend_handles_labels()[0])
  return fig


def _scale(ax: Axes, values: Sequence[float], unit: str) -> None:
  if max(values) > 4 * min(values):
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.set_xlim(min(values) / 1.35, max(values) * 1.35)
  _engineering(ax, unit)


def _engineering(ax: Axes, unit: str) -> None:
  write: Callable[[float, int], str] = lambda value, _: quantity(value, unit)
  ax.xaxis.set_major_formatter(ticker.FuncFormatter(write))


def _legend(fig: Figure, marks: Sequence[Any]) -> None:
  fig.legend(
    handles=marks,
    loc="outside upper left",
    ncols=_columns(fig.get_figwidth(), [str(mark.get_label()) for mark in marks]),
    frameon=False,
    fontsize=9,
    labelcolor=INK,
  )


def _columns(inches: float, labels: Sequence[str]) -> int:
  """Most columns, up to 5, that entries of these labels fit in."""
  widest = max((len(label) for label in labels), default=0)
  return max(1, min(5, len(labels), int(inches / (0.6 + 0.07 * widest))))


def _looks(count: int) -> tuple[list[str], list[str]]:
  pairs = [(COLOURS[i % 6], MARKERS[i % 6]) for i in range(count)]
  return [colour for colour, _ in pairs], [marker for _, marker in pairs]


def _text(text: str, most: int = 40) -> str:
  """Makes foreign text safe to draw: no formulas, no glyphs that the font lacks."""
  font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
  known = font.get_charmap()
  text = "".join(c if ord(c) in known else "?" for c in " ".join(text.split()))
  if len(text) > most:
    text = f"{text[: most // 2]}…{text[len(text) - most // 2 + 1 :]}"
  return text.replace("$", r"\$")
