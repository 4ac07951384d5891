"""Pruning by patterns as a value of a config: what, when and how."""

import dataclasses

import optax

from jaxcodesign.numerics.masks import Rule
from jaxcodesign.numerics.schedules import Schedule
from jaxcodesign.training.pruning import Score, prune


@dataclasses.dataclass(frozen=True)
class Prune:
  """Leaves to prune inside the step, when, and how; see `pruning.prune`.

  Attributes:
    rules: Which leaves, and their patterns at the end; more specific ones first.
    schedule: Of the density; its times are epochs.
    regrow: Whether masked weights keep their gradients and may come back.
    score: "magnitude" or "saliency".
  """

  rules: tuple[Rule, ...]
  schedule: Schedule
  regrow: bool = False
  score: Score = "magnitude"

  def wrap(
    self, optimizer: optax.GradientTransformation, per_epoch: int
  ) -> optax.GradientTransformation:
    """`optimizer` under masks, in steps of which an epoch has `per_epoch`."""
    return prune(
      optimizer,
      self.rules,
      self.schedule.scaled(per_epoch),
      regrow=self.regrow,
      score=self.score,
    )

  def rounds(self, per_epoch: int, steps: int) -> list[int]:
    """No steps to stop at: masks are computed inside the step.

    Raises:
      ValueError: If the schedule is not over within a run of so many `steps`.
    """
    self.schedule.scaled(per_epoch).check(steps)
    return []
