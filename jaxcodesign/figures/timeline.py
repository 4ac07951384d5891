"""Tiles of a product on their way through DRAM, buffers and the array, as a picture."""

import jax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
import numpy as np

from jaxcodesign.figures.canvas import COLOURS, MUTED, blank, style
from jaxcodesign.hardware.machines.spec import Accelerator
from jaxcodesign.hardware.mapping.memory import Timeline

_LANES = ("DRAM channel", "array")
_COLOUR: dict[str, str] = dict(
  zip(("inputs", "weights", "partial sums", "results", "computes"), COLOURS)
)
_BUFFERS = ("inputs", "weights", "results")


def figure(
  timeline: Timeline, machine: Accelerator, title: str = "", *, tiles: int = 40
) -> Figure:
  """Who works when, and what the buffers hold.

  Args:
    timeline: From `memory.simulate`, not batched.
    machine: It was simulated on.
    title: Of the picture.
    tiles: First tiles that are shown.
  """
  shown = min(tiles, len(timeline.compute_start))
  until = float(np.asarray(timeline.compute_end)[shown - 1])
  picture = blank(9.0, 4.8)
  lanes, held = picture.subplots(2, 1, sharex=True, height_ratios=[1, 1.3])
  _work(lanes, timeline, shown)
  _occupancy(held, timeline, machine, until)
  held.set_xlim(0, until * 1.01)
  total = float(timeline.cycles)
  busy = np.asarray(timeline.compute_end) - np.asarray(timeline.compute_start)
  told = f"{len(busy):,} tiles, {total:,.0f} cycles, {busy.sum() / total:.0%} computing"
  name = f"{title}: " if title else ""
  lanes.set_title(f"{name}{told}; the first {shown}", fontsize=10, loc="left")
  handles = [Patch(color=colour, label=what) for what, colour in _COLOUR.items()]
  picture.legend(
    handles=handles, loc="outside lower center", ncols=len(handles), frameon=False,
    fontsize=8.5,
  )  # fmt: skip
  return picture


def _work(axes: Axes, timeline: Timeline, shown: int) -> None:
  start, end = (
    np.asarray(x)[:shown].T for x in (timeline.load_start, timeline.load_end)
  )
  bars = [
    (1, start[i], end[i], _COLOUR[what])
    for i, what in enumerate(("inputs", "weights", "partial sums"))
  ]
  for lane, first, last, what in (
    (1, timeline.write_start, timeline.write_end, "results"),
    (0, timeline.compute_start, timeline.compute_end, "computes"),
  ):
    span = np.asarray(first)[:shown], np.asarray(last)[:shown]
    bars.append((lane, *span, _COLOUR[what]))
  for lane, first, last, colour in bars:
    real = last > first
    spans = list(zip(first[real], (last - first)[real]))
    axes.broken_barh(
      spans, (lane - 0.36, 0.72), color=colour, edgecolor="white", lw=0.6
    )
  style(axes)
  axes.grid(visible=False, axis="y")
  axes.set_yticks([1, 0], _LANES)


def _occupancy(axes: Axes, timeline: Timeline, machine: Accelerator, until: float):
  with jax.enable_x64(True):  # a timeline may be exact
    times, held = (np.asarray(x) for x in timeline.occupancy())
  room = [
    float(np.asarray(x.capacity_bytes))
    for x in (machine.ifmap, machine.weight, machine.ofmap)
  ]
  for i, what in enumerate(_BUFFERS):
    seen = times[:, i] <= until
    at = np.append(times[seen, i], until)
    share = np.append(held[seen, i], held[seen, i][-1]) / room[i]
    axes.step(at, share, where="post", color=_COLOUR[what], lw=1.6)
  axes.axhline(1.0, color=MUTED, lw=0.8, ls=":")
  style(axes, xlabel="cycle of the array", ylabel="buffer in use")
  axes.set_ylim(0, 1.08)
  axes.yaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
