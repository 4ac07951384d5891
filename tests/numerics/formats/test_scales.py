"""Scales by hand: where a grid begins, and what FAST compares."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.numerics.formats import BlockFloat, Fixed


def test_an_affine_grid_holds_zero_and_both_ends():
  for low, high in ((5, 6), (-6, -5), (-1, 3)):
    x = jnp.linspace(low, high, 9)
    fmt = Fixed(8, grid="affine")
    step = fmt.scale(x).step
    assert float(step) == pytest.approx((max(high, 0) - min(low, 0)) / 255, rel=1e-6)
    assert np.abs(fmt.quantize(x) - x).max() <= step / 2 * 1.0001


@pytest.mark.parametrize("exponent", [1, 2, 3])
def test_a_short_exponent_reaches_as_many_powers_as_it_has_codes(exponent):
  """Blocks further below the largest one share the last of 2^exponent exponents."""
  fmt = BlockFloat(4, 2, exponent=exponent)
  x = np.repeat(2.0 ** -np.arange(12.0), 2).astype("f4")
  wanted = -np.minimum(np.arange(12), 2**exponent - 1)
  np.testing.assert_array_equal(fmt.scale(x), wanted)


def test_refinement_is_what_two_bits_more_change():
  x = np.random.default_rng(0).normal(size=(8, 64)).astype("f4")
  four, two = (np.asarray(BlockFloat(bits, 16).quantize(x)) for bits in (4, 2))
  assert np.any(np.abs(four) > np.abs(two)) and np.any(np.abs(four) < np.abs(two))
  wanted = np.abs(four - two).sum() / np.abs(two).sum()
  assert float(BlockFloat(3, 16).refinement(x)) == pytest.approx(wanted, rel=1e-6)
