"""Term quantization: spend a fixed budget of powers of two on each group.

An integer is a sum of signed powers of two, its *terms*. Keeping only the `budget`
largest terms of every `group` neighbours bounds a term-serial MAC to `budget` cycles
per group and data term. How few terms a number needs is a matter of its encoding; all
four here are closed forms on the bits of a magnitude m, with u = m >> 1 and d = m << 1:

  binary  the set bits themselves
  naf     non-adjacent form: no two neighbouring digits, the fewest possible terms
  hese3   three-bit window, most significant first, as the authors' code was released:
          (u m d) = 010 -> +2^i, 011 -> +2^(i+1), 110 -> -2^i; never fewer terms than
          naf, more for 35 of 0..255 (27 = 32 - 8 + 4 - 1 against 32 - 4 - 1)
  booth4  radix-4 Booth recoding: one term per nonzero digit of {-2, -1, 0, 1, 2}

Reference: Kung, McDanel, Zhang. "Term Quantization: Furthering Quantization at Run
Time", SC 2020.
"""

from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree

Encoding = Literal["binary", "naf", "hese3", "booth4"]
ENCODINGS: tuple[Encoding, ...] = ("binary", "naf", "hese3", "booth4")
_EVEN = 0x15555555


def signed_bits(m: jax.Array, encoding: Encoding) -> tuple[jax.Array, jax.Array]:
  """The terms of `m` as two bit masks: m == plus - minus, plus & minus == 0.

  `m` is int32, from 0 to 2**29.
  """
  up, down = m >> 1, m << 1
  if encoding == "binary":
    return m, jnp.zeros_like(m)
  if encoding == "naf":
    return (3 * m & ~m) >> 1, (m & ~(3 * m)) >> 1
  if encoding == "hese3":
    return (m & ~up & ~down) | ((m & ~up & down) << 1), up & m & ~down
  if encoding == "booth4":
    one, both = (m ^ down) & _EVEN, m & down & _EVEN
    neither = ~m & ~down & _EVEN
    return (
      (one & ~up) | ((both & ~up) << 1),
      (one & up) | ((neither & up) << 1),
    )
  raise ValueError(f"encoding={encoding!r} is none of {', '.join(ENCODINGS)}")


def digits(q: jax.Array, bits: int, encoding: Encoding = "naf") -> jax.Array:
  """Returns the signed digits of `q`, most significant first.

  Args:
    q: [...] integers, |q| < 2**bits.
    bits: Magnitude bits of `q`, at most 24; an encoding may carry into one more.
    encoding: One of ENCODINGS.

  Returns:
    int32 [..., bits + 1] in {-1, 0, 1}, with q == sum_i digits[..., i] * 2**(bits - i).
  """
  q = _wide(q, bits)
  plus, minus = signed_bits(jnp.abs(q), encoding)
  sign = jnp.sign(q)
  planes = [sign * ((plus >> i & 1) - (minus >> i & 1)) for i in range(bits, -1, -1)]
  return jnp.stack(planes, axis=-1)


def count(q: jax.Array, encoding: Encoding = "naf") -> jax.Array:
  """Number of terms of each integer of `q` [...], as int32."""
  q = _wide(q, 24)
  plus, minus = signed_bits(jnp.abs(q), encoding)
  return jax.lax.population_count(plus | minus).astype(jnp.int32)


def most_terms(bits: int, encoding: Encoding = "naf") -> int:
  """The largest number of terms that a magnitude below 2**bits can have."""
  if encoding == "binary":
    return bits
  return (2 * bits + 2) // 3 if encoding == "hese3" else bits // 2 + 1


