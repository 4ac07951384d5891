"""Pruning as a method: by patterns inside the step, under a schedule."""

import dataclasses
from typing import Any, get_args

import jax
import optax

from jaxcodesign.numerics.schedules import Schedule
from jaxcodesign.numerics.sparsity.masks import Rule
from jaxcodesign.training import pruning
from jaxcodesign.training.method import Method, Setting
from jaxcodesign.training.pruning import Score, prune
from jaxcodesign.training.statistics import refuse_masked


class Masked(Method):
  """A method whose optimizer holds masks, those of `pruning.prune`."""

  def prepared(self, setting: Setting) -> "Masked":
    wrapped = self.wrap(optax.identity(), setting.steps)
    masks = pruning.masks_of(jax.eval_shape(wrapped.init, setting.params))
    stats = jax.eval_shape(setting.loss, setting.params, setting.batch).stats
    refuse_masked(masks, setting.params, stats)
    self.rounds(setting.steps)
    return self

  def network(self, params: Any, optimizer: Any) -> Any:
    return pruning.sparse(params, optimizer)


@dataclasses.dataclass(frozen=True)
class Prune(Masked):
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
