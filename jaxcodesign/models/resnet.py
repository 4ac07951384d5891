"""The residual network for small images, with 3x3 or with shift convolutions.

ResNet(3) is ResNet-20: a convolution, three stages of three blocks of two, and a dense
layer, 6 blocks + 2 in all, 269,722 trained parameters with 10 classes and 3 colours.

References: He, Zhang, Ren, Sun. "Deep Residual Learning for Image Recognition",
arXiv:1512.03385, section 4.2; Kung, McDanel, Zhang. "Packing Sparse Convolutional
Neural Networks for Efficient Systolic Array Implementations: Column Combining Under
Joint Optimization", ASPLOS 2019.
"""

import dataclasses
from typing import Literal, get_args

from flax import nnx
import jax
import jax.numpy as jnp

from jaxcodesign.models import convolutions
from jaxcodesign.models.classifier import Classifier, ImageShape, Outputs

Convolution = Literal["3x3", "shift"]

_STAGES = 3


@dataclasses.dataclass(frozen=True)
class ResNet(Classifier):
  """Three stages of residual blocks, each of twice the width and half the size.

  Its parameters are "stem", "stage1_1" .. "stage3_n", each with "conv1" and "conv2",
  and "logits". A convolution has "kernel", [3, 3, in, out] or after a shift [in, out],
  and "norm": "scale", "bias" and the running "mean" and "var". A shortcut that halves
  takes every second pixel and zeros for its new channels (option A of the paper, which
  its small networks have): no parameters, no product. Its features are what each stage
  returns.

  Attributes:
    blocks: Blocks of a stage.
    width: Channels of the first stage; the others have 2 and 4 times as many.
    convolution: Of the blocks: "3x3", or "shift", a fixed shift of each channel by at
      most a pixel and a 1x1 convolution. The stem is 3x3 in both.
    expansion: Channels between the two convolutions of a block, in widths of its stage.
    activation: "relu", or "relu6" as in the released code of column combining.
    momentum: Of the running statistics, in [0, 1).
    seed: Of the shifts; every convolution has its own.
  """

  blocks: int = 3
  width: int = 16
  convolution: Convolution = "3x3"
  expansion: int = 1
  activation: convolutions.Activation = "relu"
  momentum: float = 0.9
  seed: int = 0

  def __post_init__(self):
    if min(self.blocks, self.width, self.expansion) < 1 or self.seed < 0:
      raise ValueError(f"a ResNet needs positive sizes and seed >= 0, not {self}")
    if self.convolution not in get_args(Convolution):
      raise ValueError(
        f"convolution={self.convolution!r} is none of {get_args(Convolution)}"
      )
    convolutions.check(self.activation, self.momentum)

  @property
  def reduction(self) -> int:
    return 2 ** (_STAGES - 1)

  def network(self, shape: ImageShape, classes: int, rngs: nnx.Rngs) -> nnx.Module:
    return _Network(self, shape[-1], classes, rngs=rngs)


class _Network(nnx.Module):
  """The layers of a `ResNet`, named as its parameters are."""

  def __init__(self, net: ResNet, channels: int, classes: int, *, rngs: nnx.Rngs):
    self.net = net
    self.stem = convolutions.Spatial(
      channels, net.width, momentum=net.momentum, rngs=rngs
    )
    channels = net.width
    for stage in range(_STAGES):
      for i in range(net.blocks):
        block = _Block(net, channels, net.width << stage, (stage, i), rngs=rngs)
        setattr(self, _name(stage, i), block)
        channels = net.width << stage
    self.logits = nnx.Linear(channels, classes, rngs=rngs)

  def __call__(self, x: jax.Array, train: bool) -> Outputs:
    x = convolutions.activate(self.net.activation, self.stem(x, train))
    features = []
    for stage in range(_STAGES):
      for i in range(self.net.blocks):
        x = getattr(self, _name(stage, i))(x, train)
      features.append(x)
    return self.logits(jnp.mean(x, axis=(1, 2))), tuple(features)


def _name(stage: int, block: int) -> str:
  return f"stage{stage + 1}_{block + 1}"


class _Block(nnx.Module):
  """Two convolutions beside a shortcut; `place` is (stage, block) from 0."""

  def __init__(
    self,
    net: ResNet,
    channels: int,
    width: int,
    place: tuple[int, int],
    *,
    rngs: nnx.Rngs,
  ):
    self.activation: convolutions.Activation = net.activation
    self.width, self.stride = width, 2 if place[0] and not place[1] else 1
    inner = net.expansion * width

    def convolution(
      channels: int, filters: int, stride: int, number: int
    ) -> convolutions.Normalized:
      how = {"stride": stride, "momentum": net.momentum, "rngs": rngs}
      if net.convolution == "3x3":
        return convolutions.Spatial(channels, filters, **how)
      seed = (net.seed, *place, number)
      return convolutions.Shifted(channels, filters, seed=seed, **how)

    self.conv1 = convolution(channels, inner, self.stride, 0)
    self.conv2 = convolution(inner, width, 1, 1)

  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = convolutions.activate(self.activation, self.conv1(x, train))
    y = self.conv2(y, train)
    if self.stride > 1:
      x = x[:, :: self.stride, :: self.stride]
      x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.width - x.shape[-1])))
    return convolutions.activate(self.activation, y + x)
