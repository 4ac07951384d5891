"""Column combining as pictures: a matrix before and after, and cycles by layer."""

from collections.abc import Mapping, Sequence

from matplotlib import colormaps, ticker
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
import numpy as np

from jaxcodesign.figures.canvas import (
  BLUE,
  COLOURS,
  GRID,
  INK,
  MUTED,
  PAPER,
  blank,
  style,
)


def matrix(name: str, kept: np.ndarray, channel: np.ndarray, array: int) -> Figure:
  """A pruned matrix above its packed form, cut into tiles of the array.

  Args:
    name: Of the layer.
    kept: bool [outputs, columns], True where a weight is not zero.
    channel: int [outputs, groups]: which member of its group a packed weight belongs
      to, -1 where there is none.
    array: Rows and columns of the array.

  Raises:
    ValueError: If the two have different numbers of outputs.
  """
  if len(kept) != len(channel):
    raise ValueError(f"{len(kept)} outputs before packing and {len(channel)} after")
  # One scale for both, so that the eye sees how much narrower the second is.
  fig = blank(10.4, 1.5 + 2 * 9.6 * len(kept) / max(kept.shape[1], 3 * len(kept)))
  before, after = fig.subplots(2, 1, sharex=True, sharey=True)
  own = ListedColormap(["none", BLUE])  # a raster: seen on white and on black
  before.imshow(kept, cmap=own, interpolation="nearest", aspect="auto", vmin=0, vmax=1)
  # A member's colour tells which of the inputs its cell selects.
  members = int(channel.max()) + 1
  shades = [colormaps["viridis"](i / max(members - 1, 1)) for i in range(members)]
  packed = np.full(kept.shape, -1)
  packed[:, : channel.shape[1]] = channel
  after.imshow(
    packed,
    cmap=ListedColormap(["none", *shades]),
    interpolation="nearest",
    aspect="auto",
    vmin=-1,
    vmax=max(members - 1, 0),
  )
  for ax, width, what in (
    (before, kept.shape[1], f"{name}, pruned"),
    (after, channel.shape[1], "packed, coloured by the input of each weight"),
  ):
    filled = np.count_nonzero(kept) / (len(kept) * width)
    down, across = -(-len(kept) // array), -(-width // array)
    _tiles(ax, len(kept), width, array)
    ax.set_title(
      f"{_plain(what)}: {width} columns, {down} x {across} = {down * across} tiles "
      f"of {array} x {array}, {filled:.0%} of the cells have a weight",
      loc="left",
      fontsize=9.5,
      color=INK,
    )
  for ax, label in ((before, "inputs"), (after, "groups of inputs")):
    ax.set_xlabel(label, color=INK, fontsize=9.5)
    ax.set_ylabel("outputs", color=INK, fontsize=9.5)
  return fig


def cycles(
  layers: Sequence[str], series: Mapping[str, Sequence[float]], what: str
) -> Figure:
  """Bars of each layer's cycles, one for each way to store its weights.

  Args:
    layers: Names.
    series: Cycles of the layers by the name of the storage.
    what: Machine, for the axis.
  """
  fig = blank(10.4, 1.2 + 0.2 * len(layers) * (len(series) + 1))
  ax = fig.subplots()
  style(ax, xlabel=f"clock cycles of an image, {_plain(what)}")
  ax.grid(axis="y", visible=False)
  high = 0.85 / len(series)
  longest = max(max(values) for values in series.values())
  for i, (name, values) in enumerate(series.items()):
    places = np.arange(len(layers)) + (i - (len(series) - 1) / 2) * high
    colour = COLOURS[i % len(COLOURS)]
    ax.barh(places, values, high, color=colour, label=_plain(name), ec=PAPER, lw=0.4)
    for place, value in zip(places, values):
      text = f" {value:,.0f}"
      ax.text(value, place, text, va="center", fontsize=7.5, color=MUTED)
  ax.set_yticks(range(len(layers)), [_plain(name) for name in layers])
  ax.tick_params(axis="y", length=0, labelcolor=INK)
  ax.set_ylim(len(layers) - 0.4, -0.6)
  ax.set_xlim(0, 1.1 * longest)
  ax.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
  fig.legend(loc="outside lower left", ncols=5, frameon=False, labelcolor=INK)
  return fig


def _tiles(ax: Axes, high: int, wide: int, array: int) -> None:
  """Lines between tiles, and an edge around the matrix."""
  for x in range(0, wide, array):
    ax.plot([x - 0.5] * 2, [-0.5, high - 0.5], color=GRID, lw=0.8)
  for y in range(0, high, array):
    ax.plot([-0.5, wide - 0.5], [y - 0.5] * 2, color=GRID, lw=0.8)
  edge = [-0.5, wide - 0.5, wide - 0.5, -0.5, -0.5]
  ax.plot(edge, [-0.5, -0.5, high - 0.5, high - 0.5, -0.5], color=MUTED, lw=1)
  ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
  ax.tick_params(colors=MUTED, labelsize=8.5)
  ax.set_facecolor("none")


def _plain(text: str) -> str:
  return text.replace("$", r"\$")
