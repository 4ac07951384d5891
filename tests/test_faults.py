"""A run of the launcher that is killed, damaged, out of disk, and started again."""

import time

import numpy as np

from launch import benchmark_faults
from launch.benchmark_faults import Runs


def flip(folder):
  """Changes one bit of the largest file."""
  files = [path for path in folder.rglob("*") if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)


def test_kills_damage_and_a_full_disk_cost_nothing_but_time(tmp_path):
  """One test: two workers would make the run that is left alone twice."""
  runs = Runs(tmp_path)
  wanted = runs.finish("alone")
  assert len(wanted) > 40 and wanted[0]["step"] == 40 and wanted[0]["digest"]
  check_damage_and_a_full_disk(runs, wanted)
  # One of the two falls on the start; the damaged run was killed as well.
  number, different = benchmark_faults.killed(runs, wanted, 2, np.random.default_rng(0))
  assert number >= 1 and different == 0


def check_damage_and_a_full_disk(runs, wanted):
  checkpoints = runs.folder("damaged") / "checkpoints"
  steps = lambda: sorted(int(p.name[5:]) for p in checkpoints.glob("step_*"))
  with runs.start("damaged") as process:
    while len(steps()) < 2 or steps()[-1] < 8:
      assert process.poll() is None, process.stdout.read()
      time.sleep(0.05)
    process.kill()
  *_, before, newest = steps()
  flip(checkpoints / f"step_{newest:08d}")

  with runs.start("damaged", most_bytes=512 * 1024) as process:
    said, _ = process.communicate()
  assert process.returncode == 1, said
  assert f"warning: the checkpoint of step {newest} is damaged (" in said
  assert f"going on from step {before} of 40" in said
  error = said.splitlines()[-1]
  assert "cannot write" in error and "free some space" in error, said
  assert before in steps() and not list(checkpoints.glob(".step_*"))

  assert runs.finish("damaged") == wanted


def test_a_difference_would_be_counted(monkeypatch):
  outcomes = iter([["as", "alone"], ["as", "alone"], ["another"]])
  monkeypatch.setattr(Runs, "finish", lambda self, name: next(outcomes))
  monkeypatch.setattr(Runs, "kill", lambda self, name, line, later_s: True)
  (found,) = benchmark_faults.faults(kills=2)
  assert found.value == 1 and found.name == "2 kill -9 in 1 runs"
