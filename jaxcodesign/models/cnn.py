"""The smallest of the networks: convolutions, pooling and two dense layers."""

import dataclasses
from typing import ClassVar

from flax import nnx
import jax

from jaxcodesign.models.classifier import Classifier, ImageShape, Outputs


@dataclasses.dataclass(frozen=True)
class Cnn(Classifier):
  """A convolutional classifier: [3x3 conv, relu, 2x2 max pool] each, then two dense.

  With channels and hidden units in multiples of 8, every contraction but that of the
  first convolution is a multiple of 8 in each kernel tap, so that a group of 8 weights
  never mixes two taps.

  Its parameters are {"conv1": {"kernel": [3, 3, C, channels[0]], "bias":
  [channels[0]]}, ..., "dense1": {"kernel": [F, hidden], ...}, "dense2": {"kernel":
  [hidden, classes], ...}}, F = H' * W' * channels[-1], channels fastest; each pool
  halves H and W, rounding down. Its features are what each pool returns.

  Attributes:
    channels: Output channels of each convolution, in order.
    hidden: Units of the dense layer before the logits.
  """

  channels: tuple[int, ...] = (16, 32)
  hidden: int = 128

  head: ClassVar[str] = "dense2"

  def __post_init__(self):
    if not self.channels or min(*self.channels, self.hidden) < 1:
      raise ValueError(
        f"a Cnn needs at least one convolution and positive sizes, not {self}"
      )

  def network(self, shape: ImageShape, classes: int, rngs: nnx.Rngs) -> nnx.Module:
    return _Network(self, shape, classes, rngs=rngs)

  @property
  def reduction(self) -> int:
    return 2 ** len(self.channels)


class _Network(nnx.Module):
  """The layers of a `Cnn`, named as its parameters are."""

  def __init__(
    self, cnn: Cnn, image_shape: ImageShape, classes: int, *, rngs: nnx.Rngs
  ):
    height, width, features = image_shape
    self.depth = len(cnn.channels)
    he = nnx.initializers.he_normal()
    for i, channels in enumerate(cnn.channels, start=1):
      conv = nnx.Conv(features, channels, (3, 3), kernel_init=he, rngs=rngs)
      setattr(self, f"conv{i}", conv)
      height, width, features = height // 2, width // 2, channels
    self.dense1 = nnx.Linear(
      height * width * features, cnn.hidden, kernel_init=he, rngs=rngs
    )
    self.dense2 = nnx.Linear(cnn.hidden, classes, kernel_init=he, rngs=rngs)

  def __call__(self, x: jax.Array, train: bool) -> Outputs:
    del train
    features = []
    for i in range(1, self.depth + 1):
      x = _halve(nnx.relu(getattr(self, f"conv{i}")(x)))
      features.append(x)
    x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
    return self.dense2(x), tuple(features)


def _halve(x: jax.Array) -> jax.Array:
  """2x2 max pool of [B, H, W, C]; an odd last row or column is left out."""
  b, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2]
  # Not reduce_window: its gradient made a training step 3 times as slow on CPU.
  return x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))
