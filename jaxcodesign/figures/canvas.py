"""What all figures share: a canvas without pyplot's global state, colours, axes."""

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK, MUTED, GRID, PAPER = "#1b1f25", "#5c6571", "#d8dce2", "#fefefe"
BLUE = "#0072b2"
COLOURS = (BLUE, "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"


def png(figure: Figure) -> bytes:
  """Renders `figure` on white at twice the resolution of a screen."""
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=192, facecolor="white")
  return file.getvalue()


def blank(width: float, height: float) -> Figure:
  """An empty figure, in inches, that lays itself out."""
  layout = ConstrainedLayoutEngine(w_pad=0.08)
  figure = Figure(figsize=(width, height), dpi=96, layout=layout)
  FigureCanvasAgg(figure)
  return figure


def style(ax: Axes, *, xlabel: str = "", ylabel: str = "") -> None:
  """Gives axes the look of all figures."""
  ax.set_facecolor("none")
  ax.set_axisbelow(True)
  ax.grid(color=GRID, lw=0.7)
  ax.spines[["top", "right"]].set_visible(False)
  ax.spines[["left", "bottom"]].set_color(MUTED)
  ax.tick_params(colors=MUTED, labelsize=8.5, which="both")
  ax.set_xlabel(xlabel, color=INK, fontsize=9.5)
  ax.set_ylabel(ylabel, color=INK, fontsize=9.5)
