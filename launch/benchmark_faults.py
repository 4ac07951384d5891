"""A training that is killed again and again, against one that is left alone.

The training has everything that a checkpoint must hold: AdamW, masks that a schedule
moves, FAST's precision with its telemetry and noise, augmented images in a new order
each epoch. It saves every other step, so that most kills hit a checkpoint being made,
and has few images, so that starting again takes most of the time: a quarter of the
kills fall there, on imports, the lock, what the last kill left, the checkpoint being
read and programs being compiled.
"""

from collections.abc import Iterator
import json
import pathlib
import shlex
import struct
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from jaxcodesign.data.image_sets import FashionMnistMini
from launch import children
from launch.timing import Measurement

CONFIG = '''"""A small CNN with all kinds of state."""

import pathlib

from jaxcodesign.numerics import schedules, sparsity
from jaxcodesign.numerics.sparsity.masks import Rule
from jaxcodesign.programs.fast import Fast
from jaxcodesign.data.image_sets import Idx
from jaxcodesign.training.masked import Prune
from jaxcodesign.models import Cnn
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.task import Classification
from jaxcodesign.runs.job import RunConfig, TrainJob


def config():
  """Two epochs of 20 steps."""
  rules = (Rule("*/bias", None), Rule("*", sparsity.Unstructured(0.5)))
  images = Idx(pathlib.Path(__file__).parent)
  return TrainJob(
    task=Classification(images, Cnn(channels=(2, 4), hidden=8)),
    train=TrainConfig(
      epochs=2,
      batch_size=50,
      augment=True,
      precision=Fast(),
      sparsity=Prune(rules, schedules.Cubic(0.1, 0.8)),
    ),
    evaluate_every=10,
    run=RunConfig(checkpoint_every=2, log_every=1, tensorboard=False),
  )


smoke = config
'''
NAME = "faults"
TIMES = ("seconds", "examples_per_s", "input_wait")  # that no two runs share
START_S = 8.0  # about what a restart takes to its first step
ROOT = pathlib.Path(__file__).parents[1]


def faults(kills: int = 50, seed: int = 0) -> Iterator[Measurement]:
  """How many of the killed runs end in another way than the one left alone.

  Args:
    kills: How many there are, over as many runs as that takes; a run that is killed is
      started again with the same command until it ends by itself.
    seed: Of the moments, see `killed`.
  """
  rng = np.random.default_rng(seed)
  with tempfile.TemporaryDirectory() as scratch:
    runs = Runs(pathlib.Path(scratch))
    wanted = runs.finish("alone")
    began = time.perf_counter()
    different = int(runs.finish("again") != wanted)
    took_s = time.perf_counter() - began
    number, others = killed(runs, wanted, kills, rng)
  yield Measurement(
    f"{kills} kill -9 in {number} runs", different + others, "runs that differ",
    "a run left alone", "0", took_s,
  )  # fmt: skip


def killed(
  runs: "Runs", wanted: Any, kills: int, rng: np.random.Generator
) -> tuple[int, int]:
  """Kills runs, each until it is done, until so many kills are done.

  One kill of four falls within START_S of the start of its process, whatever that has
  done; the others as the run writes any of its remaining metrics, or up to 0.3 s later.

  Returns:
    How many runs that took, and how many of them do not end as `wanted`.
  """
  number = different = 0
  while kills:
    number += 1
    name = f"killed{number}"
    while kills and (written := len(runs.metrics(name))) < len(wanted) - 1:
      line, later_s = int(rng.integers(written + 1, len(wanted))), rng.uniform(0, 0.3)
      if kills % 4 == 2:
        line, later_s = 0, rng.uniform(0, START_S)
      if not runs.kill(name, line=line, later_s=later_s):
        break
      kills -= 1
    different += int(runs.finish(name) != wanted)
  return number, different


class Runs:
  """Runs of CONFIG in folders of their own; they share compiled programs."""

  def __init__(self, scratch: pathlib.Path):
    """Writes the config and its images into `scratch`, which must exist."""
    self.scratch = scratch
    self._config = scratch / f"{NAME}.py"
    self._config.write_text(CONFIG)
    images = FashionMnistMini().load()
    _write_idx(scratch, "train", images.train_images[:1000], images.train_labels[:1000])
    _write_idx(scratch, "t10k", images.test_images[:200], images.test_labels[:200])

  def folder(self, name: str) -> pathlib.Path:
    """Of a run."""
    return self.scratch / name / NAME

  def command(self, name: str) -> list[str]:
    """That starts a run, or has it go on."""
    return [
      sys.executable, "-m", "launch.train", str(self._config),
      "--out", str(self.scratch / name), "--run.cache", str(self.scratch / "cache"),
    ]  # fmt: skip

  def start(self, name: str, *, most_bytes: int | None = None) -> subprocess.Popen[str]:
    """The process of a run, on one CPU device: the same everywhere.

    Args:
      name: Of the run.
      most_bytes: That a file may have, as if the disk were full then.
    """
    command = self.command(name)
    if most_bytes is not None:
      limit = f"ulimit -f {most_bytes // 1024} && exec {shlex.join(command)}"
      command = ["bash", "-c", limit]
    return subprocess.Popen(
      command,
      cwd=ROOT,
      env=children.environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def kill(self, name: str, *, line: int, later_s: float) -> bool:
    """Starts a run and kills it; False if it ended before.

    Args:
      name: Of the run.
      line: Of its metrics, that it has written when it is killed; 0 waits for none.
      later_s: How long it may go on after that.
    """
    with self.start(name) as process:
      while len(self.metrics(name)) < line and process.poll() is None:
        time.sleep(0.01)
      time.sleep(later_s)
      if process.poll() is None:
        process.kill()
        return True
      said, _ = process.communicate()
      _check(process, said)
    return False

  def finish(self, name: str) -> Any:
    """Lets a run go on to its end, and returns `outcome`."""
    with self.start(name) as process:
      said, _ = process.communicate()
      _check(process, said)
    return self.outcome(name)

  def outcome(self, name: str) -> Any:
    """What a run came to, every bit of its state and every metric, but for times."""
    rows = [json.loads((self.folder(name) / "final.json").read_text())]
    rows += map(json.loads, self.metrics(name))
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]

  def metrics(self, name: str) -> list[str]:
    """Lines of a run's metrics so far."""
    path = self.folder(name) / "metrics.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


def _write_idx(
  folder: pathlib.Path, part: str, images: np.ndarray, labels: np.ndarray
) -> None:
  for kind, x in (("images-idx3", images[..., 0] * 255), ("labels-idx1", labels)):
    header = struct.pack(f">BBBB{x.ndim}I", 0, 0, 8, x.ndim, *x.shape)
    content = np.rint(x).astype(np.uint8).tobytes()
    (folder / f"{part}-{kind}-ubyte").write_bytes(header + content)


def _check(process: subprocess.Popen[str], said: str) -> None:
  if process.returncode != 0:
    raise ValueError(f"{process.args} ended with {process.returncode}:\n{said}")
