"""The pictures that `launch.simulate` writes: arrays that fill, tiles on their way."""

import argparse
from pathlib import Path

import jax
from matplotlib.figure import Figure

from jaxcodesign.figures import array, array_page, canvas
from jaxcodesign.figures import timeline as timeline_figure
from jaxcodesign.hardware.machines.spec import Accelerator
from jaxcodesign.hardware.mapping import memory, tilings
from jaxcodesign.hardware.pricing import verify
from jaxcodesign.hardware.pricing.layers import Priced
from jaxcodesign.hardware.simulators import activity
from jaxcodesign.programs.workload import Gemm, Workload
from jaxcodesign.runs.disk import files


def draw(args: argparse.Namespace, work: Workload, found: list[Priced]) -> None:
  """Writes the pictures asked for: of a layer, its first fold on every array."""
  if not (args.picture or args.animation or args.timeline):
    return
  g = pictured(args, work, found[0])
  if args.timeline:
    write(args.timeline, canvas.png(timeline(args, g, found[0].machine)))
  folds = {}
  for priced in found:
    rows, cols = verify.array(priced.machine)
    options = {"rows": rows, "cols": cols, "accounting": args.accounting}
    folds[priced.name] = activity.first_fold(
      g.m, g.k, g.n, dataflow=priced.machine.dataflow, **options
    )
  title = f"{g.name}, {g.m:,} x {g.k:,} x {g.n:,}: a fold"
  if args.picture:
    write(args.picture, canvas.png(array.strip(folds, title)))
  for file in args.animation:
    page = file.suffix.lower() == ".html"
    draws = array_page.render if page else array.animation
    write(file, draws(folds, title))


def pictured(args: argparse.Namespace, work: Workload, priced: Priced) -> Gemm:
  """The layer asked for, or the one with most cycles."""
  names = [g.name for g in work.gemms]
  if args.layer is None:
    return work.gemms[max(range(len(names)), key=lambda i: priced.layers[i].cycles)]
  if args.layer not in names:
    raise ValueError(f"--layer {args.layer}: there are {', '.join(names)}")
  return work.gemms[names.index(args.layer)]


def timeline(args: argparse.Namespace, g: Gemm, machine: Accelerator) -> Figure:
  """The tiles of a layer, mapped for the first array."""
  best = tilings.search(g.m, g.k, g.n, machine, objective=args.map).mapping
  with jax.enable_x64(True):
    _, found = memory.simulate(g.m, g.k, g.n, machine, best)
  title = f"{g.name}, loops {best.order}"
  return timeline_figure.figure(found, machine, title)


def write(file: Path, content: str | bytes) -> None:
  """Writes atomically; an error names the file and a way out that there is here."""
  try:
    files.write_atomically(file, content)
  except OSError as error:
    raise OSError(f"cannot write {file}: {error.__cause__}; name another") from error
