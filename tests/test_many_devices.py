"""launch.train on one device, on eight, in two processes: the same run, stopped or not.

Measured over 24 steps, against eight devices in one process: the loss differs by 2.2e-7
at most on one device, 1.9e-7 in two processes and not at all with fsdp, in float32 and
under FAST; sums are in another order, and no decision of FAST turns on that.
"""

import itertools
import json
import pathlib
import re
import signal
import struct
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np

from jaxcodesign.data.image_sets import FashionMnistMini
from launch import children, train

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = '''"""FAST and float32, a tiny CNN on images of 12 x 12 pixels."""

import pathlib

from jaxcodesign.programs.fast import Fast
from jaxcodesign.data.image_sets import Idx
from jaxcodesign.models import Cnn
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.task import Classification
from jaxcodesign.experiments.systems import Comparison, System
from jaxcodesign.runs.job import RunConfig, TrainJob


def config():
  """Three epochs of eight steps; a device of eight has half a block of rows."""
  images = Idx(pathlib.Path(__file__).parent)
  job = TrainJob(
    Classification(images, Cnn((8,), 32)),
    TrainConfig(epochs=3, batch_size=64, learning_rate=1e-2, augment=True),
    evaluate_every=12,
    run=RunConfig(checkpoint_every=4, log_every=1, tensorboard=False),
  )
  systems = System("FAST", Fast()), System("float32")
  return Comparison(job, systems, seeds=(0,), target=0.5)


smoke = config
'''
NAME, SYSTEMS, STEPS = "many", ("FAST", "float32"), 24


def write_idx(path, x):
  header = struct.pack(f">4B{x.ndim}I", 0, 0, 8, x.ndim, *x.shape)
  path.write_bytes(header + np.rint(x).astype(np.uint8).tobytes())


class Ended(NamedTuple):
  code: int
  out: str
  err: str


class Runs:
  """Runs of CONFIG on the same images."""

  def __init__(self, scratch):
    self.scratch = scratch
    (scratch / f"{NAME}.py").write_text(CONFIG)
    images = FashionMnistMini().load()
    for part, x, y in (
      ("train", images.train_images, images.train_labels),
      ("t10k", images.test_images, images.test_labels),
    ):
      write_idx(scratch / f"{part}-images-idx3-ubyte", 255 * x[:512, 2:26:2, 2:26:2, 0])
      write_idx(scratch / f"{part}-labels-idx1-ubyte", y[:512])

  def here(self, name, *, fsdp=1):
    """The run in this process and on its eight devices."""
    argv = [
      str(self.scratch / f"{NAME}.py"), "--out", str(self.scratch / name),
      "--job.run.cache", "off", "--job.run.mesh.fsdp", str(fsdp),
    ]  # fmt: skip
    assert train.main(argv) == 0

  def start(self, name, devices, *, processes=1):
    """The processes of a run, each with so many CPU devices."""
    command = [
      sys.executable, "-m", "launch.train", str(self.scratch / f"{NAME}.py"),
      "--out", str(self.scratch / name), "--job.run.cache", str(self.scratch / "cache"),
      "--job.run.distributed.cpu-devices", str(devices),
    ]  # fmt: skip
    environment = children.environment(
      JAXCODESIGN_COORDINATOR=children.address(), JAXCODESIGN_PROCESSES=str(processes)
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
      subprocess.Popen(
        command, cwd=ROOT, env=environment | {"JAXCODESIGN_PROCESS": str(i)}, **pipes
      )
      for i in range(processes)
    ]

  def folder(self, name, system):
    return self.scratch / name / NAME / system / "seed0"

  def rows(self, name, system):
    """Whole lines of a run's metrics so far."""
    path = self.folder(name, system) / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]

  def curve(self, name, system, field):
    return [row[field] for row in self.rows(name, system) if field in row]

  def final(self, name, system):
    """final.json but for the seconds."""
    found = json.loads((self.folder(name, system) / "final.json").read_text())
    return {k: v for k, v in found.items() if k != "seconds"}

  def passes(self, name):
    found = json.loads((self.folder(name, "FAST") / "report.json").read_text())
    return found["passes_share"]


