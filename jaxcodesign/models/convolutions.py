"""Convolutions, each followed by its batch normalization, and the nonlinearities.

Padding is a pixel on every side, so that an output of stride 2 lies on the pixels 0, 2,
4 ..: those of `x[:, ::2, ::2]`.
"""

import abc
import math
from typing import Literal, get_args

from flax import nnx
import jax

from jaxcodesign.models.batch_norm import BatchNorm
from jaxcodesign.models.shift import Shift

Activation = Literal["relu", "relu6"]


def activate(name: Activation, x: jax.Array) -> jax.Array:
  """The nonlinearity called `name`."""
  return {"relu": nnx.relu, "relu6": nnx.relu6}[name](x)


def check(activation: str, momentum: float) -> None:
  """Raises a ValueError unless there is such an activation and momentum in [0, 1)."""
  if activation not in get_args(Activation):
    raise ValueError(f"activation={activation!r} is none of {get_args(Activation)}")
  if not 0 <= momentum < 1:
    raise ValueError(f"momentum={momentum} must be in [0, 1): 0 forgets at once")


class Normalized(nnx.Module, abc.ABC):
  """A product without a bias, and what normalizes its channels: "kernel" and "norm"."""

  def __init__(self, *shape: int, momentum: float, rngs: nnx.Rngs):
    he = nnx.initializers.he_normal()
    self.kernel = nnx.Param(he(rngs.params(), shape))
    self.norm = BatchNorm(shape[-1], momentum=momentum)

  @abc.abstractmethod
  def product(self, x: jax.Array) -> jax.Array:
    """[B, H, W, channels] -> [B, H / stride, W / stride, filters], rounded up."""

  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    return self.norm(self.product(x), train)


class Spatial(Normalized):
  """A 3x3 convolution; `groups` are the channels of a depthwise one."""

  def __init__(
    self,
    channels: int,
    filters: int,
    *,
    stride: int = 1,
    groups: int = 1,
    momentum: float,
    rngs: nnx.Rngs,
  ):
    super().__init__(3, 3, channels // groups, filters, momentum=momentum, rngs=rngs)
    self.stride, self.groups = stride, groups

  def product(self, x: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
      x,
      self.kernel[...],
      (self.stride, self.stride),
      ((1, 1), (1, 1)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=self.groups,
    )


class Pointwise(Normalized):
  """A 1x1 convolution, its kernel the matrix [channels, filters]."""

  def product(self, x: jax.Array) -> jax.Array:
    # One matrix: as a convolution its weight gradient is up to 18 times as slow on CPU.
    y = x.reshape(math.prod(x.shape[:-1]), -1) @ self.kernel[...]
    return y.reshape(*x.shape[:-1], -1)


class Shifted(Pointwise):
  """A fixed shift of each channel before a 1x1 convolution."""

  def __init__(
    self,
    channels: int,
    filters: int,
    *,
    stride: int,
    seed: tuple[int, ...],
    momentum: float,
    rngs: nnx.Rngs,
  ):
    super().__init__(channels, filters, momentum=momentum, rngs=rngs)
    self.shift, self.stride = Shift(channels, seed), stride

  def product(self, x: jax.Array) -> jax.Array:
    return super().product(self.shift(x)[:, :: self.stride, :: self.stride])
