"""Launchers as a user meets them: help, dry runs, and one clear error each."""

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxcodesign.programs.workload import trace
from launch import benchmark, codesign, timing

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = str(ROOT / "configs" / "fashion_codesign.py")


def run(*argv, capsys):
  """Exit code, standard output and standard error of launch.codesign."""
  try:
    code = codesign.main(list(argv))
  except SystemExit as stop:
    code = stop.code
  said = capsys.readouterr()
  return code, said.out, said.err


def test_module_runs_and_lists_configs():
  environment = dict(os.environ, PYTHONPATH=str(ROOT))
  done = subprocess.run(
    [sys.executable, "-m", "launch.codesign", "--help"],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert "fashion_codesign.py" in done.stdout and "--dry-run" in done.stdout


def test_help_lists_every_field(capsys):
  code, out, _ = run(CONFIG, "--help-all", capsys=capsys)
  assert code == 0
  for field in ("--train.learning-rate", "--stream", "--accelerators.N.mac.energy-j"):
    assert field in out


def test_dry_run_compiles_prints_costs_and_writes_nothing(tmp_path, capsys):
  code, out, err = run(
    CONFIG, "--smoke", "--dry-run", "--out", str(tmp_path), capsys=capsys
  )
  assert code == 0, err
  for word in ("conv1/kernel", "MAC a step", "MiB", "tMAC", "EDP"):
    assert word in out
  assert out.startswith("SMOKE") and out.count("SMOKE") == 2
  assert not list(tmp_path.iterdir())


def test_smoke_run_writes_a_report_and_restores(tmp_path, capsys):
  config = tmp_path / "fashion_codesign.py"
  config.write_text(
    '"""The smoke run of the main job, on fewer images."""\n'
    "import dataclasses\n"
    "from jaxcodesign.runs import command_line\n"
    "from tests.few import Few\n"
    f"whole = command_line.load({CONFIG!r}).smoke()\n"
    "def config(): return dataclasses.replace(whole, data=Few(whole.data, 1500, 500))\n"
    "smoke = config\n"
  )
  argv = (str(config), "--smoke", "--out", str(tmp_path))
  code, out, err = run(*argv, capsys=capsys)
  assert code == 0, err
  folder = tmp_path / "fashion_codesign_smoke"
  assert str(folder / "report.html") in out.replace("\n", "")
  assert out.startswith("SMOKE") and "Compared with" not in out
  assert "SMOKE" in (folder / "report.html").read_text()
  assert {p.name for p in folder.iterdir()} == {
    "checkpoint",
    "figures",
    "report.html",
    "report.json",
    "tuned",
  }
  assert len(list((folder / "figures").glob("*.png"))) == 7
  code, out, err = run(*argv, capsys=capsys)
  assert code == 0 and "restored from its checkpoint" in out


@pytest.mark.parametrize(
  ("argv", "code", "message"),
  [
    (["configs/none.py"], 2, "no config file"),
    ([CONFIG, "--trian.epochs", "3"], 2, "--train.epochs"),
    ([CONFIG, "--train.epochs", "x"], 2, "invalid"),
    ([CONFIG, "--smoke", "--stream", "0"], 2, "stream=0"),
    ([CONFIG, "--smoke", "--variants.1.policy.1.weight.budget", "0"], 2, "budget=0"),
    ([CONFIG, "--smoke", "--variants.1.policy.1.weight.group", "7"], 1, "group=7"),
    ([CONFIG, "--smoke", "--variants.0.policy.0.leaf", "fc*"], 1, "'fc*' matches no"),
  ],
)
def test_bad_input_is_one_clear_error(argv, code, message, tmp_path, capsys):
  found, out, err = run(*argv, "--out", str(tmp_path), capsys=capsys)
  assert found == code and message in out + err
  assert "Traceback" not in out + err
  assert not list(tmp_path.glob("*/report.*"))


def test_unwritable_folder_is_noticed_before_any_work(tmp_path, capsys):
  blocked = tmp_path / "file"
  blocked.write_text("not a folder")
  code, out, err = run(CONFIG, "--smoke", "--out", str(blocked), capsys=capsys)
  assert code == 1 and "cannot write" in err and "--out" in err and "epoch" not in out


def test_a_checkpoint_with_nan_is_refused(tmp_path, capsys):
  from jaxcodesign.data import image_sets
  from jaxcodesign.experiments import codesign as stages
  from jaxcodesign.runs import command_line
  from jaxcodesign.runs.disk import saved

  config = command_line.load(CONFIG).smoke()
  params = stages.initial(config, image_sets.check(config.data.load()))
  params["dense1"]["kernel"] = np.full_like(params["dense1"]["kernel"], np.nan)
  folder = tmp_path / "fashion_codesign_smoke"
  folder.mkdir()
  record = {"fingerprint": stages.mark_of(config), "accuracy": 0.5, "history": []}
  saved.save(folder / "checkpoint", params, record)
  code, _, err = run(CONFIG, "--smoke", "--out", str(tmp_path), capsys=capsys)
  assert code == 1 and "dense1/kernel" in err and "NaN" in err


def test_a_truncated_data_file_is_refused(tmp_path, capsys):
  config = tmp_path / "truncated.py"
  config.write_text(
    '"""Truncated data."""\n'
    "import dataclasses\n"
    "from jaxcodesign.data import image_sets\n"
    "from jaxcodesign.runs import command_line\n"
    f"base = command_line.load({CONFIG!r}).smoke()\n"
    f"source = image_sets.Idx({str(tmp_path)!r})\n"
    "def config(): return dataclasses.replace(base, data=source)\n"
    "smoke = config\n"
  )
  (tmp_path / "train-images-idx3-ubyte").write_bytes(
    bytes([0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 28, 0, 0, 0, 28]) + b"x" * 100
  )
  code, _, err = run(str(config), "--out", str(tmp_path / "runs"), capsys=capsys)
  assert code == 1 and "train-images-idx3-ubyte" in err


def once(run, repetitions):
  """Seconds of one run, compiling included, for all repetitions."""
  began = time.perf_counter()
  jax.block_until_ready(run())
  return [time.perf_counter() - began] * repetitions


def test_benchmark_measures_ratios(capsys, monkeypatch):
  found = benchmark.ratio(lambda: sum(range(20_000)), lambda: sum(range(10_000)), 5)
  assert 1 < found[0] < 4
  with pytest.raises(SystemExit) as stop:
    benchmark.main(["speed"])
  assert (
    stop.value.code == 2
    and "there are trace, cost, hardware, exactness, numerics, sparsity"
    in capsys.readouterr().err
  )
  few = {
    "cost": lambda: benchmark.pricing(50),
    "numerics": lambda: benchmark.numerics((16,), names=("int8", "MXFP4")),
    "hardware": lambda: benchmark.hardware((4,), 2e6, layers=0, designs=20),
    "exactness": benchmark.exactness,
    "sparsity": lambda: benchmark.sparsity(64, 2, 24, 2),
  }
  monkeypatch.setattr(benchmark, "GROUPS", few)
  monkeypatch.setattr(timing, "seconds", once)
  assert benchmark.main(["--shapes", "2"]) == 0
  rows = [json.loads(x) for x in capsys.readouterr().out.split("\n") if x[:1] == "{"]
  names = [row["name"] for row in rows]
  assert "gradient of evaluate, exact" in names and "evaluate, time" in names
  assert "os array, 4^2, time" in names and "value and gradient of these" in names
  assert "nearest int8, 16^2" in names and "pack MXFP4, 16^2" in names
  errors = [row for row in rows if "error" in row["name"]]
  wrong = [row for row in rows if "mismatches" in row["name"]]
  assert len(wrong) == 4 and not any(row["value"] for row in wrong)
  assert len(errors) == 4
  assert all(row["value"] <= float(row["target"].split()[1]) for row in errors)
  rest = [row for row in rows if row not in wrong + errors]
  assert all(row["value"] > 0 and row["seconds"] > 0 for row in rest)


def test_benchmark_traces_the_programs_it_names():
  for name, (fn, params, *inputs) in benchmark.programs().items():
    assert trace(fn)(params, *inputs).macs > 10**6, name
