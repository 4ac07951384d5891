"""The bit-serial array against integer arithmetic and the paper's cycle law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.simulators import bitserial

# Integers, in the operations of integers.


def wrapped(x, bits):
  half = 1 << bits - 1
  return (x + half) % (2 * half) - half


def test_every_weight_sign_and_datum():
  data = np.arange(256, dtype=np.uint8)[:, None]
  weights = np.arange(-255, 256, dtype=np.int16)[:, None]
  options = {"rows": 32, "cols": 1, "toggles": False}
  for bits in (16, 32):
    product, _ = bitserial.simulate(data, weights, accumulator_bits=bits, **options)
    expected = data.astype(int) * weights.astype(int).T
    np.testing.assert_array_equal(product, wrapped(expected, bits))


@pytest.mark.parametrize(
  ("pixels", "channels", "filters", "rows", "cols", "bits", "alpha", "load"),
  [
    (1, 1, 1, 1, 1, 16, 1, 1),
    (1, 7, 50, 20, 3, 32, 4, 2),  # words of 32 rows
    (20, 4, 9, 8, 3, 32, 3, 8),  # one more than the array
    (6, 10, 36, 12, 5, 16, 2, 8),  # whole arrays
    (9, 13, 11, 4, 5, 16, 4, 2),
    (3, 2, 5, 19, 17, 32, 1, 1),  # much room
  ],
)
def test_tiles_folds_and_multiplexers_are_exact(
  pixels, channels, filters, rows, cols, bits, alpha, load
):
  rng = np.random.default_rng(pixels)
  data = rng.integers(0, 256, (pixels, channels, alpha)).astype(np.uint8)
  weights = rng.integers(-255, 256, (filters, channels)).astype(np.int16)
  channel = rng.integers(0, alpha, weights.shape).astype(np.int8)
  product, trace = bitserial.simulate(
    data, weights, channel, rows=rows, cols=cols, accumulator_bits=bits, load_bits=load
  )
  dense = np.zeros((filters, channels, alpha), int)
  np.put_along_axis(dense, channel[..., None].astype(int), weights[..., None], 2)
  expected = data.reshape(pixels, -1).astype(int) @ dense.reshape(filters, -1).T
  np.testing.assert_array_equal(product, wrapped(expected, bits))
  shape = (pixels, channels, filters, rows, cols, bits, load)
  assert trace.cycles == bitserial.cycles(*shape)
  assert int(trace.busy.sum()) == 8 * pixels * channels * filters
  assert trace.load_cycles == rows * -(-8 // load)


def test_the_tile_law_is_tight():
  # The last bit of the last sum is made in the last cycle: 8 (T - 1) + L + M + N - 2.
  assert bitserial.tile_cycles(5, 3, 4, 16) == 8 * 4 + 16 + 4 + 3 - 2
  data, weights = np.full((5, 4), 255, np.uint8), np.full((3, 4), -255, np.int16)
  product, trace = bitserial.simulate(data, weights, rows=3, cols=4)
  assert trace.busy.shape == (1, bitserial.tile_cycles(5, 3, 4))
  np.testing.assert_array_equal(product, np.full((5, 3), -4 * 255 * 255))


def loop_over_bits(datum, weight, length):
  """One MAC as the page has it: the bits of its result, and its flipping state bits."""
  p, cy, cyd, out = 0, 0, 0, 0
  result, flipped = 0, 0
  for t in range(length):
    before = (p, cy, cyd, out)
    if t == 0:
      p, cy, cyd = 0, 0, 1
    s = (abs(weight) if t < 8 and datum >> t & 1 else 0) + p
    b, p = s & 1, s >> 1
    negated, cyd = (1 - b) ^ cyd, (1 - b) & cyd
    d = negated if weight < 0 else b
    out, cy = d ^ cy, d & cy
    result |= out << t
    flipped += sum(bin(x ^ y).count("1") for x, y in zip(before, (p, cy, cyd, out)))
  return wrapped(result, length), flipped


@pytest.mark.parametrize(("datum", "weight"), [(0, 5), (255, 255), (77, -200), (1, -1)])
def test_one_mac_is_that_of_the_page(datum, weight):
  value, flipped = loop_over_bits(datum, weight, 32)
  data, weights = np.uint8([[datum]]), np.int16([[weight]])
  product, trace = bitserial.simulate(data, weights, rows=1, cols=1)
  assert value == datum * weight == int(product[0, 0])
  # Three idle MACs of the cell negate an endless stream of zeros once.
  idle = 3 * (weight < 0)
  assert int(trace.toggles.sum()) == flipped + idle


def test_requantization_is_a_clip():
  rng = np.random.default_rng(0)
  sums = rng.integers(-(2**31), 2**31, 4000).astype(np.int32)
  sums = np.concatenate([sums, sums >> 12, [0, 2047, 2048, 2**19 - 1, 2**19, -1]])
  for first in (0, 11, 23):
    got = bitserial.requantize(jnp.asarray(sums, jnp.int32), first_bit=first)
    np.testing.assert_array_equal(got, np.clip(sums >> first, 0, 255))
  small = wrapped(sums, 16)
  got = bitserial.requantize(
    jnp.asarray(small, jnp.int32), accumulator_bits=16, first_bit=5
  )
  np.testing.assert_array_equal(got, np.clip(small >> 5, 0, 255))


def test_a_batch_is_vmapped():
  rng = np.random.default_rng(1)
  data = rng.integers(0, 256, (3, 6, 5)).astype(np.uint8)
  weights = rng.integers(-128, 128, (4, 5)).astype(np.int8)
  run = lambda x: bitserial.simulate(x, weights, rows=4, cols=8)[0]
  np.testing.assert_array_equal(
    jax.vmap(run)(data), data.astype(int) @ weights.astype(int).T
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"data": np.ones((3, 4), np.int8)}, "unsigned 8-bit"),
    ({"weights": np.ones((3, 5), np.int8)}, r"\(3, 5\)"),
    ({"data": np.ones((0, 4), np.uint8)}, "size is zero"),
    ({"channel": np.ones((3, 4), np.int8)}, "both or neither"),
    ({"rows": 0}, "0 x 4 cells"),
    ({"accumulator_bits": 24}, "24 is none of 16, 32"),
    ({"load_bits": 9}, "load_bits=9"),
  ],
)
def test_bad_input_is_refused(change, message):
  fine = {
    "data": np.ones((3, 4), np.uint8),
    "weights": np.ones((3, 4), np.int8),
    "channel": None,
    "rows": 4,
    "cols": 4,
  } | change
  with pytest.raises(ValueError, match=message):
    bitserial.simulate(**fine)
  with pytest.raises(ValueError, match="first_bit=24"):
    bitserial.requantize(jnp.zeros(3, jnp.int32), first_bit=24)
