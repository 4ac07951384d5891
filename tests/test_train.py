"""launch.train as a user meets it: a comparison, done once; a dry run; clear errors."""

import json
import pathlib

import pytest

from launch import train

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = '''"""FP32 and FAST, a tiny network.

  python -m launch.train tiny.py

Expected: seconds.
"""

from jaxcodesign.hardware.machines.number_systems import systems
from jaxcodesign.data.image_sets import FashionMnistMini
from jaxcodesign.runs.mesh import MeshConfig
from jaxcodesign.models import Cnn
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.task import Classification
from jaxcodesign.experiments.systems import Comparison, System
from jaxcodesign.runs.job import RunConfig, TrainJob


def config():
  """An epoch of 20 steps."""
  return Comparison(
    job=TrainJob(
      Classification(FashionMnistMini(), Cnn((2, 4), 8)),
      TrainConfig(epochs=1, batch_size=496, learning_rate=1e-2),
      evaluate_every=10,
      run=RunConfig(mesh=MeshConfig(data=8), cache="off"),
    ),
    systems=tuple(System.of(s) for s in systems() if s.name in ("FP32", "FAST")),
    seeds=(0,),
    target=0.05,
  )


smoke = config
'''


def run(*argv, capsys):
  """Exit code, standard output and standard error."""
  try:
    code = train.main(list(argv))
  except SystemExit as stop:
    code = stop.code
  said = capsys.readouterr()
  return code, said.out, said.err


@pytest.fixture
def config(tmp_path):
  path = tmp_path / "tiny.py"
  path.write_text(CONFIG)
  return str(path)


def test_a_comparison_is_run_once_and_reported(config, tmp_path, capsys):
  argv = (config, "--out", str(tmp_path))
  code, out, err = run(*argv, capsys=capsys)
  assert code == 0, err
  assert "[2 of 2] FAST, seed 0" in out
  folder = tmp_path / "tiny"
  found = json.loads((folder / "comparison.json").read_text())
  assert [s["name"] for s in found["systems"]] == ["FP32", "FAST"]
  share = found["systems"][1]["passes_share"]
  assert 0.25 <= share <= 1 and found["systems"][0]["passes_share"] is None
  for row in found["to_accuracy"]:
    assert row["iterations"] == 10 and row["time_s"] > 0 and row["energy_j"] > 0
  figures = {p.name for p in (folder / "figures").iterdir()}
  assert figures == {"accuracy.png", "precision.png", "to_accuracy.png"}
  page = (folder / "report.html").read_text()
  assert page.count("<svg") == 3 and "FAST" in page
  inside = folder / "FAST" / "seed0"
  result = json.loads((inside / "report.json").read_text())
  assert result["steps"] == 20 and result["passes_share"] == pytest.approx(share)
  assert (inside / "tensorboard").is_dir() and (inside / "origin.json").is_file()
  code, out, _ = run(*argv, capsys=capsys)
  assert code == 0 and "[2 of 2]" not in out and "report:" in out


def test_a_system_that_diverges_is_left_out(config, tmp_path, capsys, monkeypatch):
  whole = train.loop.run

  def diverging(session, folder, **how):
    if session.job.train.precision is not None:
      raise FloatingPointError("loss is nan in step 3")
    return whole(session, folder, **how)

  monkeypatch.setattr(train.loop, "run", diverging)
  code, out, err = run(config, "--out", str(tmp_path), capsys=capsys)
  assert code == 0, err
  assert "FAST is left out, seed 0: loss is nan in step 3" in out
  found = json.loads((tmp_path / "tiny" / "comparison.json").read_text())
  assert [s["name"] for s in found["systems"]] == ["FP32"]
  assert found["failed"] == {"FAST": "seed 0: loss is nan in step 3"}
  assert "Left out" in (tmp_path / "tiny" / "report.html").read_text()


def test_a_dry_run_prints_memory_and_writes_nothing(config, tmp_path, capsys):
  code, out, err = run(config, "--dry-run", "--out", str(tmp_path), capsys=capsys)
  assert code == 0, err
  for word in ("FP32: 20 steps of 496", "FAST: 20 steps", "MiB", "collectives", "FLOP"):
    assert word in out
  assert [p.name for p in tmp_path.iterdir()] == ["tiny.py"]


def test_help_lists_fields_and_other_configs_are_refused(config, capsys):
  code, out, _ = run(config, "--help", capsys=capsys)
  assert code == 0
  assert "--target" in out and "train.*, " in out
  other = str(ROOT / "configs" / "fashion_codesign.py")
  code, _, err = run(other, capsys=capsys)
  assert code == 2 and "is a CodesignConfig, no TrainJob or Comparison" in err
  assert "python -m launch.codesign" in err
