"""The contract every number format keeps. Add yours to FORMATS, write nothing else."""

import dataclasses
import functools
from typing import NamedTuple

import chex
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.numerics import formats
from jaxcodesign.numerics.formats import noise
from jaxcodesign.numerics.formats.format import floats

FORMATS = [
  formats.Fixed(),
  formats.Fixed(bits=1),
  formats.Fixed(bits=2, rule="away"),
  formats.Fixed(bits=4, share="channel"),
  formats.Fixed(bits=6, share=8),
  formats.Fixed(bits=16, share="channel"),
  formats.Fixed(bits=4, share=8, grid="full"),
  formats.Fixed(bits=8, grid="affine"),
  formats.Fixed(bits=3, share="channel", grid="affine"),
  formats.Terms(budget=12),
  formats.Terms(budget=3, group=4, bits=5),
  formats.Terms(budget=2, group=1, share="channel"),
  formats.Terms(budget=9, group=8, encoding="hese3", share=8),
  formats.Terms(budget=9, group=16, encoding="binary"),
  formats.E4M3,
  formats.E5M2,
  formats.Minifloat(2, 3, "none", share="channel"),
  formats.Minifloat(3, 0, "none", share=4, rule="away"),
  formats.Minifloat(5, 2, "ieee", overflow="special", share="tensor"),
  formats.BlockFloat(),
  formats.BlockFloat(mantissa=2, block=8, exponent=3, rule="truncate"),
  formats.BlockFloat(mantissa=7, block=12, rule="away"),
  formats.MXFP8_E4M3,
  formats.MXFP6_E3M2,
  formats.Microscaling(formats.E2M1, block=12, scale_rule="rceil"),
  formats.MXINT8,
  formats.NVFP4,
  formats.ScaledBlocks(formats.E2M1, block=6, tensor=False),
  formats.Logarithmic(),
  formats.Logarithmic(bits=6, fraction=2, share="channel"),
  formats.NormalFloat(share=8),
]
# A format at a time: its programs are compiled once, by one worker.
every_format = pytest.mark.parametrize("fmt", FORMATS, ids=repr, scope="module")
HUGE = np.finfo(np.float32).max
quantize = jax.jit(lambda fmt, x, key=None: fmt.quantize(x, key))


SHAPE = (3, 48)  # of every array but those of other axes: a shape is a compilation


class Seen(NamedTuple):
  """What a format makes of an array, in one compilation."""

  y: jax.Array
  again: jax.Array
  minus: jax.Array
  stored: jax.Array
  noisy: jax.Array
  minus_noisy: jax.Array
  noisy_stored: jax.Array
  slope: jax.Array


@functools.partial(jax.jit, static_argnums=0)  # a traced mantissa cannot be packed
def see(fmt, x, key) -> Seen:
  scale = fmt.scale(x)
  both = jnp.stack([x, -x])  # as two roundings they would take twice to compile
  y, minus = jax.vmap(lambda x: fmt.round(x, scale))(both)
  noisy, minus_noisy = jax.vmap(lambda x: fmt.round(x, scale, key))(both)
  return Seen(
    y,
    fmt.round(y, scale),
    minus,
    fmt.unpack(fmt.pack(x)),
    noisy,
    minus_noisy,
    fmt.unpack(fmt.pack(x, key)),
    jax.grad(lambda x: jnp.sum(weights(x) * fmt.quantize(x)))(x),
  )


def dtypes(fmt):
  """float32, and in turn one of the narrow ones: each is a compilation."""
  return jnp.float32, (jnp.bfloat16, jnp.float16)[FORMATS.index(fmt) % 2]


def weights(x):
  return (jnp.arange(x.size, dtype=jnp.int32) % 97).reshape(x.shape).astype(x.dtype)


def rounded(seen):
  return seen[: Seen._fields.index("slope")]


def same(a, b):
  # numpy takes a NaN of bfloat16 for unequal to itself.
  assert a.dtype == b.dtype
  np.testing.assert_array_equal(a.astype(jnp.float32), b.astype(jnp.float32))


def is_odd(fmt):
  fixed = isinstance(fmt, formats.Fixed) and (fmt.bits == 1 or fmt.grid != "symmetric")
  return not (fixed or isinstance(fmt, formats.NormalFloat))


def has_zero(fmt):
  return not (
    isinstance(fmt, formats.Fixed) and fmt.bits == 1 and fmt.grid == "symmetric"
  )


def sees_whole_tensor(fmt):
  if isinstance(fmt, formats.BlockFloat):
    return fmt.exponent < 8
  return getattr(fmt, "share", None) == "tensor" or getattr(fmt, "tensor", False)


