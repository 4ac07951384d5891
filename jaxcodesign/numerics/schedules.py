"""When masks are computed anew, and how dense they then are.

  OneShot    all at once
  Cubic      fast at first, slower as less is left to take
  Iterative  rounds, each of which takes a share of what is left

Times are steps, counted from 0: an event at step s is one in the step with s steps
before it. A config may tell them in shares of a run or in epochs: `scaled` makes steps.
"""

import abc
import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign.numerics.sparsity.patterns import check_density


class Schedule(abc.ABC):
  """Events at some steps, and the density after each for any final one.

  Laws, for every final density: 1 before the first event; changes at events alone;
  never rises, never falls below the final density; stays after `last`; one trace over
  all steps. `OneShot` and `Cubic` end exactly at the final density.
  """

  times: ClassVar[tuple[str, ...]]  # fields that `scaled` multiplies

  @abc.abstractmethod
  def steps(self) -> np.ndarray:
    """[E] int32: the step of each event, in order; some may fall on one step.

    Raises:
      ValueError: If a time is no whole number.
    """

  @abc.abstractmethod
  def densities(self, final: jax.Array) -> jax.Array:
    """[E] float32: the density after each event, for a `final` one in float32."""

  def __call__(
    self, step: jax.typing.ArrayLike, final: jax.typing.ArrayLike
  ) -> jax.Array:
    """float32 in [final, 1]: the density from `step` on, its own event included.

    Args:
      step: Integer, may be traced.
      final: Density at the end, may be traced.

    Raises:
      ValueError: If `final` is outside [0, 1], or a time is no whole number.
    """
    check_density(final)
    after = self.densities(jnp.asarray(final).astype(jnp.float32))
    done = jnp.sum(_int32(step) >= jnp.asarray(self.steps()))
    return jnp.concatenate([jnp.ones(1, jnp.float32), after])[done]

  def is_event(self, step: jax.typing.ArrayLike) -> jax.Array:
    """bool: whether masks are computed anew in this step, which may be traced."""
    return jnp.any(_int32(step) == jnp.asarray(self.steps()))

  @property
  def last(self) -> int:
    """The step of the last event; masks are frozen after it."""
    return int(self.steps()[-1])

  def scaled(self, steps: float) -> Self:
    """The schedule in steps of one in other units, each so many `steps` long.

    Args:
      steps: As those of an epoch; times are rounded to whole ones, halves to even.
    """
    longer = {name: round(getattr(self, name) * steps) for name in self.times}
    return dataclasses.replace(self, **longer)  # pyright: ignore[reportArgumentType]

  def check(self, steps: int) -> None:
    """Raises a ValueError if the last event is not within a run of so many steps."""
    if self.last >= steps:
      raise ValueError(
        f"the last event of {self} is in step {self.last}, counted from 0, of a run of "
        f"{steps}: lengthen the run or prune earlier"
      )

  def _check_times(self) -> None:
    for name in self.times:
      if not 0 <= getattr(self, name) < 2**31:
        raise ValueError(f"{name} in {self} is no time: it must be in [0, 2^31)")

  def _check_whole(self) -> None:
    if any(getattr(self, name) != int(getattr(self, name)) for name in self.times):
      raise ValueError(
        f"{self} is not in whole steps; if its times are epochs, use "
        ".scaled(steps_per_epoch)"
      )


@dataclasses.dataclass(frozen=True)
class OneShot(Schedule):
  """The final density at once.

  Attributes:
    at: Time of the only event.
  """

  at: float
  times = ("at",)

  def __post_init__(self):
    self._check_times()

  def steps(self) -> np.ndarray:
    self._check_whole()
    return np.array([self.at], np.int32)

  def densities(self, final: jax.Array) -> jax.Array:
    return final[None]


@dataclasses.dataclass(frozen=True)
class Cubic(Schedule):
  """Density 1 - (1 - final) (1 - (1 - x)^3) at a share x of the way from begin to end.

  Event i of 1 to `events` is in the step at x = i / events, rounded, halves to even:
  the first one prunes already, the last one reaches the final density, at `end`.

  Attributes:
    begin: Time at which the density leaves 1.
    end: Time at which it is the final one; after `begin`.
    events: How many times masks are computed.

  Reference: Zhu, Gupta. "To Prune, or Not to Prune", 2017.
  """

  begin: float
  end: float
  events: int = 10
  times = ("begin", "end")

  def __post_init__(self):
    self._check_times()
    _check_count("events", self.events)
    if not self.begin < self.end:
      raise ValueError(f"begin < end is needed in {self}; OneShot prunes at one time")

  def steps(self) -> np.ndarray:
    self._check_whole()
    shares = np.arange(1, self.events + 1) / self.events
    return np.round(self.begin + (self.end - self.begin) * shares).astype(np.int32)

  def densities(self, final: jax.Array) -> jax.Array:
    left = 1 - np.arange(1, self.events + 1) / self.events
    gone = jnp.asarray(1 - left**3, jnp.float32)
    # Where all is gone, 1 - (1 - final) may be off the final density by a rounding.
    return jnp.where(gone == 1, final, jnp.maximum(final, 1 - (1 - final) * gone))


@dataclasses.dataclass(frozen=True)
class Iterative(Schedule):
  """Rounds that each take the smallest of what is left.

  Round i, from 0, is at begin + i * every and takes a share rate * decay^i of what is
  left, but never goes below the final density; too few rounds end above it.

  Attributes:
    begin: Time of the first round.
    every: Time between two.
    rounds: How many there are.
    rate: Share that the first one takes, above 0, at most 1.
    decay: Of the share from round to round, above 0, at most 1. Column combining
      decays it, by 0.9 as recalled.

  References: Han et al. "Learning both Weights and Connections for Efficient Neural
  Networks", NeurIPS 2015; Frankle, Carbin. "The Lottery Ticket Hypothesis", ICLR 2019.
  """

  begin: float
  every: float
  rounds: int
  rate: float
  decay: float = 1.0
  times = ("begin", "every")

  def __post_init__(self):
    self._check_times()
    _check_count("rounds", self.rounds)
    if not self.every > 0:
      raise ValueError(f"every > 0 is needed in {self}; OneShot prunes at one time")
    if not (0 < self.rate <= 1 and 0 < self.decay <= 1):
      raise ValueError(f"rate and decay must be in (0, 1] in {self}")

  def steps(self) -> np.ndarray:
    self._check_whole()
    steps = self.begin + self.every * np.arange(self.rounds)
    if steps[-1] >= 2**31:
      raise ValueError(f"{self} ends at step {steps[-1]:.0f}: it must be below 2^31")
    return steps.astype(np.int32)

  def densities(self, final: jax.Array) -> jax.Array:
    left = np.cumprod(1 - self.rate * self.decay ** np.arange(self.rounds))
    return jnp.maximum(final, jnp.asarray(left, jnp.float32))


def _int32(step: jax.typing.ArrayLike) -> jax.Array:
  return jnp.asarray(step).astype(jnp.int32)


def _check_count(name: str, count: int) -> None:
  if not isinstance(count, int) or count < 1:
    raise ValueError(f"{name}={count}: an integer of at least 1 is needed")
