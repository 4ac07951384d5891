"""Where an operand saturates no gradient flows to it, and to its range all of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import quantize
from jaxcodesign.numerics.formats import (
  MXFP8_E4M3,
  NVFP4,
  BlockFloat,
  Fixed,
  Microscaling,
  Terms,
)
from jaxcodesign.numerics.formats.calibration import Calibrated
from jaxcodesign.numerics.formats.learned import LSQ, PACT
from jaxcodesign.numerics.formats.minifloat import E2M1
from jaxcodesign.programs.precision import Rule


def slopes(fmt, x, fn=lambda params, x: x @ params):
  """Gradients of the sum of rounded `x` [N, K] by the format and by `x`."""

  def total(fmt, x):
    rounded = quantize(fn, [Rule("*", None, fmt, clip=True)])
    return jnp.sum(rounded(jnp.eye(x.shape[-1], dtype=x.dtype), x))

  return jax.jit(jax.grad(total, (0, 1), allow_int=True))(fmt, x)


def test_a_learned_range_has_its_gradient():
  x = jnp.asarray([[-1.0, 0.2, 0.9, 2.0]])
  by_pact, by_x = slopes(PACT(1.0, 4), x)
  assert float(by_pact.limit) == 1.0
  np.testing.assert_array_equal(by_x, [[0, 1, 1, 0]])
  by_lsq, by_x = slopes(LSQ(0.1, 4), x)
  # The steps are -8, 2, 7, 7: at both ends counts -8 + 7 + 7, inside round(2) - 2.
  assert float(by_lsq.step) == pytest.approx(6 / math.sqrt(28), rel=1e-6)
  np.testing.assert_array_equal(by_x, [[0, 1, 0, 0]])


@pytest.mark.parametrize(("seen", "x"), [((0, 1), (-1, 2)), ((-1, 0), (-2, 1))])
def test_an_end_that_is_zero_is_an_end(seen, x):
  affine = Fixed(8, grid="affine")
  fmt = Calibrated(affine, affine.scale(jnp.asarray(seen, jnp.float32)))
  _, by_x = slopes(fmt, jnp.asarray([x], jnp.float32))
  np.testing.assert_array_equal(by_x, [[0, 0]])
  _, by_x = slopes(fmt, jnp.asarray([seen], jnp.float32))
  np.testing.assert_array_equal(by_x, [[1, 1]])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  "fmt",
  [
    *(Fixed(bits, "channel") for bits in (4, 6, 8)),
    Terms(12, share="channel"),
    Microscaling(E2M1, 16, "ceil"),
  ],
  ids=repr,
)
def test_a_peak_that_just_fits_is_inside(fmt, dtype):
  x = jax.random.normal(jax.random.key(0), (500, 64)).astype(dtype)
  _, by_x = slopes(fmt, x)
  np.testing.assert_array_equal(by_x.astype(jnp.float32), 1)


@pytest.mark.parametrize("fmt", [BlockFloat(4), MXFP8_E4M3, NVFP4], ids=repr)
def test_a_peak_beyond_its_grid_saturates(fmt):
  x = jax.random.normal(jax.random.key(0), (500, 64))
  _, by_x = slopes(fmt, x)
  y = jax.jit(fmt.quantize)(x)
  blocks = lambda z: np.abs(np.asarray(z)).reshape(500, -1, 16)
  largest = blocks(x) == blocks(x).max(-1, keepdims=True)
  beyond = largest & (blocks(x) > blocks(y) * (1 + 1e-5)) & (blocks(by_x) == 0)
  assert beyond.any() and np.all((blocks(by_x) == 1) | (blocks(x) > blocks(y)))


@pytest.mark.parametrize(
  "w", [((1.0, 30.0), (0.5, 100.0)), np.ones((64, 48)), np.ones((5, 7))], ids=np.shape
)
def test_a_calibrated_weight_is_the_same_in_both_passes(w):
  """Its scales are of outputs, whichever axis a backward product is summed along."""
  fmt, w = Fixed(8, "channel"), jnp.asarray(w, jnp.float32)
  known = Calibrated(fmt, fmt.scale(w.T[None]))
  run = quantize(lambda w, x: x @ w, [Rule("*", known, None, gradient=Fixed(16))])
  by_x = jax.jit(jax.grad(lambda x: jnp.sum(run(w, x))))(jnp.ones((1, len(w))))
  rounded = jax.jit(fmt.quantize)(w.T).T
  np.testing.assert_allclose(by_x[0], rounded.sum(1), rtol=1e-6)
  if w.shape == (2, 2):
    np.testing.assert_allclose(by_x, [[30.92, 100.50]], atol=0.005)