def has_scale(fmt):
  return not isinstance(fmt, formats.Minifloat) or fmt.share is not None


@pytest.fixture(scope="module")
def x():
  return jax.random.normal(jax.random.key(0), SHAPE)


@functools.cache
def seen_of(fmt):
  """What `fmt` makes of normal numbers, those of the fixture `x`."""
  x = jax.random.normal(jax.random.key(0), SHAPE)
  return see(fmt, x, jax.random.key(0))


@functools.partial(jax.jit, static_argnames=("fmt", "axis"))
def along(fmt, x, axis):
  """Rounded, stored and rounded with noise where it lies; and after a transposition."""
  moved = fmt.along(axis)
  last = jnp.moveaxis(fmt.quantize(jnp.moveaxis(x, axis, -1)), -1, axis)
  noisy = moved.quantize(x, jax.random.key(4))
  return moved.quantize(x), moved.unpack(moved.pack(x)), noisy, last


@every_format
@pytest.mark.parametrize("shape", [(2, 48, 5), (41, 3, 2)])
def test_any_axis_is_the_last_axis_of_another_layout(fmt, shape):
  axis = {48: -2, 41: -3}[max(shape)]
  x = 10 * jax.random.normal(jax.random.key(3), shape).at[0, 1, 1].set(jnp.nan)
  try:
    fmt.check(max(shape))
  except ValueError:
    with pytest.raises(ValueError, match=f"does not divide axis {axis}"):
      fmt.along(axis).quantize(x)
    return
  here, stored, noisy, last = along(fmt, x, axis)
  same(here, last)
  same(stored, last)
  assert noisy.shape == x.shape and jnp.isnan(noisy[0, 1, 1])


@every_format
@settings(max_examples=8)
@given(
  narrow=st.booleans(),
  seed=st.integers(0, 2**32 - 1),
  spread=st.sampled_from([0.0, 1.0, 8.0]),
  poison=st.sampled_from([None, None, np.nan, np.inf]),
)
def test_laws_hold_for_any_data(fmt, narrow, seed, spread, poison):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=SHAPE) * np.exp(spread * rng.normal(size=SHAPE))
  x = np.clip(x, -6e4, 6e4)
  if poison is not None:
    x[1, 2] = poison
  x = jnp.asarray(x, dtypes(fmt)[narrow])
  seen = see(fmt, x, jax.random.key(seed))
  assert seen.y.shape == x.shape and seen.y.dtype == x.dtype
  same(seen.again, seen.y)
  same(seen.stored, seen.y)
  same(seen.noisy_stored, seen.noisy)
  if is_odd(fmt):
    same(seen.minus, -seen.y)
    same(seen.minus_noisy, -seen.noisy)
  if poison is None:
    assert np.isfinite(seen.y.astype(jnp.float32)).all()
    assert np.isfinite(seen.noisy.astype(jnp.float32)).all()
  else:
    same(jnp.isnan(seen.noisy), jnp.isnan(seen.y))


@every_format
def test_what_is_empty_stays_empty(fmt):
  @jax.jit
  def both(x):
    slope = jax.grad(lambda x: jnp.sum(fmt.quantize(x)))(x)
    return fmt.quantize(x), fmt.unpack(fmt.pack(x)), slope

  for shape in ((0, 48), (3, 0)):
    assert {y.shape for y in both(jnp.ones(shape))} == {shape}


@every_format
def test_zero_stays_zero(fmt, x):
  for dtype in dtypes(fmt):
    seen = see(fmt, jnp.zeros(x.shape, dtype), jax.random.key(0))
    assert not any(np.any(y) for y in rounded(seen))
    sparse = jnp.where(x > 0, x, 0).astype(dtype)
    if has_zero(fmt):
      seen = see(fmt, sparse, jax.random.key(0))
      assert not any(np.any(y[sparse == 0]) for y in map(np.asarray, rounded(seen)))


@every_format
def test_elements_are_few_and_near(fmt):
  x = jax.random.normal(jax.random.key(1), (64, 192))

  @jax.jit
  def both(x):
    scale = fmt.scale(x)
    y = fmt.round(x, scale)
    return fmt.elements(floats(x), scale, None), y, fmt.ends(x, scale)

  elements, y, ends = both(x)
  assert (np.abs(y) <= np.abs(ends)).all() and (y * ends >= 0).all()
  elements = np.unique(elements)
  # A budget turns 127 into 128: one value more than there are codes of bits + 1.
  spare = isinstance(fmt, formats.Terms)
  assert 1 < len(elements) <= 2 ** fmt.bits_per_value() + spare
  error = np.abs(np.asarray(y) - np.asarray(x)).mean()
  assert error < np.abs(np.asarray(x)).mean()


