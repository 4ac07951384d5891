"""Scales chosen from data, and ranges that training learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcodesign
from jaxcodesign.numerics import formats
from jaxcodesign.numerics.formats import Fixed, Terms, calibration
from jaxcodesign.numerics.formats.calibration import Calibrated
from jaxcodesign.numerics.formats.learned import LSQ, PACT, DoReFa, lsq_step
from jaxcodesign.programs.precision import Rule

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (6, 48)) * 2
X = X.at[0, 0].set(40.0)  # an outlier


@pytest.mark.parametrize(
  "fmt",
  [
    Fixed(4), Fixed(4, "channel"), Fixed(3, 16), formats.BlockFloat(2),
    formats.MXFP4, formats.NVFP4, Terms(9), formats.E4M3, Fixed(4, grid="affine"),
  ],
)  # fmt: skip
def test_the_least_squared_error_of_all_scales_tried(fmt):
  error = lambda rounded: (np.array(rounded) - np.array(X)) ** 2
  ratios = np.linspace(1, 0.3, 8, dtype="f4")

  @jax.jit
  def both(x):
    scale = calibration.mse(fmt, x, grid=8)
    tried = jax.lax.map(lambda r: fmt.round(x, fmt.scale(x * r)), ratios)
    return fmt.round(x, scale), tried

  found, tried = both(X)
  found, tried = error(found), list(map(error, tried))
  assert found.sum() <= min(e.sum() for e in tried) * 1.0001
  if getattr(fmt, "share", None) == "channel":
    best = np.min([e.sum(-1) for e in tried], axis=0)
    np.testing.assert_allclose(found.sum(-1), best, rtol=1e-4)
  if getattr(fmt, "share", None) == 16:
    best = np.min([e.reshape(6, 3, 16).sum(-1) for e in tried], axis=0)
    np.testing.assert_allclose(found.reshape(6, 3, 16).sum(-1), best, rtol=1e-4)


def test_percentiles_and_maxima():
  limit = np.percentile(np.abs(X), 90)
  got = calibration.percentile(Fixed(8), X, 90)
  np.testing.assert_allclose(got, limit / 127, rtol=1e-5)
  rows = calibration.percentile(Fixed(8, "channel"), X, 90)
  np.testing.assert_allclose(rows, np.percentile(np.abs(X), 90, -1) / 127, rtol=1e-5)
  np.testing.assert_array_equal(calibration.maximum(Fixed(8), X), Fixed(8).scale(X))
  for bad in (0, 101):
    with pytest.raises(ValueError, match=r"outside \(0, 100\]"):
      calibration.percentile(Fixed(8), X, bad)
  with pytest.raises(ValueError, match="grid=0"):
    calibration.mse(Fixed(8), X, grid=0)


def test_a_calibrated_format_serves_every_batch():
  fmt = Calibrated(Fixed(4), calibration.percentile(Fixed(4), X, 95))
  fn = jax.jit(jaxcodesign.quantize(lambda p, x: x @ p["w"], [Rule("*", None, fmt)]))
  p = {"w": jnp.eye(48)}
  np.testing.assert_array_equal(fn(p, X)[1:], fn(p, X[1:]))  # whatever the batch holds
  assert fn(p, X)[0, 0] == 7 * fmt.stored and fmt.pointwise
  both = jax.jit(lambda x: (fmt.unpack(fmt.pack(x)), fmt.quantize(x)))
  np.testing.assert_array_equal(*both(X))
  with pytest.raises(ValueError, match=r"stored scale has shape \(6,\).*by \"tensor\""):
    Calibrated(Fixed(4, "channel"), jnp.ones(6)).quantize(X[1:])
  clip = lambda clip: jax.jit(jax.grad(
    lambda x: jnp.sum(
      jaxcodesign.quantize(
        lambda p, x: x @ p["w"], [Rule("*", None, fmt, clip=clip)]
      )(p, x)
    )
  ))(X)  # fmt: skip
  assert np.all(clip(False) == 1)
  np.testing.assert_array_equal(clip(True) == 0, np.abs(X) > 7 * fmt.stored)


def test_a_tensor_scale_from_data_seen_before_with_block_scales_taken_anew():
  seen = jax.random.normal(jax.random.key(0), (4, 32))
  known = calibration.maximum(formats.NVFP4, seen).tensor
  fmt = formats.ScaledBlocks(known=known)
  np.testing.assert_array_equal(fmt.quantize(seen), formats.NVFP4.quantize(seen))
  for factor in (0.3, 3.0):  # as under a scale of 1, in units of the scale
    x = factor * seen / known
    wanted = known * formats.ScaledBlocks(tensor=False).quantize(x)
    np.testing.assert_allclose(fmt.quantize(x * known), wanted, rtol=1e-6)
  packed = jax.jit(lambda fmt: fmt.pack(seen))(fmt)
  np.testing.assert_array_equal(fmt.unpack(packed), fmt.quantize(seen))
  for bad in (0.0, float("nan")):
    with pytest.raises(ValueError, match=r"known=.* is no scale"):
      formats.ScaledBlocks(known=bad)
  with pytest.raises(ValueError, match="tensor=False has no scale"):
    formats.ScaledBlocks(tensor=False, known=known)


@pytest.mark.parametrize("signed", [True, False])
def test_the_gradient_of_a_learned_step_is_the_papers(signed):
  bits, step, x = 3, 0.7, np.array(X)
  low, high = (-4, 3) if signed else (0, 7)
  weights = np.random.default_rng(0).normal(size=x.shape)
  loss = lambda fmt, x: jnp.sum(fmt.quantize(x) * jnp.float32(weights))
  by_fmt, by_x = jax.jit(jax.grad(loss, (0, 1)))(
    LSQ(jnp.float32(step), bits, signed), X
  )
  v = x / np.float32(step)
  inside = (v > low) & (v < high)
  change = np.where(inside, np.round(v) - v, np.where(v <= low, low, high))
  wanted = (weights * change).sum() / np.sqrt(x.size * high)
  np.testing.assert_allclose(by_fmt.step, wanted, rtol=1e-4)
  np.testing.assert_allclose(by_x, weights * inside, rtol=1e-6)
  value = np.round(np.clip(v, low, high)) * np.float32(step)
  np.testing.assert_allclose(LSQ(step, bits, signed).quantize(X), value, rtol=1e-6)
  start = 2 * np.abs(x).mean() / np.sqrt(high)
  np.testing.assert_allclose(lsq_step(X, bits, signed=signed), start, rtol=1e-5)


def test_the_gradient_of_a_learned_limit_is_the_papers():
  limit, x = 3.0, np.array(X)
  loss = lambda fmt, x: jnp.sum(fmt.quantize(x))
  by_fmt, by_x = jax.jit(jax.grad(loss, (0, 1)))(PACT(jnp.float32(limit), 4), X)
  assert float(by_fmt.limit) == (x >= limit).sum()
  np.testing.assert_array_equal(by_x, (x > 0) & (x < limit))
  clipped = 0.5 * (np.abs(x) - np.abs(x - limit) + limit)
  wanted = np.round(clipped * 15 / limit) * limit / 15
  np.testing.assert_allclose(PACT(limit, 4).quantize(X), wanted, rtol=1e-5, atol=1e-6)


def test_dorefa_is_its_formula():
  x, k = np.float64(X), 3
  q = lambda r: np.round((2**k - 1) * r) / (2**k - 1)
  tanh = np.tanh(x)
  wanted = 2 * q(tanh / (2 * np.abs(tanh).max()) + 0.5) - 1
  np.testing.assert_allclose(DoReFa(k).quantize(X), wanted, rtol=1e-5, atol=1e-6)
  slope = jax.jit(jax.grad(lambda x: jnp.sum(DoReFa(k).quantize(x))))(X)
  np.testing.assert_allclose(slope, (1 - tanh**2) / np.abs(tanh).max(), atol=1e-6)
  activation = DoReFa(k, "activation")
  np.testing.assert_allclose(activation.quantize(X), q(np.clip(x, 0, 1)), atol=1e-6)


@pytest.mark.parametrize(
  "fmt",
  [LSQ(0.3, 4), LSQ(0.3, 8, False), PACT(2.0, 3), DoReFa(4), DoReFa(2, "activation")],
)
def test_learned_formats_pack_and_keep_types(fmt):
  @jax.jit
  def see(x, keys):
    drawn = jax.vmap(lambda key: fmt.quantize(x, key))(keys)
    return fmt.unpack(fmt.pack(x)), fmt.quantize(x), jnp.mean(drawn, axis=0)

  stored, nearest, drawn = map(np.asarray, see(X, jax.random.split(KEY, 200)))
  np.testing.assert_array_equal(stored, nearest)
  for dtype in (jnp.bfloat16, jnp.float16):
    assert jax.eval_shape(fmt.quantize, X.astype(dtype)).dtype == dtype
  steps, x = np.unique(nearest), np.asarray(X)
  inside = (x > 0.1) & (x < 0.7)
  near = nearest if isinstance(fmt, DoReFa) else x
  assert np.abs(drawn - near)[inside].max() < np.diff(steps).min()


def test_steps_and_limits_learn_through_a_policy():
  keys = jax.random.split(jax.random.key(1), 3)
  x = jax.random.normal(keys[0], (64, 8))
  goal = jax.nn.relu(x @ jax.random.normal(keys[1], (8, 8)))
  p = {"a": jax.random.normal(keys[1], (8, 8)), "b": jnp.eye(8)}
  fn = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
  policy = (
    Rule("a", LSQ(jnp.float32(0.05), 3)),
    Rule("b", LSQ(jnp.float32(0.05), 3), PACT(jnp.float32(0.5), 4)),
  )
  loss = lambda pair: jnp.mean(
    (jaxcodesign.quantize(fn, pair[1])(pair[0], x) - goal) ** 2
  )
  optimizer = optax.adam(1e-2)
  pair, state = (p, policy), optimizer.init((p, policy))

  @jax.jit
  def update(pair, state):
    value, slope = jax.value_and_grad(loss)(pair)
    with jax.numpy_dtype_promotion("standard"):
      change, state = optimizer.update(slope, state)
    return optax.apply_updates(pair, change), state, value

  first = jax.jit(loss)(pair)
  for _ in range(150):
    pair, state, last = update(pair, state)
  assert last < 0.3 * first
  assert pair[1][1].activation.limit > 0.6 and pair[1][0].weight.step > 0.06


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: LSQ(0.1, 1), "bits=1 is outside"),
    (lambda: LSQ(0.0, 4), "step=0.0 must be positive; lsq_step"),
    (lambda: PACT(-1.0), "limit=-1.0 must be positive"),
    (lambda: DoReFa(4, "gradient"), "operand='gradient'"),
    (lambda: lsq_step(X, 99), "bits=99"),
  ],
)
def test_bad_ranges(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_integers_have_no_learned_range():
  with pytest.raises(TypeError, match="x is int32: cast it first"):
    LSQ(0.1).quantize(jnp.arange(3))
