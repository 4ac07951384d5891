"""Pictures of a run: its curves, and the precision of every tensor over its steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
import numpy as np

from jaxcodesign.figures.canvas import BLUE, COLOURS, INK, MUTED, blank, style

SIDES = ("weight", "activation", "gradient")


def curves(rows: Sequence[Mapping[str, Any]], target: float | None = None) -> Figure:
  """Loss, accuracy, and the gradient's norm with the learning rate, over the steps.

  Args:
    rows: Lines of metrics.jsonl.
    target: Accuracy to mark, if any.
  """
  fig = blank(11.5, 3.4)
  loss, accuracy, gradient = fig.subplots(1, 3)
  style(loss, xlabel="step", ylabel="loss, nats")
  style(accuracy, xlabel="step", ylabel="accuracy")
  style(gradient, xlabel="step", ylabel="gradient norm")
  _line(loss, rows, "loss", "training", MUTED)
  _line(loss, rows, "test_loss", "test", COLOURS[1], "s")
  _line(accuracy, rows, "accuracy", "training, a batch", MUTED)
  _line(accuracy, rows, "test_accuracy", "test", COLOURS[1], "s")
  if target is not None:
    accuracy.axhline(target, color=INK, lw=1, ls=(0, (5, 4)), label="target")
  accuracy.yaxis.set_major_formatter(ticker.PercentFormatter(1))
  _line(gradient, rows, "gradient", "gradient", BLUE)
  rate = gradient.twinx()
  style(rate, ylabel="learning rate")
  rate.grid(visible=False)
  _line(rate, rows, "learning_rate", "learning rate", COLOURS[4])
  rate.spines["right"].set_visible(True)
  marks = [*gradient.get_lines(), *rate.get_lines()]
  gradient.legend(handles=marks, frameon=False, fontsize=8.5, labelcolor=INK)
  for ax in (loss, accuracy):
    ax.legend(frameon=False, fontsize=8.5, labelcolor=INK)
  for ax in (loss, accuracy, gradient):
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  return fig


def scores(by_system: Mapping[str, Sequence[float]]) -> Figure:
  """Accuracy of every run: a row a system, a dot a seed, a bar their mean."""
  fig = blank(9.0, 1.0 + 0.34 * max(len(by_system), 3))
  ax = fig.subplots()
  style(ax, xlabel="test accuracy")
  for row, (name, values) in enumerate(by_system.items()):
    colour = COLOURS[1] if name.startswith("FAST") else BLUE
    mean = sum(values) / len(values)
    ax.plot([mean, mean], [row - 0.3, row + 0.3], color=colour, lw=2.5)
    ax.plot(values, [row] * len(values), "o", color=colour, ms=5, alpha=0.7, lw=0)
    at = (max(values), row)
    ax.annotate(
      f"{mean:.2%}", at, xytext=(9, 0), textcoords="offset points", va="center",
      fontsize=8.5, color=INK,
    )  # fmt: skip
  first = next(iter(by_system.values()))
  ax.axvline(sum(first) / len(first), color=MUTED, lw=1, ls=(0, (5, 4)), zorder=0)
  ax.set_yticks(range(len(by_system)), list(by_system), color=INK, fontsize=9)
  ax.set_ylim(len(by_system) - 0.5, -0.5)
  ax.margins(x=0.12)
  ax.xaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=1))
  return fig


def _line(
  ax: Axes,
  rows: Sequence[Mapping[str, Any]],
  key: str,
  label: str,
  colour: str,
  marker: str = "",
) -> None:
  points = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
  if points:
    ax.plot(
      *zip(*points), color=colour, marker=marker, ms=4, lw=1.5, label=label, alpha=0.95
    )


def precision_map(bits: np.ndarray, names: Sequence[str], steps: int) -> Figure:
  """Mantissa bits of W, A and G: a row a product, from input to output; steps across.

  Args:
    bits: float [buckets, L, 3], NaN where nothing ran: mean bits in each share of the
      run, of weight, activation and gradient. A run of fewer steps than buckets has one
      for each step, and the rest is left out.
    names: Of the L products.
    steps: Of the whole run.
  """
  rows, bits = len(names), bits[:steps]
  fig = blank(11.5, 1.6 + 0.22 * min(max(rows, 6), 40))
  axes = fig.subplots(1, 3, sharey=True)
  low, high = 2.0, max(4.0, float(np.nanmax(bits, initial=4.0)))
  # Fixed colours in both schemes of the page; NaN stays transparent.
  shades = ListedColormap(_ramp(64))
  images = []
  for i, (ax, side) in enumerate(zip(axes, SIDES)):
    style(ax, xlabel="step")
    ax.grid(visible=False)
    image = ax.imshow(
      bits[:, :, i].T,
      aspect="auto",
      interpolation="nearest",
      cmap=shades,
      vmin=low,
      vmax=high,
      extent=(0, steps, rows - 0.5, -0.5),
    )
    images.append(image)
    mean = np.nanmean(bits[:, :, i]) if np.isfinite(bits[:, :, i]).any() else np.nan
    ax.set_title(f"{side}, mean {mean:.2f} bits", color=INK, fontsize=9.5, loc="left")
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  axes[0].set_yticks(range(rows), [_short(name) for name in names], fontsize=7.5)
  bar = fig.colorbar(images[0], ax=axes, fraction=0.03, pad=0.02)
  bar.set_label("mantissa bits", color=INK, fontsize=9)
  bar.ax.tick_params(colors=MUTED, labelsize=8.5)
  return fig


def _ramp(count: int) -> list[tuple[float, float, float]]:
  """From a light blue to a dark one."""
  light, dark = np.array([0.80, 0.90, 0.96]), np.array([0.02, 0.23, 0.42])
  return [tuple(light + (dark - light) * x) for x in np.linspace(0, 1, count)]


def _short(name: str, most: int = 28) -> str:
  return name if len(name) <= most else "…" + name[1 - most :]
