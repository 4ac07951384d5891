"""Rounding that gradients pass: straight-through, stochastic, and smooth ceilings.

A rounding has a derivative of zero almost everywhere. Training replaces it by one
(the straight-through estimator: Bengio, Leonard, Courville, arXiv 1308.3432);
hardware tuning replaces the step itself by a smooth one.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxcodesign.numerics.formats import noise

Rule = Literal["even", "away", "truncate"]
RULES: tuple[Rule, ...] = ("even", "away", "truncate")


@jax.custom_jvp
def straight_through(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns exactly `y`, with the gradient of `x`.

  Args:
    x: [...] what the gradient flows to.
    y: [...] the value, usually a rounding of `x`; same shape and dtype.

  The textbook `x + stop_gradient(y - x)` adds in floating point and leaves the number
  grid wherever `y` is far from `x` (binary weights, truncated terms); here nothing is
  computed, so every value of `y`, infinite and NaN included, comes back bit for bit.
  Its derivatives of any order are those of the textbook form.
  """
  del x
  return y


@straight_through.defjvp
def _straight_through_jvp(primals, tangents):
  # Not primals[1], a constant, which would end every second derivative.
  return straight_through(*primals), tangents[0]


def to_integer(
  x: jax.Array, key: jax.Array | noise.Noise | None = None, rule: Rule = "even"
) -> jax.Array:
  """Rounds to integers, kept in the dtype of `x`.

  Args:
    x: [...] floating point.
    key: None rounds by `rule`. A PRNG key or another source of `noise` rounds
      stochastically: away from zero with a probability equal to the fraction, so the
      expectation is `x`, and the rounding of -x under the same key is minus that of x.
    rule: "even" and "away" round to nearest and say where ties go; "truncate" rounds
      towards zero.

  No gradient: wrap in `straight_through` where one is wanted.
  """
  check_rule(rule)
  source = noise.of(key)
  if source is None and rule == "even":
    return jnp.round(x)
  low = jnp.trunc(x)
  if source is None and rule == "truncate":
    return low
  fraction = jnp.abs(x - low).astype(jnp.float32)
  up = fraction >= 0.5 if source is None else source.up(fraction)
  return jnp.where(up, low + jnp.copysign(jnp.ones_like(x), x), low)


def check_rule(rule: str) -> None:
  """Raises a ValueError unless `rule` is one of RULES."""
  if rule not in RULES:
    raise ValueError(f"rule={rule!r} is none of {', '.join(RULES)}")


def straight_through_ceil(x: jax.Array) -> jax.Array:
  """`ceil(x)` with a derivative of one: exact values, usable slopes."""
  return straight_through(x, jnp.ceil(x))


def smooth_ceil(x: jax.Array, temperature: jax.typing.ArrayLike) -> jax.Array:
  """A strictly increasing, analytic stand-in for `ceil`, exact at temperature 0.

  `ceil` convolved with a wrapped Cauchy kernel, whose density is the Poisson kernel
  P_r with r = exp(-temperature):

    y + 1/2 + atan2(r sin 2 pi y, 1 - r cos 2 pi y) / pi,   y = x - shift

  The derivative is P_r(2 pi y) = (1 - r^2) / (1 - 2 r cos 2 pi y + r^2) > 0: a loop
  count that is one over a tile boundary feels the pull back. The shift,
  tanh(sqrt(temperature) / 4) / 2, puts the steps after the integers, so that a size
  that divides exactly is not charged half a tile more; it shrinks slower than the
  steps steepen. Low temperatures tend to ceil, high ones to x. At temperature 0 the
  value is `ceil(x)` and the derivative 0.

  Args:
    x: [...] floating point.
    temperature: >= 0, broadcast against `x`; may be traced.
  """
  temperature = jnp.asarray(temperature, x.dtype)
  hot = temperature > 0
  safe = jnp.where(hot, temperature, 1.0)
  r, shift = jnp.exp(-safe), jnp.tanh(jnp.sqrt(safe) / 4) / 2
  # Reduced before the multiplication by 2 pi: large counts would lose their fraction.
  angle = 2 * jnp.pi * (x - jnp.floor(x) - shift)
  # 1 - r cos without cancellation: at low temperatures both terms are near one.
  beside = -jnp.expm1(-safe) + 2 * r * jnp.sin(angle / 2) ** 2
  wave = jnp.arctan2(r * jnp.sin(angle), beside)
  return jnp.where(hot, x - shift + 0.5 + wave / jnp.pi, jnp.ceil(x))
