"""A trained image classifier from a file: no training between a user and a table.

The network is six times [3x3 convolution without padding, relu, batch normalization]
(a 2x2 max pool after the second and the fourth), then three dense layers, relu after
each, on raw pixels 0 ... 255. `weights.npz` holds convI/{kernel,bias},
bnI/{gamma,beta,moving_mean,moving_variance} and denseI/{kernel,bias}.
"""

import dataclasses
import itertools
import os
import pathlib
from typing import Any, NamedTuple
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign.data import image_sets
from jaxcodesign.programs import precision
from jaxcodesign.programs.precision import Policy
from jaxcodesign.programs.workload import Workload, trace
from jaxcodesign.training import fit
from jaxcodesign.training.codesign import Variant

_EPSILON = 1e-3  # of batch normalization
_POOLED = (1, 3)  # convolutions with a pool behind them
Params = dict[str, dict[str, jax.Array]]


def cache() -> pathlib.Path:
  """Where data sets and weights lie: $JAXCODESIGN_DATA, else ~/.cache/jaxcodesign."""
  given = os.environ.get("JAXCODESIGN_DATA")
  return pathlib.Path(given) if given else pathlib.Path("~/.cache/jaxcodesign")


class Loaded(NamedTuple):
  """A network and what it is scored on."""

  params: Params
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
    params = read_weights(self.weights or cache() / "cifar10_cnn" / "weights.npz")
    found = image_sets.Cifar10(self.directory or cache() / "cifar10").load()
    end = self.limit or None
    return Loaded(params, found.test_images[:end], found.test_labels[:end])

  metric = "accuracy"

  def score(self, loaded: Loaded, variant: Variant) -> float:
    """Accuracy of all images."""
    return accuracy(loaded, variant.policy)

  def workload(self, loaded: Loaded) -> Workload:
    """What one image asks of a machine."""
    return trace(apply)(loaded.params, jnp.asarray(loaded.images[:1]))


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
    rng = np.random.default_rng(0)
    params: Params = {}
    sizes = [3, *[self.channels] * 6, 16, 16, 10]
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
      name, shape = f"conv{i}", (3, 3, before, after)
      if i >= 6:
        name, shape = f"dense{i - 6}", (before, after)
      scale = (2 / np.prod(shape[:-1])) ** 0.5
      kernel = jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)
      params[name] = {"kernel": kernel, "bias": jnp.zeros(after)}
      if i < 6:
        ones, zeros = jnp.ones(after), jnp.zeros(after)
        params[f"bn{i}"] = {
          "gamma": ones, "beta": zeros, "moving_mean": zeros, "moving_variance": ones,
        }  # fmt: skip
    images = rng.uniform(size=(self.count, 32, 32, 3)).astype(np.float32)
    labels = jnp.argmax(jax.jit(apply)(params, jnp.asarray(images)), axis=-1)
    return Loaded(params, images, np.asarray(labels))

  metric = "accuracy"

  def score(self, loaded: Loaded, variant: Variant) -> float:
    """As of the real one."""
    return accuracy(loaded, variant.policy)

  def workload(self, loaded: Loaded) -> Workload:
    """As of the real one."""
    return trace(apply)(loaded.params, jnp.asarray(loaded.images[:1]))


def apply(params: Params, images: jax.Array) -> jax.Array:
  """[B, 32, 32, 3] images in [0, 1] -> [B, 10] logits."""
  x = images * 255
  for i in range(6):
    layer, norm = params[f"conv{i}"], params[f"bn{i}"]
    x = jax.lax.conv_general_dilated(
      x, layer["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(x + layer["bias"].reshape(1, 1, 1, -1))
    slope = norm["gamma"] * jax.lax.rsqrt(norm["moving_variance"] + _EPSILON)
    offset = norm["beta"] - norm["moving_mean"] * slope
    x = x * slope.reshape(1, 1, 1, -1) + offset.reshape(1, 1, 1, -1)
    if i in _POOLED:
      x = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
      )
  x = x.reshape(x.shape[0], -1)
  for i in range(3):
    layer = params[f"dense{i}"]
    # The published network has a relu after the last layer too.
    x = jax.nn.relu(x @ layer["kernel"] + layer["bias"].reshape(1, -1))
  return x


def accuracy(loaded: Loaded, policy: Policy) -> float:
  """Share of images whose largest logit is the label's, under a policy.

  Activations are scaled image by image, as a machine that runs one at a time would.
  """
  return fit.evaluate_accuracy(
    _quantized, (tuple(policy), loaded.params), loaded.images, loaded.labels
  )


def _quantized(policy_and_params: Any, images: jax.Array) -> jax.Array:
  policy, params = policy_and_params
  if not policy:
    return apply(params, images)
  one = precision.quantize(apply, policy)
  return jax.vmap(lambda image: one(params, image[None])[0])(images)


def read_weights(path: str | pathlib.Path) -> Params:
  """The parameters in an .npz file, checked against the network's shapes.

  Raises:
    FileNotFoundError: Naming the file.
    ValueError: If it is damaged, or of another network.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise FileNotFoundError(
      f"no weights {path}: put the network's weights.npz there, name another file with "
      "--network.weights, or set $JAXCODESIGN_DATA to the folder of all data"
    )
  try:
    with np.load(path) as arrays:
      flat = {name: jnp.asarray(arrays[name]) for name in arrays}
  except (ValueError, OSError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} is damaged ({error}); fetch it again") from error
  params: Params = {}
  for name, leaf in flat.items():
    layer, _, part = name.partition("/")
    params.setdefault(layer, {})[part] = leaf
  try:
    jax.eval_shape(apply, params, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{path} holds another network: {error}") from error
  return params
