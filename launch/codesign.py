"""Trains a model, prunes and quantizes it, prices it, and writes a report.

python -m launch.codesign configs/fashion_codesign.py
python -m launch.codesign configs/fashion_codesign.py --train.epochs 3 --out /data/runs
python -m launch.codesign configs/fashion_codesign.py --dry-run
"""

import shlex
import sys
import time

import jax
from rich.console import Console
from rich.table import Table

from jaxcodesign.data import image_sets
from jaxcodesign.experiments import codesign, networks, preflight, record, report
from jaxcodesign.experiments.networks import Trained
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.programs.workload import Workload, trace
from jaxcodesign.runs import command_line, fitting, progress, session
from jaxcodesign.training.config import TrainConfig
from launch import outcome

PROG = "python -m launch.codesign"
KEPT = "it goes on from there with the same command"


def main(argv: list[str]) -> int:
  """Runs the program; returns its exit code."""

  def program() -> None:
    launch = command_line.parse(argv, prog=PROG, kinds=(codesign.CodesignConfig,))
    console = Console()
    if launch.dry_run:
      with outcome.smoking(launch.smoke, console):
        dry_run(launch.config, console)
      return
    with (
      command_line.own_folder(launch.out, launch.name),
      outcome.smoking(launch.smoke, console),
    ):
      try:
        run(launch, shlex.join([*PROG.split(), *argv]), console)
      except fitting.Interrupted as stopped:
        console.print(f"{stopped}, saved; {KEPT}", highlight=False, soft_wrap=True)

  return outcome.exit_code(PROG, program, "nothing half-written is left")


def run(launch: command_line.Launch, command: str, console: Console) -> None:
  """The seven stages."""
  config: codesign.CodesignConfig = launch.config
  began = time.perf_counter()
  folder = command_line.run_folder(launch.out, launch.name)
  with progress.working(console, "reading the images, trying every stage on shapes"):
    images = image_sets.check(config.data.load())
    preflight.check(config, images)
  how_to = {"console": console, "accept_data": launch.accept_data}
  trained = codesign.train(config, images, folder, **how_to)
  source = "restored from its checkpoint" if trained.restored else "trained"
  console.print(
    f"model {source} in {trained.seconds:.0f} s: {trained.accuracy:.2%} of "
    f"{len(images.test_images):,} test images",
    highlight=False,
  )
  found: dict[TrainConfig | None, Trained] = {None: trained}
  for how, name in codesign.tunings(config).items():
    console.print(f"fine-tuning for {name}", highlight=False)
    tuned = codesign.tune(config, how, trained, images, folder, **how_to)
    found[how] = tuned
    console.print(_tuned(name, tuned), highlight=False, soft_wrap=True)
  work = codesign.workload(config, images)
  console.print("\n" + work.table() + "\n", highlight=False, soft_wrap=True)
  accuracies = []
  with progress.working(console, "quantizing, pricing, reporting") as status:
    for variant, accuracy in codesign.measure(config, found, images):
      accuracies.append((variant, accuracy))
      status(f"quantizing: {variant.name} {accuracy:.2%}")
    status("pricing and differentiating designs")
    result = record.result(
      config, images, found, work, accuracies, launch.name, command
    )
    status("writing the report")
    page = report.write(result, folder)
  console.print(report.terminal_table(result))
  console.print(
    f"\n{time.perf_counter() - began:.0f} s in all; report: {page}",
    highlight=False,
    soft_wrap=True,
  )


def _tuned(name: str, tuned: Trained) -> str:
  how = "restored" if tuned.restored else f"{tuned.seconds:.0f} s"
  columns = [(g.columns, g.count) for g in tuned.groups.values()]
  packed = ""
  if columns:
    before, after = (sum(c) for c in zip(*columns))
    packed = f", {before:,} columns in {after:,}"
  return f"fine-tuned for {name}: {tuned.accuracy:.2%}{packed}, {how}"


def dry_run(config: codesign.CodesignConfig, console: Console) -> None:
  """Compiles the training step, prints its memory and all costs; runs no step."""
  images = image_sets.check(config.data.load())
  preflight.check(config, images)
  work = codesign.workload(config, images)
  console.print(work.table() + "\n", highlight=False, soft_wrap=True)
  console.print(_training(config, images), highlight=False, soft_wrap=True)
  start = codesign.initial(config, images)
  expected: dict[TrainConfig | None, Trained] = {
    None: networks.expected(start, config.train)
  }
  for how in codesign.tunings(config):
    expected[how] = networks.expected(start, how)
  if len(expected) > 1:
    console.print("sparse variants: initial weights, pruned in one round\n")
  console.print(_costs(config, work, expected))


def _training(config: codesign.CodesignConfig, images: image_sets.Images) -> str:
  start = jax.eval_shape(lambda: codesign.initial(config, images))
  ready = fitting.prepare(config.model, start, images, config.train, run=config.run)
  args = (ready.state, *session.batch_shapes(ready))
  memory = ready.step.lower(*args).compile().memory_analysis()
  macs = trace(ready.functions.step)(*args).macs
  told = "which does not tell its memory"
  if memory is not None:
    told = (
      f"state and batch {memory.argument_size_in_bytes / 2**20:.1f} MiB, "
      f"temporaries {memory.temp_size_in_bytes / 2**20:.1f} MiB"
    )
  return (
    f"training: {ready.steps:,} steps of {config.train.batch_size} images, {macs:,} "
    f"MAC a step; compiled for {jax.default_backend()}: {told}\n"
  )


def _costs(
  config: codesign.CodesignConfig, work: Workload, found: networks.Networks
) -> Table:
  table = Table("variant", "accelerator", title="per image", title_justify="left")
  for column in ("time", "energy", "EDP", "utilization"):
    table.add_column(column, justify="right")
  for variant, machine, r in codesign.price(config, work, found):
    row = _row(r)
    table.add_row(variant, machine, *row)
  return table


def _row(r: cost.CostReport) -> list[str]:
  return [
    f"{float(r.time_s) * 1e6:.2f} us",
    f"{float(r.energy_j) * 1e6:.3f} uJ",
    f"{float(r.edp_js):.3g} Js",
    f"{float(r.utilization):.1%}",
  ]


if __name__ == "__main__":
  raise SystemExit(main(sys.argv[1:]))
