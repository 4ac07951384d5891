"""Powers of two, exactly, and one policy for float32 subnormals.

Exponents are read from and written into the bits of a float32. `log2` and `exp2` are
inexact at and just below powers of two on every backend; these are not.

The policy: a magnitude below 2^-126 is zero, before a format sees it and after. CPUs
that flush (XLA's default) and GPUs that do not then agree bit for bit.
"""

import jax
import jax.numpy as jnp

TINY = 2.0**-126
INFINITE = 128  # the exponent field of an infinity and of a NaN, unbiased
_FRACTION, _FIELD, _MAGNITUDE = 23, 0x7F800000, 0x7FFFFFFF
_LONG = 256  # values from which a float maximum is the faster one


def bits_of(x: jax.Array) -> jax.Array:
  """The bits of float32 `x` [...] as int32."""
  return jax.lax.bitcast_convert_type(x, jnp.int32)


def of_bits(bits: jax.Array) -> jax.Array:
  """The float32 values with the given int32 bits [...]."""
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def flush(x: jax.Array) -> jax.Array:
  """float32 `x` [...] with subnormals replaced by zero; NaN stays."""
  return jnp.where(jnp.abs(x) < TINY, jnp.float32(0), x)


def peak_bits(x: jax.Array, axis: int | None = -1) -> jax.Array:
  """Bits of the largest magnitude of float32 `x` along `axis`, None for all of it.

  An infinity outdoes every number and a NaN every infinity. Integers, because their
  maximum vectorizes and that of floats, which must mind NaN, does not.
  """
  return jnp.max(bits_of(x) & _MAGNITUDE, axis=axis, initial=0)  # 0 of no values


def peak(x: jax.Array, axis: int | None = -1) -> jax.Array:
  """Largest magnitude of float32 `x` along `axis`, subnormals flushed.

  NaN where `x` holds one; not finite where `x` holds an infinity.
  """
  if axis is not None and x.shape[axis] < _LONG:
    return flush(of_bits(peak_bits(x, axis)))
  # Measured on CPU: three times as fast over long stretches, if nothing is fused into
  # it, hence the barrier. The maximum may lose a NaN there; the sum brings it back.
  x = jax.lax.optimization_barrier(x)
  largest = jnp.max(jnp.abs(x), axis=axis, initial=0)
  return flush(jnp.where(_spoilt(x, axis), jnp.float32(jnp.nan), largest))


def span(x: jax.Array, axis: int | None = -1) -> tuple[jax.Array, jax.Array]:
  """The least and the largest of zero and float32 `x` along `axis`.

  Both are NaN where `x` holds a NaN or an infinity.
  """
  x = jax.lax.optimization_barrier(x)
  ends = jnp.min(x, axis=axis, initial=0), jnp.max(x, axis=axis, initial=0)
  low, high = (jnp.where(_spoilt(x, axis), jnp.float32(jnp.nan), e) for e in ends)
  return low, high


def _spoilt(x: jax.Array, axis: int | None) -> jax.Array:
  """Whether a float32 maximum of `x` may have lost a NaN, or is no number."""
  return jnp.sum(x - x, axis=axis) != 0


def floor_log2(bits: jax.Array) -> jax.Array:
  """floor(log2(|x|)) from the bits of x; -126 at zero, INFINITE at infinity and NaN."""
  return jnp.maximum((bits >> _FRACTION & 255) - 127, -126)


def power_of_two(e: jax.Array) -> jax.Array:
  """2^e in float32 for int32 -126 <= e <= 127, exactly."""
  return of_bits((e + 127) << _FRACTION)


def times_power_of_two(x: jax.Array, e: jax.Array) -> jax.Array:
  """x * 2^e for int32 |e| <= 252, exactly where the result is a normal float32.

  Two factors: 2^127 and its reciprocal are not both normal numbers.
  """
  half = e >> 1
  return x * power_of_two(half) * power_of_two(e - half)


def exponent_bits(x: jax.Array, lowest: int) -> jax.Array:
  """Bits of the power of two at or below |x| [...], no less than 2^lowest.

  For an infinity and a NaN those of 2^127.
  """
  return jnp.clip(bits_of(x) & _FIELD, (lowest + 127) << _FRACTION, 254 << _FRACTION)


def scaled(x: jax.Array, e: jax.Array) -> jax.Array:
  """`times_power_of_two(x, e)`, but NaN where `e` is INFINITE: a poisoned scale."""
  half = e >> 1
  first = jnp.where(e == INFINITE, jnp.float32(jnp.nan), power_of_two(half))
  return x * first * power_of_two(e - half)


def to_e8m0(e: jax.Array) -> jax.Array:
  """Exponents [...] in -127 ... 127 as the OCP's E8M0 bytes; INFINITE becomes NaN."""
  return jax.lax.bitcast_convert_type((e + 127).astype(jnp.uint8), jnp.float8_e8m0fnu)


def nearest_e8m0(x: jax.Array) -> jax.Array:
  """E8M0 bytes of float32 `x` [...]: the nearest power of two, up from 1.5 times one.

  NaN where `x` is not positive, is NaN or is nearest to 2^128; subnormals count.
  """
  bits = jnp.minimum(bits_of(x), 255 << _FRACTION)
  code = jnp.where(bits > 0, (bits + (1 << 22)) >> _FRACTION, 255)
  return jax.lax.bitcast_convert_type(code.astype(jnp.uint8), jnp.float8_e8m0fnu)


def from_e8m0(code: jax.Array) -> jax.Array:
  """int32 exponents [...] of E8M0 bytes; INFINITE for NaN."""
  return jax.lax.bitcast_convert_type(code, jnp.uint8).astype(jnp.int32) - 127
