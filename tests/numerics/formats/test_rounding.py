"""Straight-through is exact, stochastic is unbiased, a smooth ceiling is smooth."""

import functools

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from jaxcodesign.numerics.formats import learned, rounding


def test_straight_through_is_exact_where_the_textbook_is_not():
  x = jax.random.normal(jax.random.key(0), (10_000,))
  y = jnp.sign(x) * jnp.abs(x).mean()  # binary weights
  textbook = np.asarray(x + (y - x))
  assert np.mean(textbook != np.asarray(y)) > 0.01
  np.testing.assert_array_equal(jax.jit(rounding.straight_through)(x, y), y)


@pytest.mark.parametrize("special", [jnp.inf, -jnp.inf, jnp.nan, 1e38, -0.0])
def test_straight_through_keeps_special_values(special):
  x = jnp.array([special, 1.0])
  np.testing.assert_array_equal(rounding.straight_through(x, x), x)
  slope = jax.grad(lambda x: rounding.straight_through(x, jnp.round(x)).sum())(x)
  np.testing.assert_array_equal(slope, [1.0, 1.0])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_of_any_order_are_those_of_the_textbook(order):
  slope, stop = 0.1, jax.lax.stop_gradient
  textbook = {
    lambda x: rounding.straight_through(x, jnp.round(x)): (
      lambda x: x + stop(jnp.round(x) - x)
    ),
    lambda x: learned._slower(x, slope): lambda x: slope * x + stop((1 - slope) * x),
  }
  for ours, theirs in textbook.items():
    for nested in (jax.grad, jax.jacfwd):
      found, wanted = (
        functools.reduce(lambda f, _: nested(f), range(order), lambda x: fn(x) ** 3)
        for fn in (ours, theirs)
      )
      np.testing.assert_allclose(found(1.3), wanted(1.3), rtol=1e-6)


def test_ties_go_to_even():
  ties = jnp.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
  np.testing.assert_array_equal(rounding.to_integer(ties), [-2, -2, 0, 0, 2, 2])


def test_stochastic_rounding_is_unbiased_and_keeps_integers():
  x = jnp.array([-1.75, -0.1, 0.0, 0.3, 2.0, 7.5])
  keys = jax.random.split(jax.random.key(3), 40_000)
  draws = jax.jit(jax.vmap(lambda key: rounding.to_integer(x, key)))(keys)
  assert set(np.unique(draws - jnp.floor(x)[None])) <= {0.0, 1.0}
  np.testing.assert_array_equal(draws[:, 4], 2.0)
  np.testing.assert_allclose(draws.mean(0), x, atol=5 * 0.5 / 200)


def test_ceil_at_temperature_zero_is_exact():
  x = jnp.array([0.0, 1.0, 1.0001, 2.5, -0.5, 1e7])
  np.testing.assert_array_equal(rounding.smooth_ceil(x, 0.0), jnp.ceil(x))
  np.testing.assert_array_equal(rounding.straight_through_ceil(x), jnp.ceil(x))
  slope = jax.grad(lambda x: rounding.straight_through_ceil(x).sum())(x)
  np.testing.assert_array_equal(slope, jnp.ones_like(x))


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0, 3.0])
def test_smooth_ceil_rises_and_has_the_slope_of_a_poisson_kernel(temperature):
  x = jnp.linspace(0.01, 6.0, 997)
  ceil = lambda x: rounding.smooth_ceil(x, temperature)
  y, slope = jax.jit(jax.vmap(jax.value_and_grad(ceil)))(x)
  r, shift = np.exp(-temperature), np.tanh(np.sqrt(temperature) / 4) / 2
  angle = 2 * np.pi * (np.asarray(x, "f8") - shift)
  kernel = (1 - r**2) / (1 - 2 * r * np.cos(angle) + r**2)
  np.testing.assert_allclose(slope, kernel, rtol=2e-3)
  assert (jnp.diff(y) > 0).all() and (jnp.abs(y - x + shift - 0.5) <= 0.5).all()
  with jax.enable_x64(True):  # differences of single precision are noise
    check_grads(jax.jit(ceil), (np.asarray(x[::50], "f8"),), order=1, eps=1e-5)


def test_smooth_ceil_tends_to_ceil():
  x = jnp.array([0.2, 0.5, 1.0, 2.9, 4.0])
  errors = [
    float(jnp.abs(rounding.smooth_ceil(x, t) - jnp.ceil(x)).max())
    for t in (1.0, 1e-2, 1e-4, 1e-6)
  ]
  assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-2


def test_temperature_zero_has_finite_gradients():
  slope = jax.grad(lambda x, t: rounding.smooth_ceil(x, t).sum(), argnums=(0, 1))
  x, t = slope(jnp.array([0.5, 1.0]), 0.0)
  assert not x.any() and np.isfinite(t)
