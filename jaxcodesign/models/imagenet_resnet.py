"""The residual network for images of 224 pixels: ResNet-18, 34, 50 and 101.

Version 1.5: a bottleneck strides in its 3x3 convolution, a shortcut that changes the
shape is a 1x1 projection, and the last normalization of a block begins at zero, so
that each block begins as its shortcut.

References: He, Zhang, Ren, Sun. "Deep Residual Learning for Image Recognition",
arXiv:1512.03385, table 1; Goyal et al. "Accurate, Large Minibatch SGD",
arXiv:1706.02677, section 5.1.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from jaxcodesign.models import convolutions
from jaxcodesign.models.classifier import Classifier, ImageShape, Outputs

_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_EXPANSION = 4  # of a bottleneck: channels out for each inside


@dataclasses.dataclass(frozen=True)
class ImageNetResNet(Classifier):
  """A 7x7 convolution, a 3x3 max pool, stages of blocks, the mean, a dense layer.

  The default is ResNet-18, 11,689,512 trained parameters with 1000 classes and 3
  colours; `of(50)` is ResNet-50, 25,557,032.

  Its parameters are "stem", "stage1_1" .. "stage4_n" and "logits". A block has "conv1",
  "conv2", a bottleneck also "conv3", and "shortcut" where it changes the shape; these
  and the stem have "kernel" and "norm": "scale", "bias" and the running "mean" and
  "var". Kernels are [3, 3, in, out], the stem's [7, 7, C, out], those of 1x1
  convolutions [in, out]. Its features are what each stage returns.

  Attributes:
    blocks: Blocks of each stage; every stage but the first halves the image.
    bottleneck: Whether blocks are 1x1, 3x3, 1x1 convolutions instead of two of 3x3.
    width: Channels inside the blocks of the first stage, twice as many in each next.
    zero_init: Whether the last scale of a block begins at 0 instead of 1.
    momentum: Of the running statistics, in [0, 1).
  """

  blocks: tuple[int, ...] = _DEPTHS[18]
  bottleneck: bool = False
  width: int = 64
  zero_init: bool = True
  momentum: float = 0.9

  def __post_init__(self):
    if not self.blocks or min(*self.blocks, self.width) < 1:
      raise ValueError(f"an ImageNetResNet needs positive sizes, not {self}")
    convolutions.check("relu", self.momentum)

  @classmethod
  def of(cls, depth: int) -> "ImageNetResNet":
    """The published network of 18, 34, 50 or 101 layers.

    Raises:
      ValueError: If there is no such depth.
    """
    if depth not in _DEPTHS:
      raise ValueError(f"depth={depth} is none of {', '.join(map(str, _DEPTHS))}")
    return cls(_DEPTHS[depth], bottleneck=depth >= 50)

  @property
  def reduction(self) -> int:
    return 2 ** (len(self.blocks) + 1)

  def network(self, shape: ImageShape, classes: int, rngs: nnx.Rngs) -> nnx.Module:
    return _Network(self, shape[-1], classes, rngs=rngs)


class _Network(nnx.Module):
  """The layers of an `ImageNetResNet`, named as its parameters are."""

  def __init__(
    self, net: ImageNetResNet, channels: int, classes: int, *, rngs: nnx.Rngs
  ):
    self.net = net
    self.stem = _Stem(7, 7, channels, net.width, momentum=net.momentum, rngs=rngs)
    channels = net.width
    for stage, count in enumerate(net.blocks):
      for i in range(count):
        stride = 2 if stage and not i else 1
        block = _Block(net, channels, net.width << stage, stride, rngs=rngs)
        setattr(self, _name(stage, i), block)
        channels = (net.width << stage) * (_EXPANSION if net.bottleneck else 1)
    self.logits = nnx.Linear(channels, classes, rngs=rngs)

  def __call__(self, x: jax.Array, train: bool) -> Outputs:
    x = max_pool(nnx.relu(self.stem(x, train)))
    features = []
    for stage, count in enumerate(self.net.blocks):
      for i in range(count):
        x = getattr(self, _name(stage, i))(x, train)
      features.append(x)
    return self.logits(jnp.mean(x, axis=(1, 2))), tuple(features)


def _name(stage: int, block: int) -> str:
  return f"stage{stage + 1}_{block + 1}"


def max_pool(x: jax.Array) -> jax.Array:
  """3x3 max pool of stride 2 with a pixel of -inf around.

  Not reduce_window, whose gradient is slow on CPU: maxima of strided slices, rows
  before columns. Where values are equal the gradient is shared instead of given to one.

  Args:
    x: [B, H, W, C].

  Returns:
    [B, H / 2, W / 2, C], rounded up.
  """
  for axis in (1, 2):
    edges = [(0, 0)] * 4
    edges[axis] = (1, 1)
    padded = jnp.pad(x, edges, constant_values=-jnp.inf)
    rows = [
      jax.lax.slice_in_dim(padded, i, x.shape[axis] + i, 2, axis) for i in range(3)
    ]
    x = jnp.maximum(jnp.maximum(rows[0], rows[1]), rows[2])
  return x


class _Stem(convolutions.Normalized):
  """A 7x7 convolution of stride 2 with three pixels of zeros around."""

  def product(self, x: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
      x,
      self.kernel[...],
      (2, 2),
      ((3, 3), (3, 3)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class _Projection(convolutions.Pointwise):
  """A 1x1 convolution of every `stride`-th pixel."""

  def __init__(self, channels: int, filters: int, stride: int, **how):
    super().__init__(channels, filters, **how)
    self.stride = stride

  def product(self, x: jax.Array) -> jax.Array:
    return super().product(x[:, :: self.stride, :: self.stride])


class _Block(nnx.Module):
  """Two or three convolutions beside a shortcut; `width` channels inside."""

  def __init__(
    self,
    net: ImageNetResNet,
    channels: int,
    width: int,
    stride: int,
    *,
    rngs: nnx.Rngs,
  ):
    self.bottleneck = net.bottleneck
    how = {"momentum": net.momentum, "rngs": rngs}
    if net.bottleneck:
      out = _EXPANSION * width
      self.conv1 = convolutions.Pointwise(channels, width, **how)
      self.conv2 = convolutions.Spatial(width, width, stride=stride, **how)
      self.conv3 = last = convolutions.Pointwise(width, out, **how)
    else:
      out = width
      self.conv1 = convolutions.Spatial(channels, width, stride=stride, **how)
      self.conv2 = last = convolutions.Spatial(width, out, **how)
    if net.zero_init:
      last.norm.scale[...] = jnp.zeros(out)
    self.projects = stride > 1 or channels != out
    if self.projects:
      self.shortcut = _Projection(channels, out, stride, **how)

  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = self.conv2(nnx.relu(self.conv1(x, train)), train)
    if self.bottleneck:
      y = self.conv3(nnx.relu(y), train)
    return nnx.relu(y + (self.shortcut(x, train) if self.projects else x))
