"""Where a run is, besides its state: what a checkpoint keeps of it as JSON."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, NamedTuple, Self


class Epoch(NamedTuple):
  """A stretch of a run between two evaluations, an epoch unless a config says else.

  Attributes:
    epoch: Passes over the training examples at its end, from 0.
    loss: Nats, mean over its steps, weights moving.
    train_accuracy: In [0, 1], likewise.
    test_accuracy: In [0, 1], over the whole test set, at its end.
    seconds: Wall time, the evaluation included, starts and stops not.
  """

  epoch: float
  loss: float
  train_accuracy: float
  test_accuracy: float
  seconds: float


@dataclasses.dataclass
class Position:
  """What a run has come to.

  Attributes:
    step: Steps made.
    loss: Of the last evaluation, NaN before the first.
    score: The same.
    stopped: Whether the target is reached.
    memories: What each method remembers.
    history: One entry an evaluation.
    sums: Of loss and accuracy since the last evaluation, and how many steps.
    seconds: Since the last evaluation, in earlier starts of the run too.
  """

  step: int = 0
  loss: float = math.nan
  score: float = math.nan
  stopped: bool = False
  memories: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  history: list[Epoch] = dataclasses.field(default_factory=list)
  sums: tuple[float, float, int] = (0.0, 0.0, 0)
  seconds: float = 0.0

  @classmethod
  def read(cls, extra: Mapping[str, Any], step: int) -> Self:
    """The inverse of `plain`."""
    number = lambda x: math.nan if x is None else x
    found = dict(extra)
    found["history"] = [Epoch(*map(number, row)) for row in extra["history"]]
    found["sums"] = tuple(extra["sums"])
    for name in ("loss", "score"):
      found[name] = number(extra[name])
    return cls(step=step, **found)

  def plain(self) -> dict[str, Any]:
    """Everything but the step, as JSON has it."""
    found = dataclasses.asdict(self)
    del found["step"]
    history = [[plain_number(x) for x in epoch] for epoch in self.history]
    scores = {"loss": plain_number(self.loss), "score": plain_number(self.score)}
    return found | scores | {"history": history}

  def heard(self, loss: float, accuracy: float) -> None:
    """Adds what a step told."""
    total, right, steps = self.sums
    self.sums = (total + loss, right + accuracy, steps + 1)

  def evaluated(self, loss: float, score: float, per_epoch: int) -> Epoch:
    """Adds an evaluation, and begins a new stretch."""
    self.loss, self.score = loss, score
    total, right, steps = self.sums
    epoch = self.step / per_epoch
    mean = lambda x: x / steps if steps else math.nan
    whole = int(epoch) if epoch.is_integer() else epoch
    self.history.append(Epoch(whole, mean(total), mean(right), score, self.seconds))
    self.sums, self.seconds = (0.0, 0.0, 0), 0.0
    return self.history[-1]


def plain_number(x: float) -> float | None:
  """A number that JSON has."""
  return x if math.isfinite(x) else None
