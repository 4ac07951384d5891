"""What is stored takes the room that it says, and is what was rounded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.numerics import formats
from jaxcodesign.numerics.formats import exponents

SIZE = 64 * 128


@functools.partial(jax.jit, static_argnums=0)  # a traced mantissa cannot be packed
def stored(fmt, x):
  packed = fmt.pack(x)
  return packed, fmt.unpack(packed), fmt.quantize(x)


@pytest.mark.parametrize(
  ("fmt", "nbytes"),
  [
    (formats.Fixed(1), SIZE // 8 + 4),
    (formats.Fixed(4), SIZE // 2 + 4),
    (formats.Fixed(4, 32, "affine"), SIZE // 2 + SIZE // 32 * 5),
    (formats.Fixed(8, "channel"), SIZE + 64 * 4),
    (formats.Fixed(12), 2 * SIZE + 4),
    (formats.E4M3, SIZE + 4),
    (formats.E2M3, SIZE + 4),
    (formats.MXFP8_E5M2, SIZE + SIZE // 32),
    (formats.MXFP6_E3M2, SIZE + SIZE // 32),
    (formats.MXFP4, SIZE // 2 + SIZE // 32),
    (formats.MXINT8, SIZE + SIZE // 32),
    (formats.NVFP4, SIZE // 2 + SIZE // 16 + 4),
    (formats.BlockFloat(3), SIZE // 2 + SIZE // 16),
    (formats.BlockFloat(7, 16, exponent=3), SIZE + SIZE // 16 + 1),
    (formats.Logarithmic(4), SIZE // 2 + 2),
    (formats.Terms(12), 2 * SIZE + 4),
  ],
  ids=repr,
)
def test_bytes_are_those_of_codes_and_scales(fmt, nbytes):
  x = jax.random.normal(jax.random.key(0), (64, 128))
  packed, again, wanted = stored(fmt, x)
  assert packed.nbytes == nbytes
  np.testing.assert_array_equal(again, wanted)


@pytest.mark.parametrize("columns", [1, 7, 33])
@pytest.mark.parametrize(
  "fmt", [formats.Fixed(1), formats.MXFP4, formats.NVFP4, formats.BlockFloat()]
)
def test_a_remainder_is_packed_too(fmt, columns):
  x = jax.random.normal(jax.random.key(1), (2, 3, columns)).astype(jnp.bfloat16)
  _, again, wanted = stored(fmt, x)
  np.testing.assert_array_equal(again, wanted)


@pytest.mark.parametrize(
  "fmt",
  [
    *(formats.E4M3, formats.E5M2, formats.E2M3, formats.E3M2, formats.E2M1),
    *(formats.Minifloat(4, 3, "ieee"), formats.Minifloat(3, 0, "none")),
    *(formats.Minifloat(1, 2, "none"), formats.Minifloat(6, 9, "ieee")),
  ],
  ids=repr,
)
def test_every_code_is_a_number_and_back(fmt):
  width = 1 + fmt.exponent + fmt.mantissa
  codes = np.arange(2**width, dtype=np.int32)

  @jax.jit
  def there_and_back(codes):
    x = fmt.numbers(codes)
    return x, fmt.codes(x), fmt.round(x, fmt.scale(x)), fmt.store(x)

  numbers, again, rounded, stored = map(np.asarray, there_and_back(codes))
  real = np.isfinite(numbers)
  assert numbers[real].max() == fmt.largest
  np.testing.assert_array_equal(again[real], codes[real])
  np.testing.assert_array_equal(rounded[real], numbers[real])
  if fmt._dtype is not None and width <= 8:
    np.testing.assert_array_equal(stored.astype("f4")[real], numbers[real])


def test_scales_are_one_byte_and_keep_their_nan():
  e = jnp.array([-127, 0, 5, 127, exponents.INFINITE], jnp.int32)
  stored = exponents.to_e8m0(e)
  assert stored.dtype == jnp.float8_e8m0fnu
  np.testing.assert_array_equal(exponents.from_e8m0(stored), e)
  assert np.isnan(np.asarray(stored[-1:].astype(jnp.float32))).all()


def test_a_traced_mantissa_is_refused():
  with pytest.raises(ValueError, match="mantissa that is known"):
    jax.jit(lambda fmt, x: fmt.pack(x))(formats.BlockFloat(4), jnp.ones((2, 16)))


@pytest.mark.parametrize("fmt", [formats.E2M1, formats.E3M2, formats.NVFP4], ids=repr)
def test_wide_integers_change_no_code(fmt):
  """With x64 a code of int64 ended the process where it was made without jit."""
  x = np.random.default_rng(0).normal(size=(2, 32)).astype("f4")
  wanted = fmt.pack(jnp.asarray(x))
  with jax.enable_x64(True):
    found = fmt.pack(jnp.asarray(x))
    element = getattr(fmt, "element", fmt)
    on_grid = element.elements(jnp.asarray(x), jnp.float32(1), None)
    assert element.codes(on_grid).dtype == jnp.int32
  np.testing.assert_array_equal(found.codes, wanted.codes)
