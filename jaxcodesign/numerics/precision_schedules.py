"""How many mantissa bits a tensor has, from its data, the iteration and the layer.

  Constant     the same everywhere: low 2, mid 3, high 4
  ByLayer      two precisions, by where the layer stands in the network
  ByIteration  two precisions, by how far training has come
  Adaptive     FAST's rule: two precisions, by how much the lower one would change the
               tensor, against a threshold that falls with iterations and layers

`progress` is i / I, the share of the run before this iteration; `depth` is l / L, the
share of the network before this layer: both start at 0 and stay below 1. Both may be
traced, so a run with any schedule compiles once.

Reference: Zhang, McDanel, Kung. "FAST: DNN Training Under Variable Precision Block
Floating Point with Stochastic Rounding", HPCA 2022.
"""

import abc
import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp


class PrecisionSchedule(abc.ABC):
  """Mantissa bits of one tensor in one iteration.

  Laws: an integer from 1 to 23 for every input; one trace over all of them; equal
  schedules decide the same.
  """

  needs_ratio: ClassVar[bool] = False  # whether `bits` looks at `ratio`

  @abc.abstractmethod
  def bits(
    self,
    ratio: jax.Array | None,
    progress: jax.typing.ArrayLike,
    depth: jax.typing.ArrayLike,
  ) -> jax.Array:
    """Bits as int32 [].

    Args:
      ratio: float32 [], `BlockFloat.refinement` of the tensor; None where
        `needs_ratio` is False.
      progress: i / I in [0, 1].
      depth: l / L in [0, 1].
    """

  @property
  @abc.abstractmethod
  def choices(self) -> tuple[int, ...]:
    """All bits that it may decide for."""


@dataclasses.dataclass(frozen=True)
class Constant(PrecisionSchedule):
  """The same precision everywhere: low 2, mid 3, high 4 (recalled of the paper).

  Attributes:
    mantissa: The bits.
  """

  mantissa: int = 4

  def __post_init__(self):
    _check_bits("mantissa", self.mantissa)

  def bits(self, ratio, progress, depth):
    del ratio, progress, depth
    return jnp.int32(self.mantissa)

  @property
  def choices(self):
    return (self.mantissa,)


@dataclasses.dataclass(frozen=True)
class _Step(PrecisionSchedule):
  """Low before a point, high from it on; the other way around if `reverse`.

  Attributes:
    at: The point, a share in [0, 1].
    low: Fewer bits.
    high: More bits.
    reverse: Whether the higher precision comes first.
  """

  at: float = 0.5
  low: int = 2
  high: int = 4
  reverse: bool = False

  def __post_init__(self):
    _check_pair(self.low, self.high)
    if not 0 <= self.at <= 1:
      raise ValueError(f"at={self.at} is no share in [0, 1]")

  @property
  def choices(self):
    return self.low, self.high

  def _after(self, share: jax.typing.ArrayLike) -> jax.Array:
    later = jnp.asarray(share).astype(jnp.float32) >= self.at
    return _either(later != self.reverse, self.low, self.high)


@dataclasses.dataclass(frozen=True)
class ByLayer(_Step):
  """Low in the layers before a depth, high in the others, or reversed.

  Attributes:
    at: The depth, in [0, 1]; a layer at it has the later precision.
    low: Bits of the lower precision.
    high: Bits of the higher one.
    reverse: Whether the first layers have the higher one.
  """

  def bits(self, ratio, progress, depth):
    del ratio, progress
    return self._after(depth)


@dataclasses.dataclass(frozen=True)
class ByIteration(_Step):
  """Low before a share of the run, high after it, or reversed.

  Attributes:
    at: The share, in [0, 1]; the iteration at it has the later precision.
    low: Bits of the lower precision.
    high: Bits of the higher one.
    reverse: Whether the run starts with the higher one.
  """

  def bits(self, ratio, progress, depth):
    del ratio, depth
    return self._after(progress)


@dataclasses.dataclass(frozen=True)
class Adaptive(PrecisionSchedule):
  """High if ratio > alpha - beta progress - beta depth, low otherwise.

  A ratio that is NaN, of a tensor with values that are not finite, is low: the tensor
  is spoilt at either precision.

  Attributes:
    alpha: Threshold of the first layer in the first iteration. The defaults of alpha
      and beta are recalled, not taken from the paper.
    beta: What it falls by over the run, and again over the network.
    low: Bits of the lower precision.
    high: Bits of the higher one.
    first_high: Whether the first layer, at depth 0, is high all the time: this
      library's addition. Its tensors are what the rule leaves low the longest, and
      where a small network loses most (configs/fast_fashion.py).
  """

  alpha: float = 0.6
  beta: float = 0.3
  low: int = 2
  high: int = 4
  first_high: bool = False
  needs_ratio: ClassVar[bool] = True

  def __post_init__(self):
    _check_pair(self.low, self.high)
    for name in ("alpha", "beta"):
      if not math.isfinite(getattr(self, name)):
        raise ValueError(f"{name}={getattr(self, name)} is no finite number")

  def bits(self, ratio, progress, depth):
    if ratio is None:
      raise ValueError(f"{self} needs the ratio of the tensor; ratio is None")
    share = lambda x: jnp.asarray(x).astype(jnp.float32)
    fallen = self.beta * share(progress) + self.beta * share(depth)
    above = ratio > self.alpha - fallen
    if self.first_high:
      above |= share(depth) == 0
    return _either(above, self.low, self.high)

  @property
  def choices(self):
    return self.low, self.high


def _either(condition: jax.Array, low: int, high: int) -> jax.Array:
  return jnp.where(condition, jnp.int32(high), jnp.int32(low))


def _check_pair(low: int, high: int) -> None:
  _check_bits("low", low)
  _check_bits("high", high)
  if low > high:
    raise ValueError(f"low={low} has more bits than high={high}; exchange them")


def _check_bits(name: str, bits: int) -> None:
  if not isinstance(bits, int) or not 1 <= bits <= 23:
    raise ValueError(f"{name}={bits!r}: mantissa bits are an integer in 1..23")
