"""The config of `launch.train`: one training, or many that are compared.

What decides the numbers of a run (the task, the optimizer, the precision) is apart from
how it is run (`RunConfig`: devices, checkpoints, logs), which may change on the way.
"""

import dataclasses
from typing import Literal

from jaxcodesign.runs.mesh import MeshConfig
from jaxcodesign.runs.processes import Distributed
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.task import Task

Platform = Literal["cpu", "cuda", "tpu"]


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """How a job is run: nothing here changes its numbers beyond the order of sums.

  Attributes:
    mesh: Axes of the devices, data, fsdp and tensor.
    distributed: Where the other processes are; found by itself on SLURM, GKE, Cloud
      TPU pods and under Open MPI.
    checkpoint_every: Steps between two checkpoints; 0: at each evaluation only.
    keep_last: Newest checkpoints that are kept.
    keep_best: Checkpoints of the best scores that are kept besides.
    log_every: Steps between two lines of metrics.jsonl.
    tensorboard: Whether scalars and pictures are written for TensorBoard too.
    profile: Steps, from the eleventh of this start, to trace with jax's profiler; 0 for
      none.
    ask_every: Steps between two questions of many processes to each other whether one
      was told to stop; fewer where steps take seconds.
    prefetch: Batches that are made ahead.
    threads: That make them.
    cache: Folder of compiled programs; "" for ~/.cache/jaxcodesign/compiled, "off" for
      none.
    platform: That --dry-run lowers for.
    chip: Whose roofline --dry-run uses, a name in `hardware.machines.chips`; "" for the
      platform's usual one.
  """

  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  distributed: Distributed = dataclasses.field(default_factory=Distributed)
  checkpoint_every: int = 0
  keep_last: int = 2
  keep_best: int = 1
  log_every: int = 10
  tensorboard: bool = True
  profile: int = 0
  ask_every: int = 8
  prefetch: int = 4
  threads: int = 2
  cache: str = ""
  platform: Platform = "cpu"
  chip: str = ""

  def __post_init__(self):
    least = {"checkpoint_every": 0, "keep_last": 1, "keep_best": 0, "log_every": 1,
             "profile": 0, "ask_every": 1, "prefetch": 1, "threads": 1}  # fmt: skip
    for name, value in least.items():
      if getattr(self, name) < value:
        raise ValueError(f"{name}={getattr(self, name)} must be at least {value}")


@dataclasses.dataclass(frozen=True)
class TrainJob:
  """One training.

  Attributes:
    task: Data, model and loss.
    train: Optimizer, schedule, length, seed, precision, pruning, distillation.
    evaluate_every: Steps between two evaluations on all test examples; 0: an epoch.
    target: Score, of evaluation, at which training stops; None trains to the end.
    run: How it is run.
  """

  task: Task
  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
  evaluate_every: int = 0
  target: float | None = None
  run: RunConfig = dataclasses.field(default_factory=RunConfig)

  def __post_init__(self):
    if self.evaluate_every < 0:
      raise ValueError(f"evaluate_every={self.evaluate_every} must be 0 or more steps")
    if self.target is not None and not 0 < self.target <= 1:
      raise ValueError(f"target={self.target} is a score, in (0, 1]")
