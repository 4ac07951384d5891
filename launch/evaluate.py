"""Measures a trained network in many number formats: a table, a curve, and JSON.

python -m launch.evaluate configs/cifar10_formats.py
python -m launch.evaluate configs/cifar10_formats.py --network.limit 1000
python -m launch.evaluate configs/cifar10_formats.py --dry-run

Rows are kept as they come: a second run, or one after an interruption, measures only
what is missing.
"""

import json
import pathlib
import shlex
import sys

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jaxcodesign.experiments import sweep
from jaxcodesign.experiments.codesign import REFERENCE
from jaxcodesign.figures import canvas, curves
from jaxcodesign.runs import command_line, progress
from jaxcodesign.runs.disk import files
from jaxcodesign.runs.origin import versions
from launch import outcome

PROG = "python -m launch.evaluate"


def main(argv: list[str]) -> int:
  """Runs the program; returns its exit code."""

  def program() -> None:
    launch = command_line.parse(argv, prog=PROG, kinds=(sweep.SweepConfig,))
    command = shlex.join([*PROG.split(), *argv])
    console = Console()
    with outcome.smoking(launch.smoke, console):
      if launch.dry_run:
        dry_run(launch, console)
        return
      with command_line.own_folder(launch.out, launch.name):
        run(launch, command, console)

  return outcome.exit_code(PROG, program, "the rows measured so far are kept")


def run(launch: command_line.Launch, command: str, console: Console) -> None:
  """Measures, prints and writes."""
  config: sweep.SweepConfig = launch.config
  folder = command_line.run_folder(launch.out, launch.name)
  total, metric = len(config.variants) + 1, config.network.metric
  rows: list[sweep.Row] = []
  with progress.working(console, "reading the network and its test set") as status:

    def on_start(name: str) -> None:
      status(f"measuring {name} ({len(rows) + 1} of {total})")

    for row in sweep.measure(config, folder, on_start):
      rows.append(row)
      if not console.is_terminal and not row.cached:
        told = number(row.score, metric)
        console.print(f"{row.name}: {told} in {row.seconds:.0f} s", highlight=False)
  console.print(table(rows, metric))
  # A smoke run has random weights: no format is as good as another one.
  terms = () if launch.smoke else sweep.of_terms(config)
  found = sweep.savings(rows, terms, metric)
  for saving in found:
    console.print(
      f"{saving.terms.name} is as good as {saving.uniform.name} with "
      f"{saving.ratio:.1f} times fewer term pairs",
      highlight=False,
    )
  result = {
    "command": command,
    "versions": versions(),
    "rows": [row._asdict() for row in rows],
    "savings": [[s.uniform.name, s.terms.name, s.ratio] for s in found],
  }
  files.write_atomically(folder / "rows.json", json.dumps(result, indent=2))
  picture = canvas.png(curve(rows, sweep.of_terms(config), metric))
  files.write_atomically(folder / "curve.png", picture)
  console.print(f"\nrows and picture: {folder}", highlight=False, soft_wrap=True)


def number(score: float, metric: str) -> str:
  """A score as people write it."""
  return f"{score:.2%}" if metric == "accuracy" else f"{score:.3f}"


def table(rows: list[sweep.Row], metric: str) -> Table:
  """The rows, the float reference beside each."""
  reference = next(row.score for row in rows if row.name == REFERENCE)
  points = 100 if metric == "accuracy" else 1
  shown = Table("formats")
  for column in (metric, "to float32", "bits a weight", "term pairs", "seconds"):
    shown.add_column(column, justify="right")
  for row in rows:
    shown.add_row(
      row.name,
      number(row.score, metric),
      f"{(row.score - reference) * points:+.2f}",
      f"{row.bits:.2f}",
      "" if row.pairs is None else f"{row.pairs:.2f}",
      f"{row.seconds:.0f}" + (" (kept)" if row.cached else ""),
    )
  return shown


def curve(rows: list[sweep.Row], terms: list[str], metric: str) -> Figure:
  """The metric against term pairs a multiplication."""
  return curves.curve(
    {
      "uniform integers, plain binary": [
        (r.pairs, r.score, r.name) for r in rows if r.pairs and r.name not in terms
      ],
      "term quantization": [
        (r.pairs, r.score, r.name) for r in rows if r.pairs and r.name in terms
      ],
    },
    reference=next(row.score for row in rows if row.name == REFERENCE),
    xlabel="term pairs a multiplication",
    ylabel=metric,
  )


def dry_run(launch: command_line.Launch, console: Console) -> None:
  """Prints what would be measured; runs no example."""
  config: sweep.SweepConfig = launch.config
  work = config.network.workload(config.network.load())
  console.print(work.table() + "\n", highlight=False, soft_wrap=True)
  for variant in config.variants:
    pairs = sweep.pairs(variant, work)
    told = "no term pairs" if pairs is None else f"{pairs:.2f} term pairs"
    bits = sweep.weight_bits(variant, work)
    console.print(f"{variant.name}: {bits:.2f} bits a weight, {told}", highlight=False)
  kept = pathlib.Path(launch.out) / launch.name / "rows"
  console.print(f"rows would be kept in {kept}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
  raise SystemExit(main(sys.argv[1:]))