@every_format
def test_gradient_is_straight_through(fmt, x):
  np.testing.assert_array_equal(seen_of(fmt).slope, weights(x))


@every_format
def test_transformations_change_nothing(fmt, x):
  y = fmt.quantize(x)
  np.testing.assert_array_equal(seen_of(fmt).y, y)
  if FORMATS.index(fmt) % 4 == 0:  # each operation is a compilation
    with jax.disable_jit():
      np.testing.assert_array_equal(fmt.quantize(x), y)
  if not sees_whole_tensor(fmt):
    rows = jax.jit(jax.vmap(lambda x: fmt.round(x, fmt.scale(x))))(x)
    np.testing.assert_array_equal(rows, y)


@every_format
def test_stochastic_rounding_is_keyed_and_unbiased(fmt, x):
  draw = jax.jit(jax.vmap(lambda key: fmt.round(x, fmt.scale(x), key)))
  draws = np.asarray(draw(jax.random.split(jax.random.key(1), 2000)), np.float64)
  again = draw(jax.random.split(jax.random.key(1), 2000))
  np.testing.assert_array_equal(draws, again)
  if isinstance(fmt, formats.Terms):
    return  # what is cut after the rounding is no longer unbiased
  # A value above the largest element saturates: it has no neighbour to go up to.
  between = (draws.min(0) <= x) & (x <= draws.max(0))
  assert between.mean() > 0.5
  error = np.where(between, draws.mean(0) - x, 0)
  deviation = draws.std(0) / np.sqrt(2000)
  assert np.abs(error).max() <= np.max(5 * deviation) + 1e-5


@every_format
def test_nan_and_infinity_poison_what_shares_their_scale_and_nothing_else(fmt, x):
  poisoned = lambda by: see(fmt, x.at[1, 3].set(by), jax.random.key(0)).y
  y = np.asarray(poisoned(jnp.nan))
  assert np.isnan(y[1, 3])
  if sees_whole_tensor(fmt):
    assert np.isnan(y).all()
  else:
    others = np.arange(len(y)) != 1
    np.testing.assert_array_equal(y[others], seen_of(fmt).y[others])
  for infinity in (jnp.inf, -jnp.inf):
    z = np.asarray(poisoned(infinity))
    if has_scale(fmt):
      np.testing.assert_array_equal(np.isnan(z), np.isnan(y))
    else:
      assert z[1, 3] == np.sign(infinity) * fmt.largest


@every_format
def test_extreme_numbers_stay_finite_and_subnormals_are_zero(fmt):
  huge = HUGE * np.array([1, -1, 0.5, 1e-3, 1e-38, 0, -0.1, -0.7], np.float32)
  seen = see(fmt, np.tile(huge, (3, 6)), jax.random.key(2))
  assert all(np.isfinite(y).all() for y in rounded(seen))
  tiny = np.tile(np.array([1e-40, -1e-39, 0, 1e-45], np.float32), (3, 12))
  assert not any(np.any(y) for y in rounded(see(fmt, tiny, jax.random.key(2))))


@every_format
def test_a_format_is_a_tree_that_jax_may_fill_with_anything(fmt, x):
  zeros = jax.tree.map(jnp.zeros_like, fmt)
  assert jax.tree.structure(zeros) == jax.tree.structure(fmt)
  if jax.tree.leaves(fmt):
    loss = jax.jit(jax.grad(lambda f: jnp.sum(f.quantize(x) ** 2), allow_int=True))
    assert jax.tree.structure(loss(fmt)) == jax.tree.structure(fmt)


def test_terms_per_value():
  assert formats.Fixed(8).terms_per_value() == formats.Fixed(8).most_terms() == 4
  assert formats.Terms(12).terms_per_value() == 1.5
  assert formats.Terms(12).most_terms() == formats.Terms(1000).terms_per_value() == 4
  assert formats.Terms(3, group=1).terms_per_value() == 3


@pytest.mark.parametrize(
  "make",
  [lambda b: formats.Fixed(b, "channel"), lambda b: formats.BlockFloat(b, 16)],
)
def test_more_bits_mean_less_error(make, x):
  errors = [float(jnp.abs(quantize(make(b), x) - x).mean()) for b in range(2, 12)]
  assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 256


@pytest.mark.parametrize("fmt", [f for f in FORMATS if jax.tree.leaves(f)], ids=repr)
def test_a_schedule_of_leaves_traces_once(fmt, x):
  chex.clear_trace_counter()
  quantize = jax.jit(chex.assert_max_traces(lambda f: f.quantize(x), n=1))
  (leaf,) = [f.name for f in dataclasses.fields(fmt) if not f.metadata.get("static")]
  values = (1, 4, 22)
  errors = [
    jnp.abs(quantize(dataclasses.replace(fmt, **{leaf: v})) - x).mean() for v in values
  ]
  assert errors == sorted(errors, reverse=True)


