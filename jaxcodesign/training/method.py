"""Methods: what a way of training adds to plain training, hooked in at one place.

Quantized products, FAST, pruning and column combining are methods; the step and the
loop name none of them. A method may

  keep       arrays in the state, which checkpoints hold
  change     the loss and the optimizer inside the step, and the weights a network has
  move       the state between two steps, on the host, and remember something as JSON
  tell       numbers and pictures of what it did

A new one is a frozen dataclass that overrides what it needs, in `TrainConfig.methods`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import jax
import optax

if TYPE_CHECKING:
  from matplotlib.figure import Figure  # half a second that training does not need

Loss = Callable[..., Any]  # (params, batch) -> an outcome with `loss` and `stats`


class Setting(NamedTuple):
  """What a method is prepared for; everything is shapes.

  Attributes:
    loss: (params, batch) -> outcome, in training, before any method.
    params: ShapeDtypeStructs of the parameters.
    batch: The same of the part of a batch that goes through at once.
    steps: In the whole run.
    parts: Of a batch, see `TrainConfig.accumulate`.
  """

  loss: Loss
  params: Any
  batch: Any
  steps: int
  parts: int


class At(NamedTuple):
  """Where in a run a step is, or a part of one.

  Attributes:
    step: int32, steps made before.
    progress: float32, share of the run made before.
    key: PRNG key of this part of this step alone.
    train: Whether it trains; else it is scored. Not traced.
  """

  step: jax.Array
  progress: jax.Array
  key: jax.Array
  train: bool


class Method(abc.ABC):  # noqa: B024 - a method overrides what it needs, nothing else
  """One way to train. Laws, of every member:

  * a method that overrides nothing changes no bit of a run;
  * all but `between`, `told` and `pictures` are pure and may be traced;
  * what it keeps and remembers decides, with the batch, all that it does next: a run
    that is resumed goes on with the same bits;
  * a step that is not finite leaves what it keeps as it was.
  """

  def prepared(self, setting: Setting) -> Self:
    """The method made ready for a loss; checks what shapes tell.

    Raises:
      ValueError: If it does not fit the loss, the parameters or the length of the run.
    """
    del setting
    return self

  def init(self) -> Any:
    """The arrays it keeps, before the first step; its zero is `()`, nothing."""
    return ()

  def probe(self) -> Any:
    """Arrays that `change` mixes into the loss, to be told things as their gradient."""
    return None

  def change(self, loss: Loss, at: At, probe: Any) -> Loss:
    """The loss as this method computes it; `probe` is None where it is scored."""
    del at, probe
    return loss

  def keep(self, kept: Any, told: Any, at: At) -> Any:
    """What is kept after a step; `told` is the sum of the probe's gradients."""
    del told, at
    return kept

  def wrap(
    self, optimizer: optax.GradientTransformation, steps: int
  ) -> optax.GradientTransformation:
    """The optimizer of a run of so many steps."""
    del steps
    return optimizer

  def network(self, params: Any, optimizer: Any) -> Any:
    """The weights that the network has, of latent ones and the optimizer's state."""
    del optimizer
    return params

  def rounds(self, steps: int) -> Sequence[int]:
    """The steps, from 0, before which `between` is called in a run of so many.

    Raises:
      ValueError: If its schedule is not over within the run.
    """
    del steps
    return ()

  def between(
    self, state: Any, memory: Mapping[str, Any], step: int, steps: int
  ) -> tuple[Any, dict[str, Any]]:
    """Moves a state on the host, and what the method remembers, as JSON has it.

    Args:
      state: With `params` and `optimizer`, NumPy arrays.
      memory: What was returned by the last call, {} in the first.
      step: From 0.
      steps: Of the run.
    """
    del step, steps
    return state, dict(memory)

  def told(self, kept: Any, step: int) -> dict[str, float]:
    """Numbers for the log, after so many steps."""
    del kept, step
    return {}

  def pictures(self, kept: Any, step: int) -> dict[str, Figure]:
    """Pictures for the log, after so many steps."""
    del kept, step
    return {}
