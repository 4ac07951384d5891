"""Rounding that gradients pass: straight-through, stochastic, and smooth ceilings.

A rounding has a derivative of zero almost everywhere. Training replaces it by one
(the straight-through estimator: Bengio, Leonard, Courville, arXiv 1308.3432);
hardware tuning replaces the step itself by a smooth one.
"""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def straight_through(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns exactly `y`, with the gradient of `x`.

  Args:
    x: [...] what the gradient flows to.
    y: [...] the value, usually a rounding of `x`; same shape and dtype.

  The textbook `x + stop_gradient(y - x)` adds in floating point and leaves the number
  grid wherever `y` is far from `x` (binary weights, truncated terms); here nothing is
  computed, so every value of `y`, infinite and NaN included, comes back bit for bit.
  """
  del x
  return y


@straight_through.defjvp
def _straight_through_jvp(primals, tangents):
  return primals[1], tangents[0]


def to_integer(x: jax.Array, key: jax.Array | None = None) -> jax.Array:
  """Rounds to integers, kept in the dtype of `x`.

  Args:
    x: [...] floating point.
    key: None rounds to nearest, ties to even. A PRNG key rounds stochastically: up
      with a probability equal to the fraction, so the expectation is `x`.

  No gradient: wrap in `straight_through` where one is wanted.
  """
  if key is None:
    return jnp.round(x)
  noise = jax.random.uniform(key, x.shape, jnp.float32)
  low = jnp.floor(x)
  return low + (noise < (x - low).astype(jnp.float32)).astype(x.dtype)


def straight_through_ceil(x: jax.Array) -> jax.Array:
  """`ceil(x)` with a derivative of one: exact values, usable slopes."""
  return straight_through(x, jnp.ceil(x))


def smooth_ceil(x: jax.Array, temperature: jax.typing.ArrayLike) -> jax.Array:
  """A strictly increasing, analytic stand-in for `ceil`, exact at temperature 0.

  `ceil` convolved with a wrapped Cauchy kernel, whose density is the Poisson kernel
  P_r with r = exp(-temperature):

    y + 1/2 + atan2(r sin 2 pi y, 1 - r cos 2 pi y) / pi,   y = x - shift

  The derivative is P_r(2 pi y) = (1 - r^2) / (1 - 2 r cos 2 pi y + r^2) > 0: a loop
  count that is one over a tile boundary feels the pull back. The shift,
  tanh(sqrt(temperature) / 4) / 2, puts the steps after the integers, so that a size
  that divides exactly is not charged half a tile more; it shrinks slower than the
  steps steepen. Low temperatures tend to ceil, high ones to x. At temperature 0 the
  value is `ceil(x)` and the derivative 0.

  Args:
    x: [...] floating point.
    temperature: >= 0, broadcast against `x`; may be traced.
  """
  temperature = jnp.asarray(temperature, x.dtype)
  hot = temperature > 0
  safe = jnp.where(hot, temperature, 1.0)
  r, shift = jnp.exp(-safe), jnp.tanh(jnp.sqrt(safe) / 4) / 2
  # Reduced before the multiplication by 2 pi: large counts would lose their fraction.
  angle = 2 * jnp.pi * (x - jnp.floor(x) - shift)
  # 1 - r cos without cancellation: at low temperatures both terms are near one.
  beside = -jnp.expm1(-safe) + 2 * r * jnp.sin(angle / 2) ** 2
  wave = jnp.arctan2(r * jnp.sin(angle), beside)
  return jnp.where(hot, x - shift + 0.5 + wave / jnp.pi, jnp.ceil(x))