def ends(runs, timeout=180):
  """How processes end; none is left if one of them does not."""
  try:
    told = [run.communicate(timeout=timeout) for run in runs]
  finally:
    for run in runs:
      run.kill()
  return [Ended(run.returncode, *said) for run, said in zip(runs, told)]


def finishes(runs):
  found = ends(runs)
  assert [end.code for end in found] == [0] * len(runs), found
  return found


def until(runs, said):
  """Waits until `said()`, while the processes run."""
  began = time.monotonic()
  while not said():
    assert time.monotonic() - began < 120
    assert all(run.poll() is None for run in runs), ends(runs)
    time.sleep(0.01)


def test_a_run_is_the_same_on_all_devices_and_however_it_is_stopped(tmp_path):
  """One test: they share runs, and two workers would make them twice."""
  runs = Runs(tmp_path)
  finishes(runs.start("2 x 4", 4, processes=2))
  finishes(runs.start("1", 1))
  runs.here("8")
  runs.here("fsdp", fsdp=4)
  for name, system in itertools.product(("1", "2 x 4", "fsdp"), SYSTEMS):
    check_curve(runs, name, system)
  check_decisions(runs)
  check_signal_and_kill(runs)


def check_curve(runs, name, system):
  """It is that of eight devices in one process."""
  found, wanted = (runs.curve(n, system, "loss") for n in (name, "8"))
  assert len(wanted) == STEPS and wanted[-1] < wanted[0] - 0.1
  np.testing.assert_allclose(found, wanted, rtol=1e-6, err_msg=f"{name}, {system}")
  scores, others = (runs.curve(n, system, "test_accuracy") for n in (name, "8"))
  assert scores == others and len(scores) == 2


def check_decisions(runs):
  """FAST decides the same on all devices, and is not float32."""
  shares = [runs.passes(name) for name in ("1", "8", "2 x 4", "fsdp")]
  assert 0.25 < shares[0] < 1 and len(set(shares)) == 1
  fast, float32 = (runs.curve("8", system, "loss") for system in SYSTEMS)
  assert not np.allclose(fast, float32, rtol=1e-3)


def check_signal_and_kill(runs):
  """A signal to one of two saves in both, a kill ends both, and no bit is another."""
  name = "disturbed"
  start = lambda: runs.start(name, 4, processes=2)

  both = start()
  until(both, lambda: runs.rows(name, "FAST"))
  both[1].send_signal(signal.SIGTERM)
  out = finishes(both)[0].out
  step = int(re.search(r"stopped on request at step (\d+) of 24, saved", out)[1])
  assert 0 < step < STEPS and len(runs.curve(name, "FAST", "loss")) == step
  assert not (runs.folder(name, "FAST") / "final.json").exists()

  both = start()
  kept = runs.folder(name, "float32") / "checkpoints" / "step_00000004"
  until(both, kept.exists)
  both[0].kill()
  began = time.monotonic()
  (end,) = ends(both[1:], timeout=60)
  assert time.monotonic() - began < 60
  # Gloo may end it first, in a thread of its own, where what was sent before the kill
  # meets the collective after the one that broke: seen in 1 of 8 kills.
  aborted = end.code == -signal.SIGABRT and "gloo::EnforceNotMet" in end.err
  told = end.code == 1 and "process 1 ends, since process 0 of 2 was lost" in end.err
  assert told or aborted, end
  assert f"going on from step {step} of 24" in ends(both[:1])[0].out

  out = finishes(start())[0].out
  assert "FAST, seed 0" not in out  # it is done
  assert int(re.search(r"going on from step (\d+) of 24", out)[1]) >= 4
  for system in SYSTEMS:
    assert runs.final(name, system) == runs.final("2 x 4", system)
    assert runs.curve(name, system, "loss") == runs.curve("2 x 4", system, "loss")
