"""A published CNN on CIFAR-10 under number formats: no training before a table."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign.data import image_sets
from jaxcodesign.data.cache import cache
from jaxcodesign.experiments.codesign import Variant
from jaxcodesign.models import cifar10_cnn
from jaxcodesign.programs import precision
from jaxcodesign.programs.precision import Policy
from jaxcodesign.programs.workload import Workload, trace
from jaxcodesign.training import scores


class Loaded(NamedTuple):
  """A network and what it is scored on."""

  params: cifar10_cnn.Params
  images: np.ndarray  # [N, H, W, C] in [0, 1]
  labels: np.ndarray  # [N]


@dataclasses.dataclass(frozen=True)
class Cifar10Cnn:
  """The published six-layer CNN on the CIFAR-10 test set.

  Attributes:
    weights: File of the weights; default in the cache folder.
    directory: Folder of CIFAR-10's binary version; default in the cache folder.
    limit: Test images used, 0 for all.
  """

  weights: str = ""
  directory: str = ""
  limit: int = 0

  def load(self) -> Loaded:
    """Weights and test images.

    Raises:
      FileNotFoundError: Naming the file and where it is published.
      ValueError: If the weights are not those of this network.
    """
    params = cifar10_cnn.read_weights(
      self.weights or cache() / "cifar10_cnn" / "weights.npz"
    )
    found = image_sets.Cifar10(self.directory or cache() / "cifar10").load()
    end = self.limit or None
    return Loaded(params, found.test_images[:end], found.test_labels[:end])

  metric = "accuracy"

  def score(self, loaded: Loaded, variant: Variant) -> float:
    """Accuracy of all images."""
    return accuracy(loaded, variant.policy)

  def workload(self, loaded: Loaded) -> Workload:
    """What one image asks of a machine."""
    return trace(cifar10_cnn.apply)(loaded.params, jnp.asarray(loaded.images[:1]))


@dataclasses.dataclass(frozen=True)
class RandomCnn:
  """The same network with random weights, labels being its own: for tests in seconds.

  Attributes:
    channels: Of every convolution.
    count: Images.
  """

  channels: int = 8
  count: int = 32

  def load(self) -> Loaded:
    """Weights and images drawn from fixed seeds; float32 accuracy is 1."""
    params = cifar10_cnn.draw(self.channels)
    rng = np.random.default_rng(1)
    images = rng.uniform(size=(self.count, 32, 32, 3)).astype(np.float32)
    labels = jnp.argmax(
      jax.jit(cifar10_cnn.apply)(params, jnp.asarray(images)), axis=-1
    )
    return Loaded(params, images, np.asarray(labels))

  metric = "accuracy"

  def score(self, loaded: Loaded, variant: Variant) -> float:
    """As of the real one."""
    return accuracy(loaded, variant.policy)

  def workload(self, loaded: Loaded) -> Workload:
    """As of the real one."""
    return trace(cifar10_cnn.apply)(loaded.params, jnp.asarray(loaded.images[:1]))


def accuracy(loaded: Loaded, policy: Policy) -> float:
  """Share of images whose largest logit is the label's, under a policy.

  Activations are scaled image by image, as a machine that runs one at a time would.
  """
  return scores.evaluate_accuracy(
    _quantized, (tuple(policy), loaded.params), loaded.images, loaded.labels
  )


def _quantized(policy_and_params: Any, images: jax.Array) -> jax.Array:
  policy, params = policy_and_params
  if not policy:
    return cifar10_cnn.apply(params, images)
  one = precision.quantize(cifar10_cnn.apply, policy)
  return jax.vmap(lambda image: one(params, image[None])[0])(images)
