"""Block floating point: integers that share the exponent of the largest among them.

The format of FAST, of MSFP and of HBFP: a dot product of two blocks is one of integers
and one addition of exponents.

References: Zhang, McDanel, Kung, "FAST: DNN Training Under Variable Precision Block
Floating Point with Stochastic Rounding", HPCA 2022; Darvish Rouhani et al., "Pushing
the Limits of Narrow Precision Inferencing at Cloud Scale with Microsoft Floating
Point", NeurIPS 2020; Drumond et al., "Training DNNs with Hybrid Block Floating Point",
NeurIPS 2018.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.numerics.formats import exponents, noise, rounding, terms
from jaxcodesign.numerics.formats.compiled import compiled
from jaxcodesign.numerics.formats.format import Format, Key, Packed, floats
from jaxcodesign.numerics.formats.sharing import (
  blocks,
  check_axis_number,
  check_block,
  check_whole,
  unblock,
)
from jaxcodesign.numerics.formats.storage import signed_type, store_integers


class Window(NamedTuple):
  """Exponents in fewer than 8 bits: codes below the top one of the tensor."""

  codes: jax.Array
  top: jax.Array


@tree.pytree
class BlockFloat(Format):
  """Sign and `mantissa` bits, no hidden one, in steps of 2^(E - mantissa + 1).

  E = floor(log2(max|x|)) of the block; elements saturate at 2^mantissa - 1 steps.
  The scale is E as int32 [..., ceil(N / block)], 128 where the block holds NaN or inf.

  Attributes:
    mantissa: Magnitude bits, 1 to 23, rounded down; a leaf, so that a precision
      schedule compiles once. `pack` needs it known.
    block: Neighbours along `axis` with one exponent. A last block that is not
      full counts as filled with zeros.
    exponent: Bits of E, 1 to 8. With 8 it is absolute, one E8M0 byte. With less it
      counts down from the largest of the tensor, which all blocks then share: blocks
      below the window take its lowest exponent and lose bits, and NaN is everywhere.
    rule: "even", "away", or FAST's "truncate", where no noise is given.
    axis: Where blocks lie, counted from the end: -1, the last, is the contraction of
      canonical operands.
  """

  mantissa: jax.typing.ArrayLike = 4
  block: int = tree.static(default=16)
  exponent: int = tree.static(default=8)
  rule: rounding.Rule = tree.static(default="even")
  axis: int = tree.static(default=-1)

  def __post_init__(self):
    check_whole(exponent=self.exponent)
    if isinstance(self.mantissa, str | bool):
      raise TypeError(f"mantissa={self.mantissa!r} is no number of bits")
    if tree.is_concrete(self.mantissa):
      low, high = np.min(self.mantissa), np.max(self.mantissa)
      if not 1 <= low <= high < 24:
        raise ValueError(f"mantissa={self.mantissa} is outside 1..23")
    check_block(self.block)
    check_axis_number(self.axis)
    if not 1 <= self.exponent <= 8:
      raise ValueError(f"exponent={self.exponent} bits are outside 1..8")
    rounding.check_rule(self.rule)

  @compiled
  def scale(self, x: jax.Array) -> jax.Array:
    e = exponents.floor_log2(
      exponents.peak_bits(blocks(floats(x), self.block, self.axis), self.axis)
    )
    if self.exponent == 8:
      return e
    top = jnp.max(e, initial=-126)
    e = jnp.maximum(e, top - (2**self.exponent - 1))
    return jnp.where(top == exponents.INFINITE, top, e)

  @compiled
  def refinement(self, x: jax.Array) -> jax.Array:
    """FAST's r: how much 4 bits of mantissa change what 2 bits make of `x`.

    sum |BFP4(x) - BFP2(x)| / sum |BFP2(x)|, both rounded to nearest even, whatever
    `mantissa` and `rule` are.

    Returns:
      float32 [], >= 0: 0 for zeros alone, NaN if `x` holds NaN or an infinity. Blocks
      whose peak is above 2^90 count as if it were 2^90: the sums would overflow.
    """
    scale, (low, high) = self.scale(x), (2, 4)
    lanes = blocks(floats(x), self.block, self.axis)
    e = jnp.expand_dims(scale, self.axis)
    steps = jnp.abs(exponents.times_power_of_two(lanes, high - 1 - e))
    fine = jnp.minimum(jnp.round(steps), 2.0**high - 1)
    coarse = jnp.minimum(jnp.round(steps * 2.0 ** (low - high)), 2.0**low - 1)
    change = jnp.abs(fine - coarse * 2.0 ** (high - low))
    # Both sums of a block in one integer, exactly: one pass over the data.
    room = (self.block * 2**high).bit_length()
    if 2 * room > 31:
      raise ValueError(f"block={self.block} is too long to compare precisions in int32")
    packed = (change + coarse * 2.0**room).astype(jnp.int32)
    sums = jnp.sum(packed, self.axis)
    pair = jnp.stack([sums & (2**room - 1), (sums >> room) << (high - low)])
    weight = jnp.where(
      scale == exponents.INFINITE,
      jnp.float32(jnp.nan),
      exponents.power_of_two(jnp.minimum(scale, 90)),
    )
    change, size = jnp.sum(pair.astype(jnp.float32) * weight[None], range(1, pair.ndim))
    return jnp.where(
      size == 0, jnp.float32(0), change / jnp.where(size == 0, 1.0, size)
    )

  def _mantissa(self) -> jax.Array:
    tree.check_number("mantissa", self.mantissa)
    return jnp.asarray(self.mantissa).astype(jnp.int32)

  def elements(self, x: jax.Array, scale: Any, source: noise.Noise | None) -> jax.Array:
    m = self._mantissa()
    lanes = blocks(x, self.block, self.axis)
    steps = exponents.times_power_of_two(
      lanes, jnp.expand_dims(m - 1 - scale, self.axis)
    )
    most = ((1 << m) - 1).astype(jnp.float32)
    whole = rounding.to_integer(steps, source, self.rule)
    return unblock(jnp.clip(whole, -most, most), x.shape, self.axis)

  def values(self, elements: jax.Array, scale: Any) -> jax.Array:
    lanes = blocks(elements, self.block, self.axis)
    poisoned = scale == exponents.INFINITE
    e = jnp.where(poisoned, scale, scale - (self._mantissa() - 1))
    return unblock(
      exponents.scaled(lanes, jnp.expand_dims(e, self.axis)), elements.shape, self.axis
    )

  def pack(self, x: jax.Array, key: Key | None = None) -> Packed:
    if not tree.is_concrete(self.mantissa):
      return super().pack(x, key)
    # A number of Python's own is known inside a compiled program, an array is not.
    return Format.pack(
      dataclasses.replace(self, mantissa=int(np.max(self.mantissa))), x, key
    )

  def store(self, elements: jax.Array) -> jax.Array:
    if not tree.is_concrete(self.mantissa):
      raise ValueError(
        "pack needs a mantissa that is known: its bits decide the storage type; "
        "replace the traced leaf by a number"
      )
    return store_integers(elements, 2 ** int(np.max(self.mantissa)) - 1)

  def store_scale(self, scale: jax.Array) -> Any:
    if self.exponent == 8:
      return exponents.to_e8m0(scale)
    top, half = jnp.max(scale, initial=-126), 2 ** (self.exponent - 1)
    codes = scale - top + half - 1
    return Window(codes.astype(signed_type(half - 1)), exponents.to_e8m0(top))

  def load_scale(self, stored: Any) -> jax.Array:
    if self.exponent == 8:
      return exponents.from_e8m0(stored)
    top, half = exponents.from_e8m0(stored.top), 2 ** (self.exponent - 1)
    return stored.codes.astype(jnp.int32) + top - half + 1

  def bits_per_value(self) -> Any:
    if _is_number(self.mantissa):
      return 1.0 + int(np.asarray(self.mantissa))
    return self._mantissa().astype(jnp.float32) + 1

  def terms_per_value(self) -> Any:
    if _is_number(self.mantissa):
      return float(terms.most_terms(int(np.asarray(self.mantissa))))
    return (self._mantissa() // 2 + 1).astype(jnp.float32)


def _is_number(leaf: Any) -> bool:
  return tree.is_concrete(leaf) and np.ndim(leaf) == 0
