"""How good a network is: the accuracy on all images of a set."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Apply = Callable[[Any, jax.Array], jax.Array]


def evaluate_accuracy(
  apply: Apply,
  params: Any,
  images: np.ndarray,
  labels: np.ndarray,
  batch_size: int = 500,
) -> float:
  """Returns the share of all images whose largest logit is the label's.

  One compilation for each (apply, batch_size), kept between calls as long as `apply`
  compares equal: the last batch is padded with images that do not count.

  Args:
    apply: (params, [B, ...] images) -> [B, classes] logits, hashable.
    params: First argument of `apply`.
    images: [N, ...], N >= 1.
    labels: [N] integers.
    batch_size: Images in a call; bounds memory and does not change the result, unless
      `apply` looks across the batch, as a dynamic activation scale does.

  Raises:
    ValueError: if there are no images or not one label for each.
  """
  if not len(images) or labels.shape != (len(images),):
    raise ValueError(
      f"cannot score {len(images)} images with labels of shape {labels.shape}: "
      "there must be at least one image, and one label for each"
    )
  correct = 0
  for start in range(0, len(images), batch_size):
    x, y = images[start : start + batch_size], labels[start : start + batch_size]
    padding = batch_size - len(x)
    if padding:
      x = np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
      y = np.pad(y, (0, padding), constant_values=-1)
    correct += _count_correct(apply, params, x, y)
  return int(correct) / len(images)


@functools.partial(jax.jit, static_argnums=0)
def _count_correct(apply, params, images, labels) -> jax.Array:
  # A padded image has label -1, which no argmax equals.
  return jnp.sum(apply(params, images).argmax(-1).astype(labels.dtype) == labels)
