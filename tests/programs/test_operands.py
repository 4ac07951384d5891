"""An operand is rounded to the same bits however its axes are looked at."""

import jax
import numpy as np
import pytest

from jaxcodesign.numerics.formats import MXFP8_E4M3, BlockFloat, Fixed, noise
from jaxcodesign.programs import operands

X = jax.random.normal(jax.random.key(0), (2, 5, 9 * 32))
X = X * jax.numpy.exp(5 * jax.random.normal(jax.random.key(1), X.shape))
FORMATS = (
  BlockFloat(4),
  BlockFloat(3, exponent=4),
  BlockFloat(4, 12),  # divides no 32 channels: merged as ever
  MXFP8_E4M3,
  Fixed(8),
)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("bits", [None, 8])
def test_taps_and_channels_apart_change_no_bit(fmt, bits):
  source = noise.Counter(jax.random.key(2), bits) if bits else None
  merged, apart = jax.jit(
    lambda x: [
      operands.round_operand(None, "", False, fmt, x, source, False, taps)
      for taps in (1, 9)
    ]
  )(X)
  np.testing.assert_array_equal(merged, apart)
  assert not np.array_equal(merged, X)
