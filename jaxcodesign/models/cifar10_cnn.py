"""A published image classifier, from a file: six convolutions, three dense layers.

The network is six times [3x3 convolution without padding, relu, batch normalization]
(a 2x2 max pool after the second and the fourth), then three dense layers, relu after
each, on raw pixels 0 ... 255. `weights.npz` holds convI/{kernel,bias},
bnI/{gamma,beta,moving_mean,moving_variance} and denseI/{kernel,bias}.
"""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.data import npz
from jaxcodesign.data.cache import expanded

_EPSILON = 1e-3  # of batch normalization
_POOLED = (1, 3)  # convolutions with a pool behind them
Params = dict[str, dict[str, jax.Array]]


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


def draw(channels: int, seed: int = 0) -> Params:
  """Random parameters of the same network with `channels` in every convolution."""
  rng = np.random.default_rng(seed)
  params: Params = {}
  sizes = [3, *[channels] * 6, 16, 16, 10]
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
  return params


def read_weights(path: str | pathlib.Path) -> Params:
  """The parameters in an .npz file, checked against the network's shapes.

  Raises:
    FileNotFoundError: Naming the file.
    ValueError: If it is damaged, of another network, or holds a NaN or an infinity.
  """
  path = expanded(path)
  if not path.is_file():
    raise FileNotFoundError(
      f"no weights {path}: put the network's weights.npz there, name another file with "
      "--network.weights, or set $JAXCODESIGN_DATA to the folder of all data"
    )
  params: Params = {}
  try:
    for name, leaf in npz.read(path).items():
      layer, _, part = name.partition("/")
      params.setdefault(layer, {})[part] = jnp.asarray(leaf)
    jax.eval_shape(apply, params, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{path} holds another network: {error}") from error
  tree.check_finite(params, str(path))
  return params