def under_jit(make, leaf):
  """Rounds with a leaf that is a tracer of its dtype."""
  return jax.jit(lambda leaf: make(leaf).quantize(jnp.ones((2, 16))))(leaf)


@pytest.mark.parametrize(
  ("make", "error", "message"),
  [
    (lambda: formats.Fixed(0), ValueError, "bits=0"),
    (lambda: formats.Fixed(25), ValueError, "1 to 24 bits"),
    (lambda: formats.Fixed(1, grid="full"), ValueError, "2 to 24 bits"),
    (lambda: formats.Fixed(8, "row"), ValueError, "share='row'"),
    (lambda: formats.Fixed(8, grid="skew"), ValueError, "grid='skew'"),
    (lambda: formats.Fixed(8, rule="up"), ValueError, "rule='up'"),
    (lambda: formats.Terms(0), ValueError, "budget=0"),
    (lambda: formats.Terms(float("nan")), ValueError, "budget=nan"),
    (lambda: formats.Terms(4).check(12), ValueError, "group=8 does not"),
    (lambda: formats.Fixed(4, 5).check(12), ValueError, "group=5 does not"),
    (lambda: formats.Terms(np.float32(0.5)), ValueError, "budget=0.5"),
    (lambda: formats.Terms(4, group=0), ValueError, "group=0"),
    (lambda: formats.Terms(4, bits=0), ValueError, "bits=0"),
    (lambda: formats.Terms(4, encoding="gray"), ValueError, "encoding='gray'"),
    (lambda: formats.Terms(4, 8).quantize(jnp.ones((3, 12))), ValueError, "group=8"),
    (lambda: formats.Fixed(4, 5).quantize(jnp.ones((3, 12))), ValueError, "group=5"),
    (lambda: formats.Minifloat(8, 3), ValueError, "exponent=8"),
    (lambda: formats.Minifloat(4, 0), ValueError, "mantissa=0"),
    (lambda: formats.Minifloat(4, 3, "inf"), ValueError, "specials='inf'"),
    (lambda: formats.Minifloat(2, 1, "none", "special"), ValueError, "use saturate"),
    (lambda: formats.BlockFloat(0), ValueError, "mantissa=0"),
    (lambda: formats.BlockFloat(4, 0), ValueError, "block=0"),
    (lambda: formats.BlockFloat(4, 16, 9), ValueError, "exponent=9"),
    (lambda: formats.BlockFloat().quantize(jnp.ones(())), ValueError, "no last axis"),
    (lambda: formats.Microscaling(formats.MXFP4), TypeError, "neither a Minifloat"),
    (lambda: formats.Microscaling(formats.Fixed(1)), ValueError, "2 or more bits"),
    (lambda: formats.Microscaling(scale_rule="up"), ValueError, "scale_rule='up'"),
    (lambda: formats.ScaledBlocks(scaling=formats.Fixed(8)), TypeError, "no Minifloat"),
    (lambda: formats.Logarithmic(9), ValueError, "bits=9"),
    (lambda: under_jit(formats.Terms, jnp.complex64(3)), TypeError, "budget"),
    (lambda: under_jit(formats.Terms, jnp.bool_(True)), TypeError, "budget"),
    (lambda: under_jit(formats.BlockFloat, jnp.complex64(3)), TypeError, "mantissa"),
    (lambda: formats.Fixed(4.0), TypeError, "bits=4.0"),
    (lambda: formats.Fixed(4, axis=0), ValueError, "axis=0"),
    (lambda: formats.MXFP4.along(-3).quantize(jnp.ones((2, 3))), ValueError, "axis=-3"),
    (lambda: formats.Logarithmic(fraction=4), ValueError, "fraction=4"),
    (lambda: formats.Fixed().quantize(jnp.ones(3), 7), TypeError, "no PRNG key"),
    (lambda: noise.Explicit(jnp.ones(3), 24), ValueError, "width=24"),
    (lambda: noise.Explicit(jnp.ones(3), 8, "slow"), ValueError, "mode='slow'"),
    (lambda: noise.Counter(jax.random.key(0), 25), ValueError, "bits=25"),
  ],
)
def test_bad_formats_are_refused(make, error, message):
  with pytest.raises(error, match=message):
    make()


@every_format
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, bool])
def test_what_is_no_float_is_refused(fmt, dtype):
  with pytest.raises(TypeError, match="floating-point"):
    fmt.quantize(jnp.ones((2, 16), dtype))
