"""Integers whose range is learned with the weights, or derived from a bounded function.

  LSQ     the step is a parameter: Esser et al., "Learned Step Size Quantization", ICLR
          2020
  PACT    the upper end of an activation is one: Choi et al., arXiv 1805.06085
  DoReFa  weights through tanh, activations clipped to [0, 1]: Zhou et al., arXiv
          1606.06160

They are formats, so rules of a policy hold them; `step` and `limit` are leaves, so the
gradient by the policy trains them:

  def loss(params, policy): return task(quantize(fn, policy)(params, x))
  jax.grad(loss, argnums=(0, 1))

DoReFa's quantized gradients are a rule's: `gradient=Fixed(k)`, with a key.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.numerics.formats import exponents, noise, rounding, terms
from jaxcodesign.numerics.formats.compiled import compiled
from jaxcodesign.numerics.formats.format import Format, Key
from jaxcodesign.numerics.formats.steps import in_steps
from jaxcodesign.numerics.formats.storage import load_integers, store_integers

LEAST = 2.0**-64  # of a step or a limit: below, gradients times it would be flushed


class _Learned(Format):
  """What the three share: elements are whole numbers, of any sign or none."""

  bits: int

  @property
  def pointwise(self) -> bool:
    return True

  @property
  def _middle(self) -> int:
    """What is taken from unsigned elements before they are stored."""
    return 2 ** (self.bits - 1)

  def store(self, elements: jax.Array) -> jax.Array:
    return store_integers(elements - self._middle, 2 ** (self.bits - 1) - 1)

  def load(self, codes: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return load_integers(codes, shape) + self._middle

  def bits_per_value(self) -> float:
    return float(self.bits)

  def terms_per_value(self) -> float:
    return float(terms.most_terms(self.bits))

  @compiled
  def round(self, x: jax.Array, scale: Any, key: Key | None = None) -> jax.Array:
    elements = self.elements(_floats(x), scale, noise.of(key))
    return self.values(elements, scale).astype(x.dtype)


@tree.pytree
class LSQ(_Learned):
  """round(clip(x / step, -Q_n, Q_p)) steps; the step learns.

  The gradient by x is one inside the range and zero outside. That by the step is
  round(v) - v inside, v = x / step, and -Q_n or Q_p outside, times 1 / sqrt(N Q_p) for
  an array of N values.

  Attributes:
    step: > 0, a leaf; start with `lsq_step`. Below LEAST it counts as LEAST, with the
      gradient there, so that an optimizer which overshot comes back.
    bits: 2 to 16.
    signed: Q_n = 2^(bits-1), Q_p = 2^(bits-1) - 1; unsigned 0 and 2^bits - 1.
  """

  step: jax.typing.ArrayLike
  bits: int = tree.static(default=8)
  signed: bool = tree.static(default=True)

  def __post_init__(self):
    _check_bits(self.bits)
    _check_positive("step", self.step, "lsq_step(x, bits) is a good start")

  @property
  def _middle(self) -> int:
    return 0 if self.signed else 2 ** (self.bits - 1)

  def limits(self) -> tuple[int, int]:
    """-Q_n and Q_p."""
    return _limits(self.bits, self.signed)

  @compiled
  def scale(self, x: jax.Array) -> jax.Array:
    _, most = self.limits()
    return _slower(_at_least(self.step), 1 / math.sqrt(max(x.size, 1) * most))

  def elements(self, x: jax.Array, scale: Any, source: noise.Noise | None) -> jax.Array:
    low, high = self.limits()
    # Twice: the first keeps derivatives finite, the second mends its last bit.
    steps = _counted(jnp.clip(x, low * scale, high * scale), scale)
    steps = jnp.clip(steps, low, high)
    return rounding.straight_through(steps, rounding.to_integer(steps, source))

  def values(self, elements: jax.Array, scale: Any) -> jax.Array:
    return elements * scale


@tree.pytree
class PACT(_Learned):
  """clip(x, 0, limit) in 2^bits - 1 steps; the limit learns.

  The gradient by x is one in (0, limit) and zero outside; that by the limit is one for
  x >= limit and zero below.

  Attributes:
    limit: > 0, a leaf; as `LSQ.step` below LEAST. The paper regularizes it with L2.
    bits: 2 to 16.
  """

  limit: jax.typing.ArrayLike = 10.0
  bits: int = tree.static(default=8)

  def __post_init__(self):
    _check_bits(self.bits)
    _check_positive("limit", self.limit, "10 is a usual start")

  @compiled
  def scale(self, x: jax.Array) -> jax.Array:
    del x
    return _at_least(self.limit)

  @compiled
  def round(self, x: jax.Array, scale: Any, key: Key | None = None) -> jax.Array:
    given = _floats(x)
    inside = jnp.where(given > 0, given, jnp.float32(0))
    clipped = jnp.where(given >= scale, scale, inside)
    clipped = jnp.where(jnp.isnan(given), given, clipped)
    elements = self.elements(given, scale, noise.of(key))
    return rounding.straight_through(clipped, self.values(elements, scale)).astype(
      x.dtype
    )

  def elements(self, x: jax.Array, scale: Any, source: noise.Noise | None) -> jax.Array:
    steps = in_steps(jnp.clip(x, jnp.float32(0), scale), self._step(scale))
    return jnp.clip(rounding.to_integer(steps, source), 0, 2**self.bits - 1)

  def values(self, elements: jax.Array, scale: Any) -> jax.Array:
    return elements * self._step(scale)

  def _step(self, scale: jax.Array) -> jax.Array:
    return scale * np.float32(1 / (2**self.bits - 1))


@tree.pytree
class DoReFa(_Learned):
  """2^bits levels, evenly spaced: over [-1, 1] for weights, [0, 1] for activations.

  A weight becomes 2 q(tanh(w) / (2 max|tanh w|) + 1/2) - 1, an activation
  q(clip(x, 0, 1)), q rounding to multiples of 1 / (2^bits - 1) with derivative one; the
  maximum has none. Zero is no level of a weight, and the function no projection.

  Attributes:
    bits: 2 to 16.
    operand: "weight" or "activation".
  """

  bits: int = tree.static(default=8)
  operand: Literal["weight", "activation"] = tree.static(default="weight")

  def __post_init__(self):
    _check_bits(self.bits)
    if self.operand not in ("weight", "activation"):
      raise ValueError(f"operand={self.operand!r} is neither weight nor activation")

  @compiled
  def scale(self, x: jax.Array) -> jax.Array:
    if self.operand == "activation":
      return jnp.ones((), jnp.float32)
    peak = exponents.peak(jnp.tanh(jax.lax.stop_gradient(_floats(x))), None)
    return jnp.where(peak == 0, jnp.float32(1), peak)

  def elements(self, x: jax.Array, scale: Any, source: noise.Noise | None) -> jax.Array:
    if self.operand == "activation":
      unit = jnp.clip(x, 0, 1)
    else:
      unit = in_steps(jnp.tanh(x), scale) * 0.5 + 0.5
    steps = unit * (2**self.bits - 1)
    whole = jnp.clip(rounding.to_integer(steps, source), 0, 2**self.bits - 1)
    return rounding.straight_through(steps, whole)

  def values(self, elements: jax.Array, scale: Any) -> jax.Array:
    unit = elements * np.float32(1 / (2**self.bits - 1))
    unit = jnp.where(jnp.isnan(scale), scale, unit)
    return unit if self.operand == "activation" else unit * 2 - 1


def lsq_step(x: jax.Array, bits: int, *, signed: bool = True) -> jax.Array:
  """The step that LSQ starts from: 2 mean|x| / sqrt(Q_p)."""
  _check_bits(bits)
  return 2 * jnp.mean(jnp.abs(_floats(x))) / math.sqrt(_limits(bits, signed)[1])


def _limits(bits: int, signed: bool) -> tuple[int, int]:
  half = 2 ** (bits - 1)
  return (-half, half - 1) if signed else (0, 2 * half - 1)


def _floats(x: jax.Array) -> jax.Array:
  """`x` in float32, with its gradient.

  Raises:
    TypeError: If `x` is no floating-point array.
  """
  if not tree.is_array(x) or not jnp.issubdtype(x.dtype, jnp.floating):
    kind = x.dtype if tree.is_array(x) else type(x).__name__
    raise TypeError(
      f"a format rounds floating-point arrays; x is {kind}: cast it first"
    )
  return jnp.asarray(x).astype(jnp.float32)


def _at_least(learned: jax.typing.ArrayLike) -> jax.Array:
  """The nearest that is LEAST or more; one that overshot zero has a gradient still."""
  given = jnp.asarray(learned, jnp.float32)
  return rounding.straight_through(given, jnp.maximum(given, LEAST))


@jax.custom_jvp
def _counted(x: jax.Array, step: jax.Array) -> jax.Array:
  """`in_steps`, whose derivative by the step divides by no square of it."""
  return in_steps(x, step)


@_counted.defjvp
def _counted_jvp(primals, tangents):
  (x, step), (dx, dstep) = primals, tangents
  steps = _counted(x, step)
  return steps, _counted(dx - steps * dstep, step)


@jax.custom_jvp
def _slower(x: jax.Array, rate: float) -> jax.Array:
  """`x`, with its gradient times `rate`."""
  del rate
  return x


@_slower.defjvp
def _slower_jvp(primals, tangents):
  return _slower(*primals), tangents[0] * primals[1]


def _check_bits(bits: object) -> None:
  if not isinstance(bits, int) or not 2 <= bits <= 16:
    raise ValueError(f"bits={bits} is outside 2..16; for one bit take Fixed(1)")


def _check_positive(name: str, value: Any, start: str) -> None:
  if tree.is_concrete(value) and not np.all(np.asarray(value) > 0):
    raise ValueError(f"{name}={value} must be positive; {start}")
