"""Number formats: what a value becomes when it is stored in few bits.

A format is a frozen pytree with two methods that matter. `scale(x)` looks at the data
once; `round(x, scale)` puts values on the grid that the scale spans. They are two
methods because truncation lowers the peak of a tensor: a format that looked again
would move its grid and never come to rest.

Laws, checked in one table over all members:
  round(round(x, s), s) == round(x, s)      projection (Terms with booth4 excepted)
  round(-x, s) == -round(x, s)              odd
  round(0, s) == 0                          zero stays zero, so sparsity survives
  shape and dtype of the result are those of x
  a NaN makes the values that share its scale NaN; so does an infinity, in the same way

Gradients are straight-through: `round` has derivative one with respect to x (values
that saturate included) and none with respect to the scale. Groups and channels lie
along the last axis, the contraction of every canonical operand.
"""

import abc
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxcodesign import tree
from jaxcodesign.numerics import rounding, terms

Share = int | Literal["tensor", "channel"]


class Format(abc.ABC):
  """A number format; see the laws in the module's docstring."""

  @abc.abstractmethod
  def scale(self, x: jax.Array) -> jax.Array:
    """The step of the grid for `x` [..., N], in a shape that `round` understands."""

  @abc.abstractmethod
  def round(
    self, x: jax.Array, scale: jax.Array, key: jax.Array | None = None
  ) -> jax.Array:
    """`x` [..., N] on the grid of `scale`; stochastically where a PRNG key is given."""

  def quantize(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """`round(x, scale(x), key)`."""
    return self.round(x, self.scale(x), key)

  @abc.abstractmethod
  def bits_per_value(self) -> float:
    """Bits that one value occupies in memory, its share of a scale not included."""

  @abc.abstractmethod
  def terms_per_value(self) -> Any:
    """Terms a term-serial MAC must be ready for, a group's share; may be traced."""

  @abc.abstractmethod
  def most_terms(self) -> Any:
    """Terms that a single value may have; may be traced."""

  @abc.abstractmethod
  def check(self, length: int) -> None:
    """Raises a ValueError if a last axis of `length` cannot be rounded."""


@tree.pytree
class Fixed(Format):
  """Uniform integers, symmetric: -(2^(bits-1) - 1) ... 2^(bits-1) - 1 steps.

  Attributes:
    bits: 2 to 24, the sign included.
    share: Values with one scale: the whole "tensor", each "channel" (row along the
      last axis), or a group of that many neighbours, which must divide the axis.
  """

  bits: int = tree.static(default=8)
  share: Share = tree.static(default="tensor")

  def __post_init__(self):
    if not 2 <= self.bits <= 24:
      raise ValueError(f"Fixed has 2 to 24 bits (a sign and a magnitude): {self.bits}")
    _check_share(self.share)

  def scale(self, x: jax.Array) -> jax.Array:
    return _peak_scale(x, self.share, 2 ** (self.bits - 1) - 1)

  def round(
    self, x: jax.Array, scale: jax.Array, key: jax.Array | None = None
  ) -> jax.Array:
    most = 2 ** (self.bits - 1) - 1
    steps = _to_steps(x, scale, self.share, most, key)
    return _from_steps(x, steps, scale, self.share)

  def bits_per_value(self) -> float:
    return float(self.bits)

  def terms_per_value(self) -> Any:
    return self.most_terms()

  def most_terms(self) -> Any:
    return float(terms.most_terms(self.bits - 1))

  def check(self, length: int) -> None:
    if isinstance(self.share, int):
      terms.check_group(self.share, (length,))


@tree.pytree
class Terms(Format):
  """Term quantization: `budget` powers of two for each `group` of integers.

  With budget >= group * most_terms(bits), values within the scale are rounded as by
  `Fixed(bits + 1)`; 2^bits steps are on the grid too, since 127 cut to one term is 128.

  Attributes:
    budget: Terms kept per group, >= 1; a leaf, so that a schedule compiles once.
    group: Neighbours along the last axis that share the budget; must divide it. Weights
      take groups (8 in the paper), activations `group=1` and `budget=s`.
    bits: Magnitude bits of the integers; the sign comes on top.
    encoding: "naf" (default, fewest terms), "hese3", "booth4" or "binary".
    share: Values with one scale, as in `Fixed`.

  Reference: Kung, McDanel, Zhang. "Term Quantization", SC 2020.
  """

  budget: jax.typing.ArrayLike
  group: int = tree.static(default=8)
  bits: int = tree.static(default=7)
  encoding: terms.Encoding = tree.static(default="naf")
  share: Share = tree.static(default="tensor")

  def __post_init__(self):
    terms.check_budget(self.budget)
    if self.group < 1:
      raise ValueError(f"group={self.group} must be at least 1")
    if not 1 <= self.bits <= 23:
      raise ValueError(f"bits={self.bits} is outside 1..23")
    if self.encoding not in terms.ENCODINGS:
      raise ValueError(f"encoding={self.encoding!r} is none of {terms.ENCODINGS}")
    _check_share(self.share)

  def scale(self, x: jax.Array) -> jax.Array:
    terms.check_group(self.group, x.shape)
    return _peak_scale(x, self.share, 2**self.bits - 1)

  def round(
    self, x: jax.Array, scale: jax.Array, key: jax.Array | None = None
  ) -> jax.Array:
    # 127 cut to one term is 128, so 2^bits is on the grid. Booth would need a further
    # digit to write it.
    most = 2**self.bits - (self.encoding == "booth4")
    steps = _to_steps(x, scale, self.share, most, key)
    kept = terms.keep_largest(
      jnp.nan_to_num(steps).astype(jnp.int32),
      self.budget,
      group=self.group,
      bits=self.bits,
      encoding=self.encoding,
    )
    # A NaN has no integer: it goes around the encoder.
    values = jnp.where(jnp.isnan(steps), steps, kept.astype(steps.dtype))
    return _from_steps(x, values, scale, self.share)

  def bits_per_value(self) -> float:
    return float(self.bits + 1)

  def terms_per_value(self) -> Any:
    terms.check_budget(self.budget)
    most = float(terms.most_terms(self.bits, self.encoding))
    budget = jnp.asarray(self.budget, jnp.result_type(float))
    return jnp.minimum(budget / self.group, most)

  def most_terms(self) -> Any:
    terms.check_budget(self.budget)
    most = float(terms.most_terms(self.bits, self.encoding))
    return jnp.minimum(jnp.asarray(self.budget, jnp.result_type(float)), most)

  def check(self, length: int) -> None:
    terms.check_group(self.group, (length,))
    if isinstance(self.share, int):
      terms.check_group(self.share, (length,))


def _check_share(share: Share) -> None:
  if share not in ("tensor", "channel") and not (isinstance(share, int) and share >= 1):
    raise ValueError(
      f'share={share!r} is neither "tensor", "channel" nor a group size >= 1'
    )


def _rows(x: jax.Array, share: Share) -> jax.Array:
  """`x` [..., N] reshaped so that its last axis is what shares one scale."""
  if share == "tensor":
    return x.reshape(-1)
  if share == "channel":
    return x
  terms.check_group(share, x.shape)
  return x.reshape(*x.shape[:-1], x.shape[-1] // share, share)


def _refuse_integers(x: jax.Array) -> None:
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(
      f"formats round floating point, not {x.dtype}: cast the array first"
    )


def _peak_scale(x: jax.Array, share: Share, most: int) -> jax.Array:
  """float32 steps so that the largest magnitude takes `most` of them; 1 where all is 0.

  Shape: `_rows(x, share).shape[:-1]`.
  """
  _refuse_integers(x)
  peak = jnp.max(jnp.abs(_rows(x, share)).astype(jnp.float32), axis=-1, initial=0)
  # Times the reciprocal: under jit XLA turns a division by a constant into that, and
  # the last bit would depend on whether a caller jits.
  step = jax.lax.stop_gradient(peak) * jnp.float32(1 / most)
  tiny = jnp.finfo(jnp.float32).tiny
  return jnp.where(peak == 0, jnp.float32(1), jnp.maximum(step, tiny))


def _to_steps(
  x: jax.Array, scale: jax.Array, share: Share, most: int, key: jax.Array | None
) -> jax.Array:
  """`x` in whole steps of `scale`, saturated at `most`; float32, no gradient."""
  _refuse_integers(x)
  rows = _rows(jax.lax.stop_gradient(x), share).astype(jnp.float32)
  steps = rounding.to_integer(rows / scale[..., None], key)
  return jnp.clip(steps, -most, most).reshape(x.shape)


def _from_steps(
  x: jax.Array, steps: jax.Array, scale: jax.Array, share: Share
) -> jax.Array:
  values = (_rows(steps, share) * scale[..., None]).reshape(x.shape)
  # 127 steps cut to the term 128 may leave the range of a narrow dtype.
  largest = float(jnp.finfo(x.dtype).max)
  values = jnp.clip(values, -largest, largest).astype(x.dtype)
  return rounding.straight_through(x, values)
