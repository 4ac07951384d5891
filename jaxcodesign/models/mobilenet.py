"""MobileNet: a 3x3 convolution of each channel alone, then a 1x1 one across them.

The pair costs 1 / N + 1 / 9 of the products of a full 3x3 convolution to N channels.

Reference: Howard et al. "MobileNets: Efficient Convolutional Neural Networks for Mobile
Vision Applications", arXiv:1704.04861.
"""

import dataclasses
import math

from flax import nnx
import jax
import jax.numpy as jnp

from jaxcodesign.models import convolutions
from jaxcodesign.models.classifier import Classifier, ImageShape, Outputs

_BLOCKS = (
  (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
  *((512, 1),) * 5, (1024, 2), (1024, 1),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MobileNet(Classifier):
  """A 3x3 convolution, separable blocks, the mean over all pixels, a dense layer.

  The default is MobileNet-1.0 for images of 224 pixels. For 28 or 32 pixels:

    MobileNet(width=0.25, stem=(32, 1), blocks=((64, 1), (128, 2), (256, 2)))

  Its parameters are "stem", "block01" .. and "logits". A block has "depthwise" and
  "pointwise", and these, as the stem and a block that is not separable, "kernel" and
  "norm": "scale", "bias" and the running "mean" and "var". Kernels are [3, 3, in, out],
  depthwise [3, 3, 1, in], pointwise [in, out]. Its features are what was made at each
  size, before the next stride and at the end.

  Attributes:
    width: Multiplier of all filters, rounded down, though never to less than 8 of them.
    stem: Filters, before the multiplier, and stride of the first convolution.
    blocks: The same of each block.
    separable: False makes each block one full 3x3 convolution, the network to compare.
    activation: "relu" or "relu6", after every normalization.
    momentum: Of the running statistics, in [0, 1).
  """

  width: float = 1.0
  stem: tuple[int, int] = (32, 2)
  blocks: tuple[tuple[int, int], ...] = _BLOCKS
  separable: bool = True
  activation: convolutions.Activation = "relu"
  momentum: float = 0.9

  def __post_init__(self):
    layers = (self.stem, *self.blocks)
    if min(min(layer) for layer in layers) < 1 or not 0 < self.width < math.inf:
      raise ValueError(
        f"a MobileNet needs positive filters, strides and width, not {self}"
      )
    convolutions.check(self.activation, self.momentum)

  @property
  def reduction(self) -> int:
    return math.prod(stride for _, stride in (self.stem, *self.blocks))

  def scaled(self, filters: int) -> int:
    """Filters after the multiplier."""
    return max(8, int(self.width * filters))

  def network(self, shape: ImageShape, classes: int, rngs: nnx.Rngs) -> nnx.Module:
    return _Network(self, shape[-1], classes, rngs=rngs)


class _Network(nnx.Module):
  """The layers of a `MobileNet`, named as its parameters are."""

  def __init__(self, net: MobileNet, channels: int, classes: int, *, rngs: nnx.Rngs):
    self.net = net
    filters, stride = net.stem
    how = {"momentum": net.momentum, "rngs": rngs}
    self.stem = convolutions.Spatial(
      channels, net.scaled(filters), stride=stride, **how
    )
    channels = net.scaled(filters)
    for i, (filters, stride) in enumerate(net.blocks):
      filters = net.scaled(filters)
      if net.separable:
        block = _Separable(net, channels, filters, stride, rngs=rngs)
      else:
        block = convolutions.Spatial(channels, filters, stride=stride, **how)
      setattr(self, _name(i), block)
      channels = filters
    self.logits = nnx.Linear(channels, classes, rngs=rngs)

  def __call__(self, x: jax.Array, train: bool) -> Outputs:
    x = convolutions.activate(self.net.activation, self.stem(x, train))
    features = []
    for i, (_, stride) in enumerate(self.net.blocks):
      if stride > 1:
        features.append(x)
      x = convolutions.activate(self.net.activation, getattr(self, _name(i))(x, train))
    return self.logits(jnp.mean(x, axis=(1, 2))), (*features, x)


def _name(block: int) -> str:
  return f"block{block + 1:02d}"


class _Separable(nnx.Module):
  """A depthwise and a pointwise convolution, the nonlinearity between them."""

  def __init__(
    self, net: MobileNet, channels: int, filters: int, stride: int, *, rngs: nnx.Rngs
  ):
    self.activation: convolutions.Activation = net.activation
    self.depthwise = convolutions.Spatial(
      channels,
      channels,
      stride=stride,
      groups=channels,
      momentum=net.momentum,
      rngs=rngs,
    )
    self.pointwise = convolutions.Pointwise(
      channels, filters, momentum=net.momentum, rngs=rngs
    )

  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = convolutions.activate(self.activation, self.depthwise(x, train))
    return self.pointwise(x, train)
