"""Where the dice of stochastic rounding come from.

A value between two grid points goes up if a random threshold lets its fraction pass.
Wherever this library takes a `key`, it takes a PRNG key or one of these:

  Counter    the default: an integer hash of (key, element index), fused into the
             rounding itself. Pure in the index, so every sharding draws the same.
  Threefry   jax.random's own generator, several times as expensive
  Lfsr       the 8-bit shift register beside the converters of FAST
  Explicit   the caller's random bits, in the three modes that gfloat defines

References: Gupta et al., "Deep Learning with Limited Numerical Precision", ICML 2015;
Zhang, McDanel, Kung, "FAST", HPCA 2022; the hash is Wellons' lowbias32.
"""

import abc
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree

Mode = Literal["stochastic", "fast", "fastest"]
MODES: tuple[Mode, ...] = ("stochastic", "fast", "fastest")


class Noise(abc.ABC):
  """A source of decisions, one for each element."""

  @abc.abstractmethod
  def up(self, fraction: jax.Array) -> jax.Array:
    """Whether each float32 `fraction` [...] in [0, 1) goes up; never at 0 or NaN."""


@tree.pytree
class Counter(Noise):
  """A hash of the key and of the row-major index of each element (modulo 2^32).

  Inside `shard_map` the index is local: fold the axis index into the key.

  Attributes:
    key: A PRNG key, of any implementation.
    bits: Random bits used, 1 to 24. With 8, FAST's noise without its correlations: a
      fraction finer than 1/256 is rounded up 1/512 too rarely on average.
  """

  key: jax.Array
  bits: int = tree.static(default=24)

  def __post_init__(self):
    if not 1 <= self.bits <= 24:
      raise ValueError(f"bits={self.bits} of noise are outside 1..24")

  def up(self, fraction: jax.Array) -> jax.Array:
    draw = hashed(self.key, fraction.shape) >> (32 - self.bits)
    return _passes(fraction, draw.astype(jnp.int32), self.bits)


@tree.pytree
class Threefry(Noise):
  """24 bits from `jax.random.bits`, whatever implementation the key names."""

  key: jax.Array

  def up(self, fraction: jax.Array) -> jax.Array:
    draw = jax.random.bits(self.key, fraction.shape, jnp.uint32) >> 8
    return _passes(fraction, draw.astype(jnp.int32), 24)


@tree.pytree
class Lfsr(Noise):
  """An 8-bit Galois shift register, x^8 + x^6 + x^5 + x^4 + 1, one step an element.

  As in hardware: the state is never 0, the period is 255, and neighbours are
  correlated. A fraction of f goes up with probability floor(256 f) / 255 over a period.

  Attributes:
    key: A PRNG key; it chooses the state at element 0.
  """

  key: jax.Array

  def up(self, fraction: jax.Array) -> jax.Array:
    start = jnp.bitwise_xor.reduce(_words(self.key)) % jnp.uint32(255)
    index = (_index(fraction.shape) % jnp.uint32(255) + start) % jnp.uint32(255)
    return _passes(fraction, jnp.asarray(lfsr_states())[index], 8)


@tree.pytree
class Explicit(Noise):
  """Random bits from the caller.

  Attributes:
    values: Integers in [0, 2^width), broadcast against what is rounded.
    width: Bits of each, 1 to 23.
    mode: With u = values 2^-width, up if
      "fastest": fraction + u >= 1; biased low by 2^-(width+1)
      "fast": fraction + u + 2^-(width+1) >= 1
      "stochastic": as "fastest", the fraction first rounded to `width` bits (even)
  """

  values: jax.Array
  width: int = tree.static(default=8)
  mode: Mode = tree.static(default="fastest")

  def __post_init__(self):
    if not 1 <= self.width <= 23:
      raise ValueError(f"width={self.width} bits of noise are outside 1..23")
    if self.mode not in MODES:
      raise ValueError(f"mode={self.mode!r} is none of {', '.join(MODES)}")

  def up(self, fraction: jax.Array) -> jax.Array:
    draw = jnp.broadcast_to(jnp.asarray(self.values).astype(jnp.int32), fraction.shape)
    if self.mode == "fast":
      return _passes(fraction, 2 * draw + 1, self.width + 1)
    if self.mode == "stochastic":
      fraction = jnp.round(fraction * 2.0**self.width) * 2.0**-self.width
    return _passes(fraction, draw, self.width)


def of(key: "jax.Array | Noise | None") -> Noise | None:
  """The source that a `key` argument means: a PRNG key is that of a `Counter`.

  Raises:
    TypeError: If `key` is neither None, a PRNG key, nor a `Noise`.
  """
  if key is None or isinstance(key, Noise):
    return key
  if not _is_key(key):
    raise TypeError(
      f"key={key!r} is no PRNG key: pass jax.random.key(seed), one of the sources in "
      "numerics.formats.noise, or None to round to nearest"
    )
  return Counter(key)


def hashed(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """uint32 [shape], a function of the key and of the row-major index alone."""
  words = _words(key)
  first = _mix(words[0] ^ jnp.uint32(0x9E3779B9))
  for word in words[1:]:
    first = _mix(first ^ _mix(word + jnp.uint32(0x85EBCA6B)))
  second = _mix(first + jnp.uint32(0xC2B2AE35))
  # Two words of the key, one before and one inside the hash: with only the first, the
  # streams of two keys would be the same stream, shifted.
  h = _index(shape) + first
  h = (h ^ h >> 16) * jnp.uint32(0x7FEB352D) ^ second
  h = (h ^ h >> 15) * jnp.uint32(0x846CA68B)
  return h ^ h >> 16


def lfsr_states() -> np.ndarray:
  """The 255 states of the 8-bit register in order, from 1, as int32."""
  states = [1]
  for _ in range(254):
    state = states[-1]
    states.append(state >> 1 ^ (0xB8 if state & 1 else 0))
  return np.array(states, np.int32)


def _passes(fraction: jax.Array, draw: jax.Array, bits: int) -> jax.Array:
  """fraction + draw 2^-bits >= 1, without rounding the sum."""
  return fraction >= ((1 << bits) - draw).astype(jnp.float32) * 2.0**-bits


def _index(shape: tuple[int, ...]) -> jax.Array:
  index = jnp.zeros(shape, jnp.uint32)
  for axis, size in enumerate(shape):
    iota = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    index = index * jnp.uint32(size % 2**32) + iota
  return index


def _mix(h: jax.Array) -> jax.Array:
  h = (h ^ h >> 16) * jnp.uint32(0x7FEB352D)
  h = (h ^ h >> 15) * jnp.uint32(0x846CA68B)
  return h ^ h >> 16


def _words(key: jax.Array) -> jax.Array:
  typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  return (jax.random.key_data(key) if typed else key).reshape(-1)


def _is_key(key: object) -> bool:
  if not tree.is_array(key):
    return False
  dtype, shape = key.dtype, key.shape  # pyright: ignore[reportAttributeAccessIssue]
  typed = jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
  return typed or (dtype == jnp.uint32 and shape in ((2,), (4,)))
