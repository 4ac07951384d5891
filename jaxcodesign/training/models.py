"""Small networks as pure functions: a frozen description, `init` and `apply`.

The network is written in flax nnx, where a layer is easiest to read, and handed out as
a function of a plain nested dict of arrays, which is what tracing, quantizing and
saving want: `cnn.apply` is jitted, differentiated and rewritten like any function.
"""

import dataclasses
import functools

from flax import nnx
import jax

Params = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Cnn:
  """A convolutional classifier: [3x3 conv, relu, 2x2 max pool] each, then two dense.

  With channels and hidden units in multiples of 8, every contraction but that of the
  first convolution is a multiple of 8 in each kernel tap, so that a group of 8 weights
  never mixes two taps.

  Attributes:
    channels: Output channels of each convolution, in order.
    hidden: Units of the dense layer before the logits.
  """

  channels: tuple[int, ...] = (16, 32)
  hidden: int = 128

  def __post_init__(self):
    if not self.channels or min(*self.channels, self.hidden) < 1:
      raise ValueError(
        f"a Cnn needs at least one convolution and positive sizes, not {self}"
      )

  def init(
    self, key: jax.Array, image_shape: tuple[int, int, int], classes: int
  ) -> Params:
    """Draws the weights.

    Args:
      key: PRNG key; the same key gives the same weights.
      image_shape: (H, W, C) of one image; each pool halves H and W, rounding down.
      classes: Number of logits.

    Returns:
      {"conv1": {"kernel": [3, 3, C, channels[0]], "bias": [channels[0]]}, ...,
      "dense1": {"kernel": [F, hidden], ...}, "dense2": {"kernel": [hidden, classes],
      ...}} in float32, biases zero. F = H' * W' * channels[-1], channels fastest.

    Raises:
      ValueError: if the image is too small to be halved by every pool.
    """
    if min(image_shape[:2]) < 2 ** len(self.channels):
      raise ValueError(
        f"images of {image_shape} are too small for {len(self.channels)} poolings; "
        f"use fewer channels than {self.channels}"
      )
    network = _Network(self, image_shape, classes, rngs=nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.state(network, nnx.Param))

  def apply(self, params: Params, images: jax.Array) -> jax.Array:
    """Returns the logits.

    Args:
      params: What `init` returned, or a dict of the same shape.
      images: [B, H, W, C] float32, H, W and C as given to `init`.

    Returns:
      [B, classes] logits.

    Raises:
      ValueError: if the names of the parameters are not those of `init`, or a shape
        does not fit the images.
    """
    leaves, found = jax.tree.flatten(params)
    classes = leaves[-1].shape[-1] if leaves else 1
    graph, state, names = _structure(self, images.shape[1:], classes)
    if found != names:
      raise ValueError(f"{self} needs parameters {names}, not {found}")
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), leaves))(
      images
    )


def count(params: Params) -> int:
  """Returns the number of parameters in a tree of arrays or shapes."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


class _Network(nnx.Module):
  """The layers of a `Cnn`, named as its parameters are."""

  def __init__(
    self, cnn: Cnn, image_shape: tuple[int, ...], classes: int, *, rngs: nnx.Rngs
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

  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(1, self.depth + 1):
      x = _halve(nnx.relu(getattr(self, f"conv{i}")(x)))
    x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
    return self.dense2(x)


def _halve(x: jax.Array) -> jax.Array:
  """2x2 max pool of [B, H, W, C]; an odd last row or column is left out."""
  b, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2]
  # Not reduce_window: its gradient made a training step 3 times as slow on CPU.
  return x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


@functools.cache
def _structure(cnn: Cnn, image_shape: tuple[int, ...], classes: int):
  """The network without its values, built once for each shape."""
  network = nnx.eval_shape(
    lambda: _Network(cnn, image_shape, classes, rngs=nnx.Rngs(0))
  )
  graph, state = nnx.split(network)
  return graph, state, jax.tree.structure(nnx.to_pure_dict(state))
