"""The fMAC against the block formats and numpy, bit for bit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.simulators import fmac
from jaxcodesign.numerics.formats import BlockFloat


@pytest.mark.parametrize(("left_bits", "right_bits"), [(2, 2), (4, 2), (4, 4), (3, 7)])
def test_fmac_is_the_product_of_the_block_formats(left_bits, right_bits):
  rng = np.random.default_rng(3)
  x = jnp.asarray(rng.normal(size=(6, 64)), jnp.float32)
  y = jnp.asarray(rng.normal(size=(5, 64)), jnp.float32)

  @partial(jax.jit, static_argnames="bits")
  def coded(values, bits):
    fmt = BlockFloat(mantissa=bits, block=16)
    scale = fmt.scale(values)
    whole = fmt.elements(values, scale, None).astype(jnp.int32)
    return whole.reshape(-1, 4, 16), scale - (bits - 1), fmt.quantize(values)

  left, left_exponent, rounded = coded(x, left_bits)
  right, right_exponent, other = coded(y, right_bits)
  product, busy = fmac.simulate(
    left,
    left_exponent,
    right,
    right_exponent,
    left_bits=left_bits,
    right_bits=right_bits,
  )
  assert busy.shape == (4, fmac.passes(left_bits, right_bits))
  expected = np.zeros((6, 5), np.float32)  # exact within a group, float32 over groups
  wide = lambda z: np.asarray(z, np.float64).reshape(-1, 4, 16)
  for g in range(4):
    expected += (wide(rounded)[:, g] @ wide(other)[:, g].T).astype(np.float32)
  np.testing.assert_array_equal(product, expected)


def test_passes_are_the_published_ones():
  assert [fmac.passes(*m) for m in ((2, 2), (4, 2), (4, 4))] == [1, 2, 4]
