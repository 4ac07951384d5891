"""Batch normalization: what a batch says in training, what was learned afterwards.

Reference: Ioffe, Szegedy. "Batch Normalization: Accelerating Deep Network Training by
Reducing Internal Covariate Shift", ICML 2015.
"""

from flax import nnx
import jax
import jax.numpy as jnp

_EPSILON = 1e-5


class BatchNorm(nnx.Module):
  """Each channel, the last axis, to mean 0 and variance 1, then scaled and shifted.

  In training the moments are the batch's, with a gradient through them, and the running
  ones become momentum * running + (1 - momentum) * batch; the variance is the biased
  one. At inference the running ones are used, as one scale and one bias per channel.
  No gradient ever flows into the running moments. Inputs of any float type come out in
  it; all between is in float32.
  """

  def __init__(self, channels: int, *, momentum: float):
    self.scale = nnx.Param(jnp.ones(channels))
    self.bias = nnx.Param(jnp.zeros(channels))
    self.mean = nnx.BatchStat(jnp.zeros(channels))
    self.var = nnx.BatchStat(jnp.ones(channels))
    self.momentum = momentum

  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    mean, var = (jax.lax.stop_gradient(s[...]) for s in (self.mean, self.var))
    dtype, x = x.dtype, x.astype(jnp.float32)
    if not train:
      return self._affine(x, mean, var).astype(dtype)
    axes = tuple(range(x.ndim - 1))
    # Both moments in one pass over the data; about the running mean, since E[x^2] -
    # E[x]^2 cancels where the mean is large.
    x = x - jnp.broadcast_to(mean, x.shape)
    offset = jnp.mean(x, axis=axes)
    spread = jnp.maximum(jnp.mean(x * x, axis=axes) - offset**2, 0)
    blend = lambda old, new: self.momentum * old + (1 - self.momentum) * new
    self.mean[...] = blend(mean, jax.lax.stop_gradient(mean + offset))
    self.var[...] = blend(var, jax.lax.stop_gradient(spread))
    return self._affine(x, offset, spread).astype(dtype)

  def _affine(self, x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
    scale, bias = (p[...].astype(jnp.float32) for p in (self.scale, self.bias))
    slope = scale * jax.lax.rsqrt(var + _EPSILON)
    mean, slope, bias = (jnp.broadcast_to(p, x.shape) for p in (mean, slope, bias))
    # Centred first: x * slope - mean * slope is not zero at the mean on every machine.
    return (x - mean) * slope + bias
