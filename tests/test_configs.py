"""Every config is built, overridden, and its smoke twin run."""

import pathlib

import pytest

from jaxcodesign.training import codesign, data, experiment, record, report

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)


@every_config
def test_docstring_gives_command_and_expected_result(path):
  doc = experiment.load(path).__doc__
  assert f"python -m launch.codesign configs/{path.name}" in doc
  assert "Expected" in doc


@every_config
def test_fields_are_overridden_with_their_types(path):
  argv = [str(path), "--smoke", "--train.epochs", "2", "--accelerators.1.rows", "7"]
  launch = experiment.parse(argv, prog="launch")
  assert launch.config.train.epochs == 2
  assert launch.config.accelerators[1].rows == 7.0
  assert launch.config.accelerators[0] == experiment.load(path).smoke().accelerators[0]


@every_config
def test_full_config_is_traced_and_priced(path):
  config = experiment.load(path).config()
  work = codesign.workload(config, data.check(config.data.load()))
  assert work.parameters >= 60_000
  kinds = {g.kind for g in work.gemms}
  assert kinds == {"conv", "dot"} and all(g.rhs for g in work.gemms)
  priced = codesign.price(config, work)
  assert len(priced) == len(config.variants) * len(config.accelerators)
  areas = [float(a.array_mm2()) for a in config.accelerators]
  assert max(areas) / min(areas) < 1.1  # the same area budget


@every_config
def test_smoke_runs_and_its_report_reads_back(path, tmp_path):
  config = experiment.load(path).smoke()
  images = data.check(config.data.load())
  trained = codesign.train(config, images, tmp_path)
  again = codesign.train(config, images, tmp_path)
  assert again.restored and not trained.restored
  assert again.accuracy == trained.accuracy and again.history == trained.history
  work = codesign.workload(config, images)
  accuracies = list(codesign.measure(config, again.params, images))
  found = record.result(config, images, again, work, accuracies, "smoke", "command")
  page = report.write(found, tmp_path)
  assert page.is_file() and report.read(tmp_path / "report.json") == found
  int8 = {v.name: a for v, a in accuracies}["int8"]
  assert abs(int8 - trained.accuracy) < 0.02
