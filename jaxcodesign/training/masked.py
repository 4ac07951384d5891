"""Pruning by patterns as a value of a config: what, when and how."""

import dataclasses
from typing import get_args

import optax

from jaxcodesign.numerics.schedules import Schedule
from jaxcodesign.numerics.sparsity.masks import Rule
from jaxcodesign.training.pruning import Score, prune


@dataclasses.dataclass(frozen=True)
class Prune:
  """Leaves to prune inside the step, when, and how; see `pruning.prune`.

  Attributes:
    rules: Which leaves, and their patterns at the end; more specific ones first.
    schedule: Of the density; its times are shares of the run, in [0, 1).
    regrow: Whether masked weights keep their gradients and may come back.
    score: "magnitude" or "saliency".
  """

  rules: tuple[Rule, ...]
  schedule: Schedule
  regrow: bool = False
  score: Score = "magnitude"

  def __post_init__(self):
    if not self.rules or self.score not in get_args(Score):
      raise ValueError(
        f"rules must be there and score one of {get_args(Score)}: {self}"
      )

  def wrap(
    self, optimizer: optax.GradientTransformation, steps: int
  ) -> optax.GradientTransformation:
    """`optimizer` under masks, in a run of so many steps."""
    return prune(
      optimizer,
      self.rules,
      self.schedule.scaled(steps),
      regrow=self.regrow,
      score=self.score,
    )

  def rounds(self, steps: int) -> list[int]:
    """No steps to stop at: masks are computed inside the step.

    Raises:
      ValueError: If the schedule is not over within a run of so many `steps`.
    """
    self.schedule.scaled(steps).check(steps)
    return []
