"""The protocol of every network: a frozen description and pure functions of a dict.

The network is written in flax nnx, where a layer is easiest to read, and handed out as
a function of a plain nested dict of arrays, which is what tracing, quantizing and
saving want: `model.apply` is jitted, differentiated and rewritten like any function.
"""

import abc
import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

from flax import nnx
import jax

from jaxcodesign import tree

Params = dict[str, Any]
ImageShape = tuple[int, ...]  # (H, W, C)
Outputs = tuple[jax.Array, tuple[jax.Array, ...]]  # logits and features


class Forward(NamedTuple):
  """What a network makes of a batch.

  Attributes:
    logits: [B, classes].
    features: The output of each stage, [B, ...] each; unused ones cost nothing.
    stats: In training a tree like the parameters: the new running statistics, None for
      every other leaf. None at inference, and for a network without statistics.
  """

  logits: jax.Array
  features: tuple[jax.Array, ...]
  stats: Any


@dataclasses.dataclass(frozen=True)
class Classifier(abc.ABC):
  """Images to logits; a member says of which layers, and how much they reduce.

  Running statistics are leaves of the parameters without a gradient: they are zero in
  it. Training replaces them after each step by those of `forward(..., train=True)`:

    jax.tree.map(lambda new, p: p if new is None else new, stats, params,
                 is_leaf=lambda x: x is None)
  """

  head: ClassVar[str] = "logits"  # layer whose kernel is [.., classes]

  @abc.abstractmethod
  def network(self, shape: ImageShape, classes: int, rngs: nnx.Rngs) -> nnx.Module:
    """The layers: called with (images, train), they return `Outputs`."""

  @property
  @abc.abstractmethod
  def reduction(self) -> int:
    """Pixels, on each side, for one of the last stage: the least an image can have."""

  def init(
    self, key: jax.Array, image_shape: tuple[int, int, int], classes: int
  ) -> Params:
    """Draws the weights.

    Args:
      key: PRNG key; the same key gives the same weights.
      image_shape: (H, W, C) of one image.
      classes: Number of logits.

    Returns:
      A nested dict of float32 arrays, layers as the class names them. Biases are zero,
      scales one, running means zero and variances one.

    Raises:
      ValueError: if the image is too small, or a size is not positive.
    """
    if len(image_shape) != 3 or min(*image_shape, classes) < 1:
      raise ValueError(
        f"image_shape={image_shape} must be (H, W, C) and classes={classes} positive"
      )
    if min(image_shape[:2]) < self.reduction:
      raise ValueError(
        f"images of {image_shape} are too small for {self}: each side needs at least "
        f"{self.reduction} pixels; use fewer layers that halve them"
      )
    network = self.network(image_shape, classes, nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.state(network))

  def forward(
    self, params: Params, images: jax.Array, *, train: bool = False
  ) -> Forward:
    """Returns the logits, what led to them, and the running statistics.

    Args:
      params: What `init` returned, or a dict of the same names and shapes.
      images: [B, H, W, C] float32, H, W and C as given to `init`.
      train: Normalize by the statistics of the batch instead of the running ones.

    Raises:
      ValueError: if the names or shapes of the parameters are not those of `init`.
    """
    own = _structure(self, images.shape[1:], _classes(params, self.head))
    leaves = own.leaves(params, self)
    network = nnx.merge(own.graph, jax.tree.unflatten(own.state, leaves))
    logits, features = network(images, train)
    if not train or not any(own.moving):
      return Forward(logits, features, None)
    after = jax.tree.leaves(nnx.to_pure_dict(nnx.state(network)))
    stats = [x if moves else None for x, moves in zip(after, own.moving)]
    return Forward(logits, features, jax.tree.unflatten(own.names, stats))

  def apply(self, params: Params, images: jax.Array) -> jax.Array:
    """Returns the logits, [B, classes], at inference; see `forward`."""
    return self.forward(params, images).logits


def count(params: Params) -> int:
  """Returns the number of parameters in a tree of arrays or shapes."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


class _Structure(NamedTuple):
  """A network without its values."""

  graph: Any
  state: Any  # tree structure of the values, as nnx holds them
  names: Any  # tree structure of the parameters
  shapes: dict[str, tuple[int, ...]]  # of each leaf
  moving: tuple[bool, ...]  # whether each leaf is a running statistic

  def leaves(self, params: Params, model: Classifier) -> list[jax.Array]:
    """The leaves of `params`, which fit."""
    leaves, found = jax.tree.flatten(params)
    if found != self.names:
      raise ValueError(f"{model} needs parameters {self.names}, not {found}")
    for (name, shape), leaf in zip(self.shapes.items(), leaves):
      if leaf.shape != shape:
        raise ValueError(
          f"{model} needs {name} of shape {shape} for these images, not {leaf.shape}; "
          "init it for their shape"
        )
    return leaves


def _classes(params: Params, head: str) -> int:
  """Width of the last layer; 1 if there is none, and then the names do not fit."""
  shape = getattr(tree.named_leaves(params).get(f"{head}/kernel"), "shape", ())
  return shape[-1] if shape else 1


@functools.cache
def _structure(model: Classifier, shape: ImageShape, classes: int) -> _Structure:
  """Built once for each shape."""
  network = nnx.eval_shape(lambda: model.network(shape, classes, nnx.Rngs(0)))
  graph, state = nnx.split(network)
  values = nnx.to_pure_dict(state)
  statistics = tree.names(nnx.to_pure_dict(nnx.state(network, nnx.BatchStat)))
  leaves = tree.named_leaves(values)
  return _Structure(
    graph,
    jax.tree.structure(state),
    jax.tree.structure(values),
    {name: leaf.shape for name, leaf in leaves.items()},
    tuple(name in statistics for name in leaves),
  )
