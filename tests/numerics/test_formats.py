"""The contract every number format keeps. Add yours to FORMATS, write nothing else."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.numerics import formats

FORMATS = [
  formats.Fixed(),
  formats.Fixed(bits=2),
  formats.Fixed(bits=4, share="channel"),
  formats.Fixed(bits=6, share=8),
  formats.Fixed(bits=16, share="channel"),
  formats.Terms(budget=12),
  formats.Terms(budget=3, group=4, bits=5),
  formats.Terms(budget=2, group=1, share="channel"),
  formats.Terms(budget=9, group=8, encoding="hese3", share=8),
  formats.Terms(budget=9, group=16, encoding="binary"),
]
every_format = pytest.mark.parametrize("fmt", FORMATS, ids=repr)
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


@pytest.fixture
def x():
  return jax.random.normal(jax.random.key(0), (5, 16))


@every_format
def test_round_is_a_projection_and_odd(fmt, x):
  for dtype in DTYPES:
    values = x.astype(dtype)
    scale = fmt.scale(values)
    y = fmt.round(values, scale)
    np.testing.assert_array_equal(fmt.round(y, scale), y)
    np.testing.assert_array_equal(fmt.round(-values, scale), -y)


@every_format
def test_zero_shape_and_dtype_survive(fmt, x):
  for dtype in DTYPES:
    zero = jnp.zeros(x.shape, dtype)
    y = fmt.quantize(zero)
    assert (y.shape, y.dtype) == (zero.shape, zero.dtype) and not y.any()
    sparse = jnp.where(x > 0, x, 0).astype(dtype)
    assert not jnp.where(sparse == 0, fmt.quantize(sparse), 0).any()


@every_format
def test_values_lie_on_a_grid_of_the_stated_size(fmt, x):
  steps = np.asarray(fmt.round(x, jnp.ones_like(fmt.scale(x)) / 64) * 64)
  assert (steps == np.round(steps)).all()
  assert np.abs(steps).max() <= 2 ** (fmt.bits_per_value() - 1)


@every_format
def test_gradient_is_straight_through(fmt, x):
  weights = jnp.arange(x.size, dtype=x.dtype).reshape(x.shape)
  gradient = jax.grad(lambda x: jnp.sum(weights * fmt.quantize(x)))(x)
  np.testing.assert_array_equal(gradient, weights)


@every_format
def test_transformations_change_nothing(fmt, x):
  y = fmt.quantize(x)
  np.testing.assert_array_equal(jax.jit(lambda f, x: f.quantize(x))(fmt, x), y)
  scale = fmt.scale(x)
  if scale.ndim:
    rows = jax.vmap(lambda x: fmt.round(x, fmt.scale(x)))(x)
    np.testing.assert_array_equal(rows, y)


@every_format
def test_stochastic_rounding_is_keyed_and_unbiased(fmt, x):
  scale = fmt.scale(x)
  draw = jax.jit(jax.vmap(lambda key: fmt.round(x, scale, key)))
  draws = draw(jax.random.split(jax.random.key(1), 2000))
  again = draw(jax.random.split(jax.random.key(1), 2000))
  np.testing.assert_array_equal(draws, again)
  if isinstance(fmt, formats.Terms):
    return  # what is cut after the rounding is no longer unbiased
  error = np.asarray(draws.mean(0) - x)
  deviation = np.asarray(draws.std(0)) / np.sqrt(2000)
  assert np.abs(error).max() <= np.max(5 * deviation) + 1e-5


@every_format
def test_nan_poisons_what_shares_its_scale_and_nothing_else(fmt, x):
  y = np.asarray(fmt.quantize(x.at[2, 3].set(jnp.nan)))
  assert np.isnan(y[2, 3])
  if fmt.share != "tensor":
    np.testing.assert_array_equal(
      y[[0, 1, 3, 4]], fmt.quantize(x)[jnp.array([0, 1, 3, 4])]
    )
  else:
    assert np.isnan(y).all()


@pytest.mark.parametrize("fmt", FORMATS[5:], ids=repr)
def test_a_schedule_of_budgets_traces_once(fmt, x):
  chex.clear_trace_counter()
  quantize = jax.jit(chex.assert_max_traces(lambda f: f.quantize(x), n=1))
  replaced = [
    formats.Terms(b, fmt.group, fmt.bits, fmt.encoding, fmt.share) for b in (1, 4, 32)
  ]
  errors = [jnp.abs(quantize(f) - x).mean() for f in replaced]
  assert errors == sorted(errors, reverse=True)


@every_format
def test_a_format_is_a_tree_that_jax_may_fill_with_anything(fmt, x):
  zeros = jax.tree.map(jnp.zeros_like, fmt)
  assert jax.tree.structure(zeros) == jax.tree.structure(fmt)
  slope = jax.grad(lambda f: jnp.sum(f.quantize(x) ** 2), allow_int=True)(fmt)
  assert jax.tree.structure(slope) == jax.tree.structure(fmt)


@every_format
def test_integers_and_empty_arrays(fmt):
  with pytest.raises(TypeError, match="formats round floating point, not int32"):
    fmt.quantize(jnp.zeros((4, 16), jnp.int32))
  assert fmt.quantize(jnp.zeros((0, 16))).shape == (0, 16)


@every_format
def test_the_largest_values_stay_finite(fmt):
  for dtype in DTYPES:
    largest = jnp.full((2, 16), jnp.finfo(dtype).max, dtype)
    assert jnp.isfinite(fmt.quantize(largest)).all()


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_enough_budget_is_a_fixed_point_format(bits, x):
  for encoding in ("binary", "naf", "hese3", "booth4"):
    rich = formats.Terms(8 * bits, 8, bits, encoding)
    np.testing.assert_array_equal(rich.quantize(x), formats.Fixed(bits + 1).quantize(x))


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12])
def test_fixed_against_numpy(bits, x):
  values, most = np.asarray(x, np.float64), 2 ** (bits - 1) - 1
  for share, peak in (
    ("tensor", np.abs(values).max()),
    ("channel", np.abs(values).max(-1, keepdims=True)),
  ):
    step = (peak.astype(np.float32) * np.float32(1 / most)).astype(np.float64)
    wanted = np.clip(np.round(values / step), -most, most) * step
    found = formats.Fixed(bits, share).quantize(x)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


def test_terms_per_value():
  assert formats.Fixed(8).terms_per_value() == 4
  assert formats.Terms(12).terms_per_value() == 1.5
  assert formats.Terms(3, group=1).terms_per_value() == 3
  assert formats.Terms(1000).terms_per_value() == 4


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: formats.Fixed(1), "2 to 24 bits"),
    (lambda: formats.Fixed(8, "row"), "share='row'"),
    (lambda: formats.Terms(0), "budget=0"),
    (lambda: formats.Terms(np.float32(0.5)), "budget=0.5"),
    (lambda: formats.Terms(float("nan")), "budget=nan"),
    (lambda: formats.Terms(4).check(12), "group=8 does not"),
    (lambda: formats.Fixed(4, 5).check(12), "group=5 does not"),
    (lambda: formats.Terms(4, group=0), "group=0"),
    (lambda: formats.Terms(4, bits=0), "bits=0"),
    (lambda: formats.Terms(4, encoding="gray"), "encoding='gray'"),
    (lambda: formats.Terms(4, 8).quantize(jnp.ones((3, 12))), "group=8 does not"),
    (lambda: formats.Fixed(4, 5).quantize(jnp.ones((3, 12))), "group=5 does not"),
  ],
)
def test_bad_formats_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
