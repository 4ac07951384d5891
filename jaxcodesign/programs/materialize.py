"""An array that is computed once, however many read it.

XLA's CPU compiler fuses what makes an array into everything that reads it, and removes
`optimization_barrier` before it does. A gradient whose blocks run along two axes is
read four times, by a peak and a rounding along each: the derivative of an activation
function would be computed four times, half of them in strides (measured: 19 ns a value
instead of 4). A call that is not inlined keeps the compiler out, costs no copy,
partitions as its operand does, and is there on the CPU alone.
"""

import jax
from jax.experimental.xla_metadata import set_xla_metadata
import jax.numpy as jnp


def materialized(x: jax.Array) -> jax.Array:
  """`x` itself, in memory before anything reads it where that has to be said.

  Args:
    x: Of any shape and type; gradients, vmap and shardings pass.
  """
  return jax.lax.platform_dependent(x, cpu=_called, default=_same)


def materialized_across(x: jax.Array) -> jax.Array:
  """`x` [..., M, K] itself, in memory as [..., K, M] before anything reads it."""
  return jnp.swapaxes(materialized(jnp.swapaxes(x, -1, -2)), -1, -2)


def _same(x: jax.Array) -> jax.Array:
  return x


def _called(x: jax.Array) -> jax.Array:
  with set_xla_metadata(inlineable="false"):
    return jax.jit(_same)(x)
