"""The step of a uniform scale: chosen from a peak, and values counted in it."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign.numerics.formats import exponents

HUGE = float(np.finfo(np.float32).max)


def step_of(peak: jax.Array, most: float, reach: float = 1.0) -> jax.Array:
  """float32 step so that `peak` [...] takes `most` of them; 1 where the peak is 0.

  Never so large that `reach` steps overflow, unless the peak itself is infinite.
  """
  # Times the reciprocal: under jit XLA turns a division by a constant into that, and
  # the last bit would depend on whether a caller jits.
  step = peak * np.float32(1 / most)
  cap = np.nextafter(np.float32(HUGE / max(most, reach, 1.0)), np.float32(0))
  finite = jnp.clip(step, exponents.TINY, cap)
  step = jnp.where(jnp.isfinite(peak), finite, step)
  return jnp.where(peak == 0, jnp.float32(1), step)


def in_steps(x: jax.Array, step: jax.Array) -> jax.Array:
  """x / step, with one rounding of 1 / step and one of the product.

  Not a division: whether XLA multiplies by the reciprocal of a broadcast divisor
  depends on what it fuses, and ties would fall with it. The quarter keeps the
  reciprocal of steps above 2^126 a normal number.
  """
  quarter = jnp.where(step > 1, jnp.float32(0.25), jnp.float32(1))
  return x * quarter * (1 / (step * quarter))
