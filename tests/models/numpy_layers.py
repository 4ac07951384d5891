"""The layers of the networks in numpy loops: answers that share no code with them."""

import jax
import numpy as np


def convolution(x, kernel, stride=1, depthwise=False):
  """[B, H, W, C] by [3, 3, C or 1, N] with a pixel of zeros around it."""
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  out = 0.0
  for i, j in np.ndindex(3, 3):
    tap = x[:, i : x.shape[1] - 2 + i : stride, j : x.shape[2] - 2 + j : stride]
    out = out + (tap * kernel[i, j, 0] if depthwise else tap @ kernel[i, j])
  return out


def normalized(p, x):
  """As at inference."""
  norm = p["norm"]
  x = (x - norm["mean"]) / np.sqrt(norm["var"] + 1e-5)
  return x * norm["scale"] + norm["bias"]


def layer(p, x, **how):
  """A 3x3 convolution, normalized."""
  return normalized(p, convolution(x, p["kernel"], **how))


def logits(p, x):
  """A dense layer on the mean of all pixels."""
  return x.mean((1, 2)) @ p["kernel"] + p["bias"]


def disturbed(params, seed=0):
  """`params` away from zeros and ones, variances still positive."""
  rng = np.random.default_rng(seed)
  factor = lambda x: rng.uniform(0.7, 1.3, x.shape).astype("f4")
  return jax.tree.map(lambda x: x * factor(x) + 0.05 * factor(x), params)
