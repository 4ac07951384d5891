"""Scales by hand: where a grid begins, and what FAST compares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.numerics import formats
from jaxcodesign.numerics.formats import NVFP4, BlockFloat, DoReFa, Fixed
from jaxcodesign.programs.precision import Rule

BAD = (np.nan, np.inf)


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


@pytest.mark.parametrize(
  ("fmt", "bad"),
  [
    *((Fixed(8, grid=grid), bad) for grid in ("symmetric", "affine") for bad in BAD),
    *((fmt, bad) for fmt in (Fixed(4, 8, grid="affine"), NVFP4) for bad in BAD),
    (DoReFa(4), np.nan),  # the tanh of an infinity is a number
  ],
  ids=str,
)
def test_what_is_no_number_poisons_a_long_array_too(fmt, bad):
  """On CPUs a maximum of floats loses a NaN where it runs over more than a few."""
  quantize = jax.jit(fmt.quantize)
  x = np.random.default_rng(0).normal(size=(64, 1024)).astype("f4")
  for place in (0, 5000, 64 * 1024 - 1):
    x.flat[place], kept = bad, x.flat[place]
    y = np.asarray(quantize(x))
    x.flat[place] = kept
    shared = slice(None) if getattr(fmt, "share", "tensor") == "tensor" else place
    assert np.isnan(y.flat[shared]).all()


@pytest.mark.parametrize(
  "made",
  [
    lambda: Fixed(True),
    lambda: Fixed(8.0),
    lambda: formats.Minifloat(4.0, 3),
    lambda: BlockFloat("4"),
    lambda: BlockFloat(4, exponent=8.0),
    lambda: formats.Terms(8, 8.0),
    lambda: formats.Terms("8"),
    lambda: formats.Logarithmic(4, False),
    lambda: Rule(weight="int8"),
    lambda: Rule(gradient=8),
  ],
)
def test_what_is_no_width_is_refused_when_it_is_made(made):
  with pytest.raises(TypeError, match=r"is no (int|number)"):
    made()
