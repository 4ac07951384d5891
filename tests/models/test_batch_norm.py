"""Batch normalization against numpy, flax and itself over many batches."""

from flax import nnx
import jax
from jax.test_util import check_grads
import numpy as np
import pytest

from jaxcodesign.models.batch_norm import BatchNorm

pytestmark = pytest.mark.unoptimized

CHANNELS = 6


def batch(seed=0, mean=0.7, shape=(4, 3, 5)):
  rng = np.random.default_rng(seed)
  spread = np.linspace(0.5, 3, CHANNELS)
  return (mean + spread * rng.normal(size=(*shape, CHANNELS))).astype("f4")


def disturbed(layer, seed=1):
  """`layer` with other values than those it begins with."""
  rng = np.random.default_rng(seed)
  for name in ("scale", "bias", "mean", "var"):
    getattr(layer, name)[...] = rng.uniform(0.5, 2, CHANNELS).astype("f4")
  return layer


def run(layer, x, train):
  """What it returns and its running moments afterwards, jitted."""
  graph, state = nnx.split(layer)

  @jax.jit
  def apply(state, x):
    layer = nnx.merge(graph, state)
    y = layer(x, train)
    return y, layer.mean[...], layer.var[...]

  return apply(state, x)


@pytest.mark.parametrize("train", [False, True])
def test_it_is_its_definition(train):
  layer = disturbed(BatchNorm(CHANNELS, momentum=0.8))
  x = batch()
  scale, bias, mean, var = (
    np.float64(getattr(layer, name)[...]) for name in ("scale", "bias", "mean", "var")
  )
  wide = x.astype(np.float64)
  moments = (wide.mean((0, 1, 2)), wide.var((0, 1, 2))) if train else (mean, var)
  y = (wide - moments[0]) / np.sqrt(moments[1] + 1e-5) * scale + bias
  found = run(layer, x, train)
  after = [0.8 * old + 0.2 * new for old, new in zip((mean, var), moments)]
  for a, b in zip(found, (y, *after)):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_it_is_that_of_flax():
  ours = disturbed(BatchNorm(CHANNELS, momentum=0.9))
  flax = disturbed(nnx.BatchNorm(CHANNELS, momentum=0.9, rngs=nnx.Rngs(0)))
  for train in (True, False):
    y = flax(batch(), use_running_average=not train)
    expected = y, flax.mean[...], flax.var[...]
    for a, b in zip(run(ours, batch(), train), expected):
      np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    ours(batch(), train)


def test_running_moments_converge_to_those_of_the_data():
  layer = BatchNorm(CHANNELS, momentum=0.9)
  graph, state = nnx.split(layer)

  @jax.jit
  def step(state, x):
    layer = nnx.merge(graph, state)
    layer(x, True)
    return nnx.state(layer)

  for seed in range(120):
    state = step(state, batch(seed, shape=(64,)))
  layer = nnx.merge(graph, state)
  # Means of 0.9^n weighted batches of 64: standard errors of 3 % and 4 %.
  spread = np.linspace(0.5, 3, CHANNELS)
  assert np.all(np.abs(layer.mean[...] - 0.7) < 0.12 * spread)
  assert np.all(np.abs(layer.var[...] / spread**2 - 1) < 0.2)


def test_a_large_mean_does_not_cancel_once_it_is_known():
  layer = BatchNorm(CHANNELS, momentum=0.9)
  layer.mean[...] = np.full(CHANNELS, 1000, np.float32)
  x = batch(mean=1000)
  y, _, var = run(layer, x, True)
  wide = x.astype(np.float64)
  expected = (wide - wide.mean((0, 1, 2))) / np.sqrt(wide.var((0, 1, 2)) + 1e-5)
  np.testing.assert_allclose(y, expected, atol=1e-4)
  np.testing.assert_allclose(var, 0.9 + 0.1 * wide.var((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_gradients_flow_through_the_batch_and_never_into_running_moments(train):
  weights = batch(seed=5)

  @jax.jit
  def loss(learned, moments, x):
    layer = BatchNorm(CHANNELS, momentum=0.9)
    for name, value in {**learned, **moments}.items():
      getattr(layer, name)[...] = value
    return (layer(x, train) * weights).mean()

  start = nnx.to_pure_dict(nnx.state(disturbed(BatchNorm(CHANNELS, momentum=0.9))))
  moments = {name: start.pop(name) for name in ("mean", "var")}
  check_grads(
    lambda learned, x: loss(learned, moments, x),
    (start, batch()),
    order=1,
    modes=["rev"],
    rtol=1e-2,
  )
  slopes = jax.grad(loss, 1)(start, moments, batch())
  assert all(not np.any(slope) for slope in slopes.values())


def test_a_constant_channel_is_finite():
  x = np.full((4, CHANNELS), 3, np.float32)
  y, _, var = run(BatchNorm(CHANNELS, momentum=0.9), x, True)
  assert np.all(y == 0) and np.all(var == np.float32(0.9))
  slope = jax.grad(lambda x: BatchNorm(CHANNELS, momentum=0.9)(x, True)[0].sum())(x)
  assert np.all(np.isfinite(slope))
