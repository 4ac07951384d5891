"""Draws docs/architecture.png from the tree as it is: rooms, and two ways through.

python docs/architecture.py
"""

import ast
import collections
import itertools
import pathlib

from matplotlib.figure import Figure

from jaxcodesign.figures import canvas

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "jaxcodesign"
FLOORS = (
  ("experiments",),
  ("runs",),
  ("training",),
  ("data", "models", "figures"),
  (
    "hardware/machines",
    "hardware/simulators",
    "hardware/mapping",
    "hardware/pricing",
  ),
  ("programs",),
  ("numerics/formats", "numerics/sparsity"),
)
WAYS = (
  ("a batch, from disk to a checkpoint", canvas.COLOURS[1], (
    ("data", "sources, pipeline"),
    ("training", "task, step, methods"),
    ("runs", "session, loop, checkpoints"),
  )),
  ("a function, from trace to joules", canvas.COLOURS[2], (
    ("programs", "trace"),
    ("hardware/mapping", "steps, dataflow"),
    ("hardware/pricing", "cost, report"),
    ("experiments", "codesign, record, page"),
  )),
)  # fmt: skip


def sizes() -> dict[str, tuple[int, int]]:
  """Files and lines of each room."""
  found = {}
  for room in (room for floor in FLOORS for room in floor):
    files = [f for f in (PACKAGE / room).rglob("*.py") if f.stem != "__init__"]
    found[room] = len(files), sum(len(f.read_text().splitlines()) for f in files)
  return found


def arrows() -> collections.Counter[tuple[str, str]]:
  """How many files of a room import from another one."""
  rooms = [room for floor in FLOORS for room in floor]
  found = collections.Counter()
  for room in rooms:
    for file in (PACKAGE / room).rglob("*.py"):
      taken = {
        other
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
        for other in rooms
        if f"{node.module}.".startswith(f"jaxcodesign.{other.replace('/', '.')}.")
      }
      found.update((room, other) for other in taken - {room})
  return found


def draw() -> Figure:
  """The picture."""
  figure = canvas.blank(10, 6.6)
  ax = figure.add_subplot()
  ax.set_axis_off()
  ax.set_xlim(0, 12)
  ax.set_ylim(-0.2, len(FLOORS))
  centre, told = {}, sizes()
  for height, floor in enumerate(reversed(FLOORS)):
    wide = 12 / len(floor)
    for i, room in enumerate(floor):
      x, y = i * wide + 0.08, height + 0.12
      ax.add_patch(_box(x, y, wide - 0.16, 0.76))
      files, lines = told[room]
      ax.text(x + 0.12, y + 0.6, room, fontsize=9.5, color=canvas.INK, va="center")
      note = f"{files} files, {lines:,} lines"
      ax.text(x + 0.12, y + 0.38, note, fontsize=7, color=canvas.MUTED, va="center")
      centre[room] = (x + (wide - 0.16) / 2, y)
  for offset, (title, colour, stops) in zip((-0.9, 0.9), WAYS):
    _way(ax, centre, offset, colour, stops)
    place = 0.1 if offset < 0 else 6.1
    ax.text(place, -0.08, f"→ {title}", color=colour, fontsize=9)
  return figure


def _box(x: float, y: float, width: float, height: float):
  from matplotlib.patches import FancyBboxPatch

  return FancyBboxPatch(
    (x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.08",
    facecolor="#f3f6f9", edgecolor=canvas.GRID, lw=1,
  )  # fmt: skip


def _way(ax, centre, offset: float, colour: str, stops) -> None:
  """An arrow from stop to stop, each with what happens there."""
  places = []
  for room, words in stops:
    x, y = centre[room]
    x += offset if room in ("experiments", "runs", "training", "programs") else 0
    ax.text(
      x, y + 0.12, words, fontsize=7.5, color=colour, ha="center", va="center",
      weight="bold",
    )  # fmt: skip
    places.append((x, y + 0.12))
  for (x0, y0), (x1, y1) in itertools.pairwise(places):
    lift, aside = (0.1, 0.0) if y1 > y0 else (0.0, 0.65)  # beside the words
    ax.annotate(
      "", (x1 - aside, y1 - lift), (x0 + aside, y0 + lift),
      arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.6, "shrinkA": 7,
                  "shrinkB": 7, "connectionstyle": "arc3,rad=0.06"},
    )  # fmt: skip


if __name__ == "__main__":
  target = ROOT / "docs" / "architecture.png"
  target.write_bytes(canvas.png(draw()))
  print(target.relative_to(ROOT))
  for (room, other), count in sorted(arrows().items()):
    print(f"{room} imports from {other} in {count} files")
