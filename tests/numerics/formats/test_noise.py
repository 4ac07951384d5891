"""The dice are fair, independent, and the same wherever they are thrown."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jaxcodesign.numerics import formats
from jaxcodesign.numerics.formats import noise, rounding

ROWS, COLUMNS = 5000, 2000  # 10^7 draws


@functools.partial(jax.jit, static_argnums=(1, 2))
def ups(fraction, kind, shape, seed=0):
  source = kind(jax.random.key(seed))
  return source.up(jnp.broadcast_to(fraction, shape)).astype(jnp.int32)


@pytest.mark.parametrize("kind", [noise.Counter, noise.Threefry])
@pytest.mark.parametrize("fraction", [1 / 1024, 0.1, 0.5, 0.75])
def test_ten_million_draws_are_unbiased_and_rows_are_independent(kind, fraction):
  shape = (ROWS, COLUMNS) if kind is noise.Counter else (1000, COLUMNS)
  f = np.float32(fraction)
  sums = np.asarray(ups(jnp.float32(f), kind, shape).sum(-1), np.float64)
  size, p = shape[0] * shape[1], float(f)
  z = (sums.sum() - size * p) / np.sqrt(size * p * (1 - p))
  assert abs(z) < 4
  assert 0.9 < sums.std() / np.sqrt(COLUMNS * p * (1 - p)) < 1.1


def test_draws_do_not_follow_their_neighbours_or_other_keys():
  draw = lambda seed: np.asarray(
    noise.hashed(jax.random.key(seed), (1000, 1000)).astype(jnp.float32)
  ).ravel()
  first = draw(0)
  correlation = lambda a, b: abs(np.corrcoef(a, b)[0, 1])
  for shift in (1, 2, 3, 8, 64, 255, 1000, 4096):
    assert correlation(first[shift:], first[:-shift]) < 0.01
  for seed in (1, 2, 3, 2**20, 2**31):
    assert correlation(first, draw(seed)) < 0.01
    assert correlation(first[1:], draw(seed)[:-1]) < 0.01


@pytest.mark.parametrize("fmt", [formats.Fixed(4), formats.MXFP4, formats.BlockFloat()])
def test_eight_devices_draw_what_one_draws(fmt):
  x, key = jax.random.normal(jax.random.key(0), (16, 256)), jax.random.key(7)
  quantize = jax.jit(lambda x, key: fmt.quantize(x, key))
  alone = quantize(x, key)
  devices = jax.devices()[:8]
  assert len(devices) == 8
  for axes in ((8, 1), (2, 4)):
    mesh = jax.make_mesh(axes, ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    split = jax.device_put(x, NamedSharding(mesh, P("a", "b")))
    np.testing.assert_array_equal(quantize(split, key), alone)


def test_the_register_visits_every_state_once():
  states = noise.lfsr_states()
  assert sorted(states) == list(range(1, 256))
  f = jnp.arange(256, dtype=jnp.float32)[:, None] / 256
  up = noise.Lfsr(jax.random.key(3)).up(jnp.broadcast_to(f, (256, 255)))
  for row, k in ((64, 64), (255, 255), (0, 0)):
    found = np.asarray(noise.Lfsr(jax.random.key(0)).up(jnp.full(255, row / 256)))
    assert found.sum() == k
  assert not np.asarray(up)[0].any()


def test_eight_bits_are_biased_by_what_they_cannot_resolve():
  source = noise.Counter(jax.random.key(0), bits=8)
  x = jnp.full((1000, 1000), 0.3, jnp.float32)
  mean = float(rounding.to_integer(x, source).mean())
  assert mean == pytest.approx(np.floor(0.3 * 256) / 256, abs=2e-3)


def test_any_key_will_do_and_other_things_will_not():
  x = jnp.full(64, 0.5)
  seen = {
    tuple(np.asarray(rounding.to_integer(x, key)))
    for key in (
      jax.random.key(0),
      jax.random.key(0, impl="rbg"),
      jax.random.key(1),
      noise.Threefry(jax.random.key(0)),
      noise.Lfsr(jax.random.key(0)),
    )
  }
  assert len(seen) == 5
  raw, typed = jax.random.PRNGKey(5), jax.random.key(5)
  np.testing.assert_array_equal(
    rounding.to_integer(x, raw), rounding.to_integer(x, typed)
  )
  for bad in (3, jnp.ones(2), jax.random.split(typed)):
    with pytest.raises(TypeError, match="no PRNG key"):
      rounding.to_integer(x, bad)


def test_rules_without_noise():
  x = jnp.array([-2.5, -1.7, -0.5, 0.5, 1.4, 1.5, 2.5])
  np.testing.assert_array_equal(
    rounding.to_integer(x, rule="away"), [-3, -2, -1, 1, 1, 2, 3]
  )
  np.testing.assert_array_equal(
    rounding.to_integer(x, rule="truncate"), [-2, -1, 0, 0, 1, 1, 2]
  )
  below = jnp.nextafter(jnp.float32(0.5), jnp.float32(0))
  assert rounding.to_integer(below, rule="away") == 0
  with pytest.raises(ValueError, match="rule='up'"):
    rounding.to_integer(x, rule="up")


def test_streams_of_keys_are_no_parts_of_each_other():
  """Neighbours that come again, of 8 million: 3; two overlapping streams: thousands."""
  streams = jax.jit(jax.vmap(lambda key: noise.hashed(key, (4096,))))
  drawn = np.asarray(streams(jax.random.split(jax.random.key(0), 2048)), np.uint64)
  pairs = (drawn[:, :-1] << np.uint64(32)) | drawn[:, 1:]
  assert pairs.size - np.unique(pairs).size < 10
