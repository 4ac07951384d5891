"""Every config is built, overridden, and its smoke twin run."""

import dataclasses
import json
import math
import pathlib

import chex
import numpy as np
import pytest
from rich.console import Console

from jaxcodesign.data import image_sets
from jaxcodesign.experiments import codesign, networks, record, report, sweep
from jaxcodesign.experiments.systems import Comparison
from jaxcodesign.programs.fast import Fast
from jaxcodesign.programs.policy import assign
from jaxcodesign.runs import command_line, metrics
from jaxcodesign.runs.job import TrainJob
from jaxcodesign.runs.processes import Processes
from jaxcodesign.training import task
from launch import train
from tests.few import Few

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
LAUNCHERS = {
  codesign.CodesignConfig: "codesign",
  sweep.SweepConfig: "evaluate",
  TrainJob: "train",
  Comparison: "train",
}


def of(kind):
  return [p for p in CONFIGS if isinstance(command_line.load(p).config(), kind)]


every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
every_codesign = pytest.mark.parametrize(
  "path", of(codesign.CodesignConfig), ids=lambda p: p.stem
)
every_sweep = pytest.mark.parametrize(
  "path", of(sweep.SweepConfig), ids=lambda p: p.stem
)


@every_config
def test_docstring_gives_command_and_expected_result(path):
  module = command_line.load(path)
  doc, program = module.__doc__, LAUNCHERS[type(module.config())]
  assert f"python -m launch.{program} configs/{path.name}" in doc
  assert "Expected" in doc


@every_codesign
def test_fields_are_overridden_with_their_types(path):
  argv = [str(path), "--smoke", "--train.epochs", "2", "--accelerators.1.rows", "7"]
  launch = command_line.parse(argv, prog="launch")
  assert launch.config.train.epochs == 2
  assert launch.config.accelerators[1].rows == 7.0
  assert (
    launch.config.accelerators[0] == command_line.load(path).smoke().accelerators[0]
  )


@every_codesign
def test_full_config_is_traced_and_priced(path):
  module = command_line.load(path)
  config = module.config()
  # Images that are everywhere: those of the config may have to be fetched.
  images = image_sets.check(module.smoke().data.load())
  work = codesign.workload(config, images)
  assert work.parameters >= 10_000
  kinds = {g.kind for g in work.gemms}
  assert kinds == {"conv", "dot"} and all(g.rhs for g in work.gemms)
  start = codesign.initial(config, images)
  found = {how: networks.expected(start, how) for how in codesign.tunings(config)}
  found[None] = networks.expected(start, config.train)
  priced = codesign.price(config, work, found)
  assert len(priced) == len(config.variants) * len(config.accelerators)


def test_the_main_job_compares_equal_areas():
  config = command_line.load(ROOT / "configs" / "fashion_codesign.py").config()
  areas = [float(a.array_mm2()) for a in config.accelerators]
  assert max(areas) / min(areas) < 1.1


@pytest.mark.parametrize(
  "path",
  # That of the main job is run as a user runs it, by test_launch.
  [p for p in of(codesign.CodesignConfig) if p.stem != "fashion_codesign"],
  ids=lambda p: p.stem,
)
def test_smoke_runs_and_its_report_reads_back(path, tmp_path):
  config = command_line.load(path).smoke()
  config = dataclasses.replace(config, data=Few(config.data, 1000, 500))
  images = image_sets.check(config.data.load())
  trained = codesign.train(config, images, tmp_path)
  again = codesign.train(config, images, tmp_path)
  assert again.restored and not trained.restored
  assert again.accuracy == trained.accuracy and again.history == trained.history
  work = codesign.workload(config, images)
  found = {None: again}
  for how in codesign.tunings(config):
    tuned = codesign.tune(config, how, again, images, tmp_path)
    restored = codesign.tune(config, how, again, images, tmp_path)
    chex.assert_trees_all_equal(tuned.params, restored.params)
    assert restored.restored and restored.groups.keys() == tuned.groups.keys()
    found[how] = restored
  accuracies = list(codesign.measure(config, found, images))
  result = record.result(config, images, found, work, accuracies, "smoke", "command")
  page = report.write(result, tmp_path)
  assert page.is_file() and report.read(tmp_path / "report.json") == result
  assert bool(result["storage"]["rows"]) == (len(found) > 1)
  int8 = {v.name: a for v, a in accuracies}["int8"]
  assert abs(int8 - trained.accuracy) < 0.02


