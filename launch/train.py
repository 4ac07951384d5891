"""Trains a model in any precision, on any number of devices, and goes on when stopped.

python -m launch.train configs/fast_fashion.py
python -m launch.train configs/fast_transformer.py --train.epochs 3 --run.mesh.fsdp 2
python -m launch.train configs/fast_imagenet.py --dry-run --run.platform tpu
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import shlex
import sys
from typing import Any

import jax
from rich.console import Console

from jaxcodesign.data.cache import expanded
from jaxcodesign.experiments import comparison, train_report
from jaxcodesign.experiments.systems import Comparison
from jaxcodesign.runs import command_line, loop, origin, preview, progress, session
from jaxcodesign.runs import processes as distributed
from jaxcodesign.runs.job import RunConfig, TrainJob
from jaxcodesign.runs.processes import Processes
from jaxcodesign.runs.signals import Interruption
from launch import outcome

PROG = "python -m launch.train"
KEPT = "the run goes on from its last checkpoint with the same command"


def main(argv: list[str]) -> int:
  """Runs the program; returns its exit code."""

  def program() -> None:
    launch = command_line.parse(argv, prog=PROG, kinds=(TrainJob, Comparison))
    console = Console()
    config = launch.config
    run = config.run if isinstance(config, TrainJob) else config.job.run
    if launch.dry_run:
      distributed.require_devices(run.mesh.size())
      with outcome.smoking(launch.smoke, console):
        dry_run(config, console)
      return
    command = shlex.join([*PROG.split(), *argv])
    with (
      distributed.initialize(run.distributed) as processes,
      Interruption(run.ask_every) as signals,
    ):
      compile_once(run)
      shown = Console(quiet=True) if processes.index else console
      do: Any = train if isinstance(config, TrainJob) else compare
      first = processes.index == 0
      with (
        command_line.own_folder(launch.out, launch.name, first=first) as folder,
        outcome.smoking(launch.smoke, shown),
      ):
        do(config, folder, processes, command, shown, signals, launch.accept_data)

  return outcome.exit_code(PROG, program, KEPT)


def compile_once(run: RunConfig) -> None:
  """Keeps compiled programs on disk, for the next start and the next process."""
  if run.cache == "off":
    return
  try:
    folder = expanded(run.cache or "~/.cache/jaxcodesign/compiled")
  except FileNotFoundError:
    return  # without a home folder nothing is kept, and nothing else is lost
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def train(
  job: TrainJob,
  folder: pathlib.Path,
  processes: Processes,
  command: str,
  console: Console,
  signals: Interruption | None = None,
  accept_data: bool = False,
) -> loop.Result:
  """One training, to its end or to a signal, in a folder that is this program's."""
  origin.check(job, folder)
  with progress.working(console, "reading the data, tracing the step"):
    ready = session.prepare(job, processes)

  def note() -> None:
    if processes.index == 0:
      origin.write(job, folder, command, ready.data)

  found = loop.run(
    ready, folder, console=console, signals=signals, accept_data=accept_data,
    on_start=note,
  )  # fmt: skip
  if found.status == "interrupted":
    console.print(
      f"stopped on request at step {found.step:,} of {found.steps:,}, saved; {KEPT}",
      highlight=False,
      soft_wrap=True,
    )
    return found
  if processes.index == 0:
    page = train_report.write(ready, found, folder)
    console.print(
      f"{found.step:,} steps, test accuracy {found.score:.2%}, in {found.seconds:.0f} "
      f"s; report: {page}",
      highlight=False,
      soft_wrap=True,
    )
  return found


def compare(
  config: Comparison,
  folder: pathlib.Path,
  processes: Processes,
  command: str,
  console: Console,
  signals: Interruption | None = None,
  accept_data: bool = False,
) -> None:
  """Every training that has not been done yet, then the page that compares them.

  A system whose loss stops being a number is left out, in words.

  Raises:
    FloatingPointError: If all systems do.
  """
  jobs, failed = config.jobs(), dict[str, str]()
  data = session.content(config.job.task.load(config.job.train))
  for number, (system, seed, job) in enumerate(jobs, start=1):
    inside = folder / system.name / f"seed{seed}"
    if system.name in failed:
      continue
    if comparison.done(job, inside, data, accept_data=accept_data):
      continue
    console.print(
      f"[{number} of {len(jobs)}] {system.name}, seed {seed}",
      highlight=False,
      markup=False,
    )
    command_line.run_folder(inside.parent, inside.name)
    try:
      found = train(job, inside, processes, command, console, signals, accept_data)
    except FloatingPointError as error:
      failed[system.name] = f"seed {seed}: {error}"
      console.print(f"{system.name} is left out, {failed[system.name]}", markup=False)
      continue
    if found.status == "interrupted":
      return
  left = tuple(system for system in config.systems if system.name not in failed)
  if not left:
    raise FloatingPointError("; ".join(failed.values()))
  if processes.index == 0:
    kept = dataclasses.replace(config, systems=left)
    with progress.working(console, "pricing"):
      page = comparison.write(kept, folder, command, failed=failed)
    console.print(comparison.tables(folder))
    console.print(f"report: {page}", highlight=False, soft_wrap=True)


def dry_run(config: TrainJob | Comparison, console: Console) -> None:
  """Compiles for the wanted mesh and platform, prints what a step takes; runs none."""
  jobs = [("", config)] if isinstance(config, TrainJob) else _distinct(config)
  for name, job in jobs:
    run = job.run
    devices = jax.devices()[: run.mesh.size() or None]
    loaded = job.task.load(job.train)
    ready = session.prepare(job, Processes(0, 1), devices, loaded=loaded)

    def build(chips: Sequence[Any], job: TrainJob = job, loaded: Any = loaded) -> Any:
      there = session.prepare(job, Processes(0, 1), chips, loaded=loaded)
      return there.step, there.state, session.batch_shapes(there)

    with progress.working(console, f"compiling {name or 'the step'}"):
      told = preview.preview(
        ready.step,
        ready.state,
        session.batch_shapes(ready),
        mesh=ready.mesh,
        platform=run.platform,
        chip=run.chip,
        loss=ready.functions.plain,
        build=build,
      )
    console.print(
      f"{name or 'job'}: {ready.steps:,} steps of {job.train.batch_size:,} examples",
      highlight=False,
    )
    console.print(told.table(), highlight=False)


def _distinct(config: Comparison) -> Sequence[tuple[str, TrainJob]]:
  """Each system once: seeds compile the same."""
  first = config.seeds[0]
  return [(system.name, job) for system, seed, job in config.jobs() if seed == first]


if __name__ == "__main__":
  raise SystemExit(main(sys.argv[1:]))