def keep_largest(
  q: jax.Array,
  budget: jax.typing.ArrayLike,
  *,
  group: int,
  bits: int,
  encoding: Encoding = "naf",
) -> jax.Array:
  """Keeps the `budget` largest terms of each group along the last axis.

  Args:
    q: [..., N] integers, |q| < 2**bits; N must be a multiple of `group`.
    budget: Terms left per group, rounded down. May be traced: a schedule does not
      recompile.
    group: Values that share one budget.
    bits: Magnitude bits of `q`.
    encoding: One of ENCODINGS.

  Returns:
    int32 [..., N], at most 2**bits in magnitude. Ties go to the earlier value of
    the group. Keeping twice is keeping once, except for booth4: what is left of its
    digits may have another Booth recoding, with more terms.

  Raises:
    ValueError: If `group` does not divide N, or a `budget` known now is below 1.
  """
  check_budget(budget)
  check_group(group, q.shape)
  q = _wide(q, bits)
  lanes = q.reshape(*q.shape[:-1], q.shape[-1] // group, group)
  plus, minus = signed_bits(jnp.abs(lanes), encoding)
  mask = _kept_bits(plus | minus, jnp.asarray(budget).astype(q.dtype), bits)
  return (jnp.sign(lanes) * ((plus & mask) - (minus & mask))).reshape(q.shape)


def _kept_bits(present: jax.Array, budget: jax.Array, bits: int) -> jax.Array:
  """Masks [..., group] of the bits of `present` that a budget for each group covers.

  Planes of equal significance are spent whole, from the top, until one does not fit;
  of that one the first lanes get what is left. So only one plane needs ranks.
  """
  whole = edge = left = jnp.zeros_like(present[..., :1])
  spent = jnp.zeros_like(whole)
  fits = jnp.ones(whole.shape, bool)
  for i, plane in _plane_counts(present, bits):
    total = spent + plane
    first_over = fits & (total > budget)
    edge = jnp.where(first_over, 1 << i, edge)
    left = jnp.where(first_over, budget - spent, left)
    fits &= total <= budget
    whole |= jnp.where(fits, 1 << i, 0)
    spent = total
  rank = _ranks((present & edge) != 0).astype(present.dtype)
  return whole | jnp.where(rank <= left, edge, 0)


def _plane_counts(present: jax.Array, bits: int) -> Iterator[tuple[int, jax.Array]]:
  """(i, number of values [..., 1] of the group with bit i), from i = bits down.

  The counts of several planes ride in the fields of one word, so that a group is summed
  once for all of them: 8 planes of 4 bits, 4 of 8, or one where groups are large.
  """
  group = present.shape[-1]
  width = 4 if group < 16 else 8 if group < 256 else 32
  planes = 32 // width
  for low in reversed(range(0, bits + 1, planes)):
    chunk = (present >> low).astype(jnp.uint32) & ((1 << planes) - 1)
    word = jnp.sum(_spread(chunk, width), axis=-1, keepdims=True, dtype=jnp.uint32)
    for i in reversed(range(min(planes, bits + 1 - low))):
      field = word >> (width * i) & jnp.uint32((1 << width) - 1)
      yield low + i, field.astype(present.dtype)


def _spread(chunk: jax.Array, width: int) -> jax.Array:
  """uint32 words whose bit width * i is bit i of `chunk`; the others are zero."""
  if width == 32:
    return chunk
  if width == 8:
    return chunk * 0x00204081 & 0x01010101
  chunk = (chunk | chunk << 12) & 0x000F000F
  chunk = (chunk | chunk << 6) & 0x03030303
  return (chunk | chunk << 3) & 0x11111111


def _ranks(on: jax.Array) -> jax.Array:
  """How many of a group [..., group] are `on` up to and with each one."""
  group = on.shape[-1]
  if group > 31:
    # Not cumsum: XLA makes a window reduction of it, slow to run and slower to fold.
    return jax.lax.associative_scan(jnp.add, on.astype(jnp.int32), axis=-1)
  lane = jax.lax.broadcasted_iota(jnp.uint32, on.shape, on.ndim - 1)
  word = jnp.sum(
    on.astype(jnp.uint32) << lane, axis=-1, keepdims=True, dtype=jnp.uint32
  )
  upto = (jnp.uint32(2) << lane) - 1
  return jax.lax.population_count(word & upto)


def check_budget(budget: jax.typing.ArrayLike) -> None:
  """Raises a ValueError if `budget` is known now and allows no term at all.

  A TypeError, if its dtype is that of no real number.
  """
  tree.check_number("budget", budget)
  if tree.is_concrete(budget) and not np.all(np.asarray(budget) >= 1):
    raise ValueError(
      f"budget={budget} keeps no term; a group needs at least 1 (pruned weights are "
      "zero already and cost none)"
    )


def check_group(group: int, shape: tuple[int, ...], axis: int = -1) -> None:
  """Raises a ValueError unless `group` >= 1 divides an axis of `shape`."""
  if group < 1 or not shape or shape[axis] % group:
    where = "the last axis" if axis == -1 else f"axis {axis}"
    raise ValueError(
      f"group={group} does not divide {where} of shape {shape}; choose a group "
      "that divides the contraction, or leave this product out of the policy"
    )


def _wide(q: jax.Array, bits: int) -> jax.Array:
  """`q` as int32: three times an int8 magnitude, as NAF needs, is no int8."""
  if not jnp.issubdtype(q.dtype, jnp.signedinteger):
    raise TypeError(f"terms are those of signed integers; q has dtype {q.dtype}")
  if not 1 <= bits <= 24:
    raise ValueError(f"bits={bits} is outside 1..24")
  return q.astype(jnp.int32)
