"""The fMAC: dot products of block floating-point groups in chunks of two mantissa bits.

Two groups of sign and magnitude mantissas, with m_x and m_y bits and one exponent each,
take ceil(m_x / 2) * ceil(m_y / 2) passes. A pass multiplies one 2-bit chunk of every
value by one of its partner, adds the group's products as integers in a tree, and shifts
the sum to the chunks' place. After the last pass one addition of exponents makes a
floating-point number of it, which is added to the float32 accumulator.

Reference: Zhang, McDanel, Kung. "FAST: DNN Training Under Variable Precision Block
Floating Point with Stochastic Rounding", HPCA 2022.
"""

from functools import partial
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxcodesign.hardware.simulators.bit_words import check_magnitude

CHUNK_BITS = 2


def passes(left_bits: int, right_bits: int) -> int:
  """Passes of a pair of groups: 1 for 2 x 2 bits, 2 for 4 x 2, 4 for 4 x 4."""
  return -(-left_bits // CHUNK_BITS) * -(-right_bits // CHUNK_BITS)


def simulate(
  left: jax.Array,
  left_exponent: jax.Array,
  right: jax.Array,
  right_exponent: jax.Array,
  *,
  left_bits: int,
  right_bits: int,
) -> tuple[jax.Array, jax.Array]:
  """Runs the product of two block floating-point matrices, pass by pass.

  Args:
    left: int32 [m, groups, g] signed mantissas, magnitudes below 2^left_bits.
    left_exponent: int32 [m, groups]; a value is mantissa * 2^exponent.
    right: int32 [n, groups, g] signed mantissas, magnitudes below 2^right_bits.
    right_exponent: int32 [n, groups].
    left_bits: Mantissa bits m_x.
    right_bits: Mantissa bits m_y.

  Returns:
    float32 [m, n], groups added in order, and int32 [groups, passes], cells [m, n] that
    had a product other than zero to add. A cell takes groups * passes cycles.

  Raises:
    ValueError: If shapes do not fit, a mantissa has no bits, or known mantissas have
      more than they should.
  """
  if min(left_bits, right_bits) < 1:
    raise ValueError(f"mantissas of {left_bits} and {right_bits} bits: at least 1")
  for name, x, bits in (("left", left, left_bits), ("right", right, right_bits)):
    check_magnitude(name, x, bits)
  return _simulate(
    left,
    left_exponent,
    right,
    right_exponent,
    left_bits=left_bits,
    right_bits=right_bits,
  )


@partial(jax.jit, static_argnames=("left_bits", "right_bits"))
def _simulate(
  left: jax.Array,
  left_exponent: jax.Array,
  right: jax.Array,
  right_exponent: jax.Array,
  *,
  left_bits: int,
  right_bits: int,
) -> tuple[jax.Array, jax.Array]:
  shapes = (left.shape[:2], right.shape[:2])
  fit = left.ndim == right.ndim == 3 and left.shape[1:] == right.shape[1:]
  if not fit or shapes != (left_exponent.shape, right_exponent.shape):
    raise ValueError(
      f"mantissas {left.shape} and {right.shape} with exponents {left_exponent.shape} "
      f"and {right_exponent.shape}: [m, groups, g], [n, groups, g] and [m, groups], "
      "[n, groups] are needed"
    )
  across = -(-right_bits // CHUNK_BITS)
  steps = jnp.arange(passes(left_bits, right_bits))
  shape = (left.shape[0], right.shape[0])

  def group(total: jax.Array, operands: Any) -> Any:
    x, ex, y, ey = operands

    def one_pass(sums: jax.Array, step: jax.Array) -> Any:
      i, j = CHUNK_BITS * (step // across), CHUNK_BITS * (step % across)
      tree = jnp.matmul(chunk(x, i), chunk(y, j).T, preferred_element_type=jnp.int32)
      return sums + (tree << (i + j)), jnp.sum((tree != 0).astype(jnp.int32))

    sums, busy = lax.scan(one_pass, jnp.zeros(shape, jnp.int32), steps)
    exponent = ex[:, None] + ey[None]
    return total + jnp.ldexp(sums.astype(jnp.float32), exponent), busy

  by_group = lambda z: jnp.swapaxes(z, 0, 1)
  operands = jax.tree.map(by_group, (left, left_exponent, right, right_exponent))
  return lax.scan(group, jnp.zeros(shape, jnp.float32), operands)


def chunk(x: jax.Array, at: jax.Array) -> jax.Array:
  """Two magnitude bits of each signed mantissa [...] from bit `at`, with its sign."""
  return jnp.sign(x) * (jnp.abs(x) >> at & ((1 << CHUNK_BITS) - 1))
