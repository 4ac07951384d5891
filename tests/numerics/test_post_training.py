"""GPTQ against its formula in float64, and every format against rounding to nearest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.numerics import formats, post_training
from jaxcodesign.numerics.formats import Fixed, Terms
from jaxcodesign.numerics.formats.calibration import Calibrated

N, K, M = 6, 32, 200
# On the grid of another array, in one compilation for both.
round_to = jax.jit(lambda fmt, x, like: fmt.round(x, fmt.scale(like)))


def quantize(fmt, x):
  return round_to(fmt, x, x)


FAMILIES = [
  Fixed(4, "channel"), Fixed(3, 16), Fixed(4, "tensor", grid="affine"), formats.E2M1,
  formats.MXFP4, formats.NVFP4, formats.BlockFloat(2, block=8),
  formats.BlockFloat(3, block=8, exponent=3), formats.Logarithmic(3), Terms(8),
  Terms(2, group=1), Terms(10, group=8, share=16),
]  # fmt: skip


@pytest.fixture(scope="module")
def layer():
  rng = np.random.default_rng(0)
  mix = rng.normal(size=(K, K)) / K**0.5 + 0.3 * np.eye(K)
  x = rng.normal(size=(M, K)) @ mix * np.exp(rng.normal(size=K))
  return jnp.float32(rng.normal(size=(N, K))), jnp.float32(x)


def output_error(weight, rounded, x):
  return float(np.sum((np.float64(x) @ np.float64(rounded - weight).T) ** 2))


def obvious_gptq(fmt, weight, x, width, damp=0.01):
  """One unit after the other, the inverse of what remains found anew each time."""
  w, out = np.float64(weight), np.zeros(weight.shape)
  h = np.float64(x).T @ np.float64(x) / len(x)
  h += damp * np.mean(np.diag(h)) * np.eye(K)
  for start in range(0, K, width):
    here, rest = np.arange(start, start + width), np.arange(start, K)
    # Rounding whole rows finds every scale its place.
    rounded = np.array(round_to(fmt, np.float32(w), weight))[:, here]
    inverse = np.linalg.inv(h[np.ix_(rest, rest)])
    off = np.linalg.solve(inverse[:width, :width].T, (w[:, here] - rounded).T).T
    w[:, rest] -= off @ inverse[:width]
    out[:, here] = w[:, here] = rounded
  return out


@pytest.mark.parametrize(
  ("fmt", "width"),
  [
    (Fixed(4, "channel"), 1), (Fixed(3, 16), 1), (formats.MXFP4, 1),
    (formats.NVFP4, 1), (Terms(12), 8), (Terms(14, group=8, share=16), 16),
  ],
)  # fmt: skip
def test_gptq_is_its_formula(layer, fmt, width):
  weight, x = layer
  got = np.array(post_training.gptq(fmt, weight, x, block=8))
  wanted = obvious_gptq(fmt, weight, x, width)
  worse = [output_error(weight[i], wanted[i], x) > output_error(weight[i], r, x)
           for i, r in enumerate(quantize(fmt, weight))]  # fmt: skip
  wanted = np.where(np.array(worse)[:, None], quantize(fmt, weight), wanted)
  # A value on the border of two steps may fall otherwise in float32; few do.
  assert np.mean(~np.isclose(got, wanted, rtol=1e-5, atol=1e-6)) < 0.03
  if not any(worse):
    assert output_error(weight, got, x) < 1.02 * output_error(weight, wanted, x)


@pytest.mark.parametrize("fmt", FAMILIES, ids=repr)
def test_every_format_gains_and_stays_on_its_grid(layer, fmt):
  weight, x = layer
  nearest = output_error(weight, quantize(fmt, weight), x)
  rounded = post_training.gptq(fmt, weight, x)
  np.testing.assert_array_equal(round_to(fmt, rounded, weight), rounded)
  assert output_error(weight, rounded, x) < 0.95 * nearest
  factors, scaled = post_training.awq(fmt, weight, x)
  np.testing.assert_array_equal(quantize(fmt, weight * factors[None]), scaled)
  assert output_error(weight, scaled / factors[None], x) <= 1.001 * nearest


def test_white_activations_leave_rounding_to_nearest(layer):
  weight = layer[0]
  for fmt in (Fixed(4, "channel"), Terms(9)):
    got = post_training.gptq(fmt, weight, jnp.eye(K))
    np.testing.assert_array_equal(got, quantize(fmt, weight))


def test_order_and_blocks_and_dead_channels(layer):
  weight, x = layer
  fmt, x = Fixed(3, "channel"), x.at[:, 5].set(0)
  plain = post_training.gptq(fmt, weight, x)
  blocks = post_training.gptq(fmt, weight, x, block=5)  # does not divide 32
  assert np.mean(~np.isclose(plain, blocks, atol=1e-6)) < 0.03
  np.testing.assert_array_equal(plain[:, 5], quantize(fmt, weight)[:, 5])
  ordered = post_training.gptq(fmt, weight, x, order=True)
  assert not np.array_equal(ordered, plain)
  nearest = output_error(weight, quantize(fmt, weight), x)
  assert output_error(weight, ordered, x) < 0.9 * nearest
  assert np.isfinite(post_training.awq(fmt, weight, x)[1]).all()
  assert post_training.smooth(weight, x)[5] == 1


def test_awq_picks_the_best_power(layer):
  weight, x = layer
  fmt, mean = Fixed(3, "channel"), np.abs(np.array(layer[1])).mean(0)
  errors = []
  for power in np.arange(20) / 20:
    f = np.maximum(mean**power, 1e-4)
    f = jnp.float32(f / np.sqrt(f.max() * f.min()))
    errors.append(output_error(weight, quantize(fmt, weight * f[None]) / f[None], x))
  factors, scaled = post_training.awq(fmt, weight, x)
  found = output_error(weight, scaled / factors[None], x)
  np.testing.assert_allclose(found, min(errors), rtol=1e-3)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_smoothing_moves_range_and_keeps_the_product(layer, strength):
  weight, x = layer
  f = post_training.smooth(weight, x, strength)
  np.testing.assert_allclose(
    (x / f[None]) @ (weight * f[None]).T, x @ weight.T, rtol=1e-3, atol=1e-3
  )
  peak = lambda a: np.abs(a).max(0)
  np.testing.assert_allclose(
    f, peak(x) ** strength / peak(weight) ** (1 - strength), rtol=1e-5
  )


@pytest.mark.parametrize(
  ("use", "error", "message"),
  [
    (lambda w, x: post_training.smooth(w, x, 2.0), ValueError, "strength=2.0"),
    (lambda w, x: post_training.gptq(Fixed(4), w.T, x), ValueError, "last axis"),
    (lambda w, x: post_training.gptq(Fixed(4), w, x[0]), ValueError, "activation has"),
    (lambda w, x: post_training.gptq(Fixed(4), w, x, damp=0), ValueError, "damp=0"),
    (
      lambda w, x: post_training.gptq(Fixed(4, 8), w, x, order=True),
      ValueError,
      "order=True moves columns apart",
    ),
    (
      lambda w, x: post_training.gptq(Fixed(4, 7), w, x),
      ValueError,
      "group=7 does not divide",
    ),
    (
      lambda w, x: post_training.awq(Fixed(4), w, x.astype(int)),
      TypeError,
      "activation is int32",
    ),
    (
      lambda w, x: post_training.awq(Fixed(4), w, x.at[0, 0].set(jnp.nan)),
      ValueError,
      "activation has values that are not finite",
    ),
    (lambda w, x: post_training.awq(Fixed(4), w, x, grid=0), ValueError, "grid=0"),
  ],
)
def test_bad_input(layer, use, error, message):
  with pytest.raises(error, match=message):
    use(*layer)


def test_under_jit_with_a_traced_budget(layer):
  weight, x = layer
  run = jax.jit(lambda budget: post_training.gptq(Terms(budget), weight, x))
  np.testing.assert_allclose(
    run(jnp.float32(9)), post_training.gptq(Terms(9), weight, x), rtol=1e-4, atol=1e-4
  )


def test_units():
  assert post_training.unit(Terms(8, group=8, share=12)) == 24
  assert post_training.unit(formats.MXFP4) == 32
  assert post_training.unit(Fixed(4, "channel")) == 1
  assert post_training.unit(Calibrated(Fixed(4), jnp.float32(1))) == 1


@pytest.mark.parametrize("fmt", [Fixed(3, "channel"), formats.MXFP4, Terms(8)], ids=str)
def test_units_of_activations_and_weights_change_nothing(layer, fmt):
  """Powers of two, as far as squares of them overflow or vanish."""
  weight, x = layer
  wanted = post_training.gptq(fmt, weight, x)
  factors, rounded = post_training.awq(fmt, weight, x)
  for power in (-62, 62):
    unit = jnp.float32(2.0**power)
    np.testing.assert_array_equal(post_training.gptq(fmt, weight, x * unit), wanted)
    found = post_training.gptq(fmt, weight * unit, x)
    np.testing.assert_array_equal(found, wanted * unit)
    again = post_training.awq(fmt, weight, x * unit)
    np.testing.assert_array_equal(again[0], factors)
    np.testing.assert_array_equal(again[1], rounded)
    np.testing.assert_array_equal(
      post_training.awq(fmt, weight * unit, x)[1], rounded * unit
    )
