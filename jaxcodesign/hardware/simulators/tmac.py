"""The tMAC: a dot product of term-quantized groups, one pair of terms a cycle.

A group of g weights has at most k terms together, each datum at most s. In a cycle the
tMAC takes one weight term and one term of the datum it belongs to, adds their exponents
and adds their sign to that entry of a coefficient vector, so a group takes k s cycles,
whatever the values. Afterwards a converter makes sum_i coefficient_i 2^i of the vector.
In front of the next layer stand, bit-serially, an HESE encoder (`encode`) and a
comparator that keeps the largest terms of a group (`compare`).

Reference: Kung, McDanel, Zhang. "Term Quantization: Furthering Quantization at Run
Time", SC 2020, and its published Verilog (16 coefficients).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jaxcodesign.hardware.simulators.bit_words import check_magnitude
from jaxcodesign.numerics.formats import terms

# The Verilog has 16, for exponents up to 7; HESE carries 8-bit values to exponent 8.
COEFFICIENTS = 17


class TermTrace(NamedTuple):
  """What the tMACs did.

  Attributes:
    cycles: Of one tMAC: groups * k * s.
    busy: int32 [groups, k * s], tMACs [m, n] that had two real terms in a cycle.
    largest: Largest magnitude of a coefficient, what its counter must hold.
  """

  cycles: int
  busy: jax.Array
  largest: jax.Array


def simulate(
  a: jax.Array,
  b: jax.Array,
  *,
  group: int,
  budget: int,
  data_terms: int,
  bits: int = 8,
  encoding: terms.Encoding = "hese3",
) -> tuple[jax.Array, TermTrace]:
  """Runs a @ b.T on a tMAC for each result, term pair by term pair.

  Args:
    a: [m, k] integers, data; each keeps its `data_terms` largest terms (s).
    b: [n, k] integers, weights; a group keeps its `budget` largest terms (k).
    group: Weights of a group along the contraction; must divide it.
    budget: Weight terms of a group.
    data_terms: Terms of a datum.
    bits: Magnitude bits of both operands, at most 8.
    encoding: Terms of both operands, one of `terms.ENCODINGS`.

  Returns:
    int32 [m, n], exactly the product of what `terms.keep_largest` leaves of the
    operands, and the trace.

  Raises:
    ValueError: If shapes do not fit, a budget is below 1 or known values have more than
      `bits` bits; of traced ones the low bits count.
  """
  for name, x in (("a", a), ("b", b)):
    check_magnitude(name, x, bits)
  return _simulate(a, b, group, budget, data_terms, bits, encoding)


@partial(jax.jit, static_argnames=("group", "budget", "data_terms", "bits", "encoding"))
def _simulate(
  a: jax.Array,
  b: jax.Array,
  group: int,
  budget: int,
  data_terms: int,
  bits: int,
  encoding: terms.Encoding,
) -> tuple[jax.Array, TermTrace]:
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or 0 in a.shape + b.shape:
    raise ValueError(f"operands have shapes {a.shape} and {b.shape}: [m, k], [n, k]")
  if not 1 <= bits <= 8:
    raise ValueError(f"bits={bits}: {COEFFICIENTS} coefficients hold 1 to 8 bits")
  for budget_ in (budget, data_terms):
    terms.check_budget(budget_)
  terms.check_group(group, b.shape)
  count = a.shape[1] // group
  split = lambda x: x.reshape(x.shape[0], count, group).swapaxes(0, 1)
  weight = _term_list(split(b), budget, bits, encoding)
  # [groups, m, g, s]: each datum is a group of its own.
  datum = _term_list(split(a)[..., None], data_terms, bits, encoding)
  pairs = jnp.arange(budget * data_terms)
  shape = (a.shape[0], b.shape[0])

  def dot(sums: jax.Array, operands: Any) -> Any:
    (lane, high, sign), (_, low, other) = operands

    def cycle(state: Any, pair: jax.Array) -> Any:
      i, j = pair // data_terms, pair % data_terms
      term = low[:, lane[:, i], j] + high[None, :, i]
      both = other[:, lane[:, i], j] * sign[None, :, i]
      entry = jax.nn.one_hot(term, COEFFICIENTS, dtype=jnp.int32)
      return state + both[..., None] * entry, jnp.sum(jnp.abs(both))

    zero = jnp.zeros((*shape, COEFFICIENTS), jnp.int32)
    vector, busy = lax.scan(cycle, zero, pairs)
    places = jnp.arange(COEFFICIENTS).reshape(1, 1, -1)
    value = jnp.sum(vector << places, axis=-1)
    return sums + value, (busy, jnp.max(jnp.abs(vector)))

  sums = jnp.zeros(shape, jnp.int32)
  product, (busy, largest) = lax.scan(dot, sums, (weight, datum))
  return product, TermTrace(count * budget * data_terms, busy, jnp.max(largest))


def _term_list(
  q: jax.Array, most: int, bits: int, encoding: terms.Encoding
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The `most` largest terms of groups [..., g]: (lane, exponent, sign) [..., most].

  Missing terms have sign 0.
  """
  group = q.shape[-1]
  planes = terms.digits(q, bits, encoding)  # [..., g, bits + 1], largest first
  digit = jnp.moveaxis(planes, -1, -2).reshape(*q.shape[:-1], (bits + 1) * group)
  order = jnp.argsort(digit == 0, axis=-1, stable=True)[..., :most]
  short = max(0, most - digit.shape[-1])
  sign = jnp.take_along_axis(digit, order, axis=-1)
  widths = [(0, 0)] * (q.ndim - 1) + [(0, short)]
  full = lambda x: jnp.pad(x, widths)
  return full(order % group), full(bits - order // group), full(sign)


@partial(jax.jit, static_argnames="bits")
def encode(magnitude: jax.Array, *, bits: int) -> jax.Array:
  """The serial HESE encoder: a digit a cycle from a window of three bits.

  Args:
    magnitude: int32 [...], not negative, below 2^bits.
    bits: Cycles, less one.

  Returns:
    int32 [..., bits + 1] digits in {-1, 0, 1}, largest first: those of
    `terms.digits(magnitude, bits, "hese3")`.
  """

  def cycle(window: Any, i: jax.Array) -> Any:
    up, mid = window
    down = jnp.where(i < 0, 0, magnitude >> jnp.maximum(i, 0) & 1)
    # (up mid down): 010 is +2^(i + 1), 110 is -2^(i + 1), 011 is +2^(i + 2).
    own = (1 - 2 * up) * mid * (1 - down)
    above = (1 - up) * mid * down
    return (mid, down), (own, above)

  zero = jnp.zeros_like(magnitude)
  _, (own, above) = lax.scan(cycle, (zero, zero), jnp.arange(bits - 1, -2, -1))
  # The first cycle decides bit `bits`; a pair of ones was decided a cycle before.
  digits = own + jnp.concatenate([above[1:], zero[None]])
  return jnp.moveaxis(digits, 0, -1)


@jax.jit
def compare(digits: jax.Array, budget: jax.typing.ArrayLike) -> jax.Array:
  """The comparator: passes the `budget` largest terms of a group, a bit plane a cycle.

  Args:
    digits: int32 [..., g, planes] in {-1, 0, 1}, largest plane first.
    budget: Terms that pass; may be traced.

  Returns:
    `digits`, zero where the budget was spent on larger terms or earlier lanes.
  """
  budget = jnp.asarray(budget, jnp.int32)

  def cycle(spent: jax.Array, plane: jax.Array) -> Any:
    present = jnp.abs(plane)
    rank = lax.associative_scan(jnp.add, present, axis=-1)
    kept = jnp.where(spent[..., None] + rank <= budget, plane, 0)
    return spent + rank[..., -1], kept

  spent = jnp.zeros(digits.shape[:-2], jnp.int32)
  _, kept = lax.scan(cycle, spent, jnp.moveaxis(digits, -1, 0))
  return jnp.moveaxis(kept, 0, -1)
