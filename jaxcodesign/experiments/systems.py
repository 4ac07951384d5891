"""The config of a comparison: one training in several number systems and seeds."""

import dataclasses
import math

from jaxcodesign.figures.to_accuracy import MOST
from jaxcodesign.hardware.machines.number_systems import NumberSystem
from jaxcodesign.programs.fast import Fast
from jaxcodesign.programs.fast_plan import CHUNK_BITS
from jaxcodesign.runs.job import TrainJob
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.rounded import Dtype, Precision


@dataclasses.dataclass(frozen=True)
class System:
  """One row of a comparison.

  Attributes:
    name: Unique in its comparison.
    precision: See `TrainJob`.
    dtype: See `TrainJob`.
    hardware: The array that it is priced on; None prices nothing. One whose precision
      moves prices a `Fast` of even bits: of others a mean does not tell the chunks.
  """

  name: str
  precision: Precision = None
  dtype: Dtype = "float32"
  hardware: NumberSystem | None = None

  def __post_init__(self):
    if self.hardware is None or not self.hardware.adaptive:
      return
    if not isinstance(self.precision, Fast):
      raise ValueError(f"{self.name}: {self.hardware.name} prices runs under Fast")
    odd = [bits for bits in self.precision.schedule.choices if bits % CHUNK_BITS]
    if odd:
      raise ValueError(
        f"{self.name}: mantissas of {odd} bits leave chunks half empty, which a mean "
        "over a run does not tell: choose even ones, or hardware=None"
      )

  @classmethod
  def of(cls, hardware: NumberSystem, fast: Fast | None = None) -> "System":
    """A number system as it trains: an adaptive one as `fast` says, by default
    `Fast()`, others by their formats."""
    precision = tuple(hardware.policy) or None
    if hardware.adaptive:
      precision = fast or Fast()
    return cls(hardware.name, precision, hardware=hardware)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The same job in several precisions, over several seeds.

  Attributes:
    job: The job; each system replaces its precision.
    systems: What is compared; the first one is what others are compared with.
    seeds: Of data order and weights.
    target: Score whose first evaluation gives time and energy to accuracy; every run
      goes to its end, so that final scores compare too.
  """

  job: TrainJob
  systems: tuple[System, ...]
  seeds: tuple[int, ...] = (0, 1, 2)
  target: float = 0.85

  def __post_init__(self):
    names = [system.name for system in self.systems]
    if not names or len(set(names)) < len(names):
      raise ValueError(f"systems need unique names, not {names}")
    if any(not name or "/" in name for name in names):
      raise ValueError(f"names of systems are folders: no '/' in {names}")
    if sum(system.hardware is not None for system in self.systems) > MOST:
      raise ValueError(
        f"{MOST} priced systems at most can be told apart in a picture, not {names}"
      )
    if not self.seeds or len(set(self.seeds)) < len(self.seeds):
      raise ValueError(f"seeds={self.seeds} must be there, and different")
    if not 0 < self.target <= 1 or not math.isfinite(self.target):
      raise ValueError(f"target={self.target} is a score, in (0, 1]")

  def jobs(self) -> list[tuple[System, int, TrainJob]]:
    """Every training, seed by seed."""
    return [
      (system, seed, dataclasses.replace(self.job, train=self._train(system, seed)))
      for seed in self.seeds
      for system in self.systems
    ]

  def _train(self, system: System, seed: int) -> TrainConfig:
    return dataclasses.replace(
      self.job.train, precision=system.precision, dtype=system.dtype, seed=seed
    )
