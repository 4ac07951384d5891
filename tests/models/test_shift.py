"""A shift is a depthwise convolution with one 1 in each kernel, without a product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import trace
from jaxcodesign.models.shift import Shift, draw, shift

NINE = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1))


def depthwise(x, shifts):
  kernels = np.zeros((3, 3, 1, len(shifts)), np.float32)
  for c, (down, right) in enumerate(shifts):
    kernels[1 + down, 1 + right, 0, c] = 1
  return jax.lax.conv_general_dilated(
    x,
    kernels,
    (1, 1),
    ((1, 1), (1, 1)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=len(shifts),
  )


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 4), (5, 7), (4, 4)])
def test_all_nine_shifts_and_their_gradients(size):
  rng = np.random.default_rng(0)
  x, dy = rng.normal(size=(2, 3, *size, 9)).astype("f4")

  def both(fn, x, dy):
    y, back = jax.vjp(lambda x: fn(x, NINE), x)
    return y, *back(dy)

  found = jax.jit(both, static_argnums=0)(shift, x, dy)
  for a, b in zip(found, jax.jit(both, static_argnums=0)(depthwise, x, dy)):
    np.testing.assert_array_equal(a, b)


def test_the_way_it_goes():
  x = jnp.arange(1.0, 7).reshape(1, 2, 3, 1)
  assert shift(x, ((1, 0),))[0, :, :, 0].tolist() == [[4, 5, 6], [0, 0, 0]]
  assert shift(x, ((0, -1),))[0, :, :, 0].tolist() == [[0, 1, 2], [0, 4, 5]]


def test_a_batch_and_other_types():
  x = jnp.arange(48, dtype=jnp.int8).reshape(2, 2, 3, 4)
  shifts = draw(4, 0)
  whole = shift(x, shifts)
  assert whole.dtype == jnp.int8
  np.testing.assert_array_equal(jax.vmap(lambda i: shift(i[None], shifts)[0])(x), whole)


def test_infinity_stays_in_its_channel():
  x = jnp.full((1, 3, 3, 2), 1.0).at[..., 0].set(jnp.inf)
  assert np.all(np.isfinite(shift(x, ((1, 1), (-1, 0)))[..., 1]))


def test_a_seed_determines_the_shifts():
  assert draw(64, 3) == draw(64, 3) == Shift(64, 3).shifts
  assert draw(64, 3) != draw(64, 4) and draw(64, (3, 0)) != draw(64, (3, 1))


def test_shifts_are_drawn_with_the_published_probabilities():
  drawn = np.array(draw(20_000, 0))
  for axis in (0, 1):
    shares = [np.mean(drawn[:, axis] == s) for s in (-1, 0, 1)]
    np.testing.assert_allclose(shares, (0.3, 0.4, 0.3), atol=0.015)
  assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.03


def test_it_is_one_move_and_no_product():
  x = jax.ShapeDtypeStruct((1, 8, 8, 16), jnp.float32)
  work = trace(lambda _, x: shift(x, draw(16, 0)))((), x)
  assert not work.gemms
  assert [(v.op, v.elements) for v in work.vector_ops] == [("gather", 8 * 8 * 16)]