@every_sweep
def test_every_variant_of_a_sweep_fits_the_products(path):
  module = command_line.load(path)
  network = module.smoke().network
  work = network.workload(network.load())
  for variant in module.config().variants:
    assert sweep.weight_bits(variant, work) < 32
    found = zip(work.gemms, assign(variant.policy, work.gemms))
    assert any(left is not None for _, (left, _) in found)


@every_sweep
def test_fields_of_a_sweep_are_overridden(path):
  field = "windows" if "smollm2" in path.stem else "limit"
  argv = [str(path), f"--network.{field}", "100"]
  assert getattr(command_line.parse(argv, prog="launch").config.network, field) == 100


every_training = pytest.mark.parametrize(
  "path", [p for p in CONFIGS if p.stem.startswith("fast_")], ids=lambda p: p.stem
)


@every_training
def test_fields_of_a_training_are_overridden(path):
  job = "job." if isinstance(command_line.load(path).config(), Comparison) else ""
  argv = [str(path), f"--{job}train.epochs", "7", f"--{job}run.mesh.data", "2"]
  config = command_line.parse(argv, prog="launch").config
  found = config.job if job else config
  assert found.train.epochs == 7 and found.run.mesh.data == 2


def two_steps(job, folder):
  """The job, cut to two steps of small batches."""
  size = 16  # two for each of eight devices
  if isinstance(job.task, task.LanguageModeling):
    windows, text = 2 * size + 4, folder / "few.txt"  # some are held back
    content = (ROOT / job.task.text).read_text()[: windows * (job.task.length + 1)]
    text.write_text(content)
    few = dataclasses.replace(job.task, text=text)
  else:
    few = dataclasses.replace(job.task, data=Few(job.task.data, 2 * size, 2 * size))
  return dataclasses.replace(
    job,
    task=few,
    train=dataclasses.replace(job.train, batch_size=size),
    run=dataclasses.replace(job.run, log_every=1),
  )


@every_training
def test_smoke_of_a_training_runs_for_two_steps_and_is_reported(path, tmp_path):
  config, folder = command_line.load(path).smoke(), tmp_path / "run"
  shown = Processes(), "command", Console(quiet=True)
  folder.mkdir()
  if isinstance(config, Comparison):
    cut, seeds = two_steps(config.job, tmp_path), config.seeds[:1]
    config = dataclasses.replace(config, job=cut, seeds=seeds)
    train.compare(config, folder, *shown)
    compared = json.loads((folder / "comparison.json").read_text())
    assert [s["name"] for s in compared["systems"]] == [s.name for s in config.systems]
    done = [(job, folder / s.name / f"seed{n}") for s, n, job in config.jobs()]
  else:
    done = [(two_steps(config, tmp_path), folder)]
    train.train(done[0][0], folder, *shown)
  assert "<svg" in (folder / "report.html").read_text()
  for job, inside in done:
    final = json.loads((inside / "final.json").read_text())
    assert (final["status"], final["step"], final["steps"]) == ("finished", 2, 2)
    assert math.isfinite(final["loss"]) and 0 <= final["score"] <= 1
    rows = [row for row in metrics.read(inside) if "gradient" in row]
    assert len(rows) == 2 and all(row["gradient"] > 0 for row in rows)
    assert "<svg" in (inside / "report.html").read_text()
    told = inside / "telemetry.npz"
    assert told.exists() == isinstance(job.train.precision, Fast)
    if told.exists():
      with np.load(told) as kept:
        bits = kept["bits"][~np.isnan(kept["bits"])]
      assert bits.size and bits.min() >= 2 and bits.max() <= 4
