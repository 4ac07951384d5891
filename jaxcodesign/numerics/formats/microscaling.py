"""Microscaling: small elements in blocks under a shared scale of eight bits.

References: OCP Microscaling Formats (MX) Specification 1.0; Rouhani et al., arXiv
2310.10537; NVIDIA, "Pretraining Large Language Models with NVFP4", arXiv 2509.25149.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.numerics.formats import exponents, minifloat, noise
from jaxcodesign.numerics.formats.compiled import compiled
from jaxcodesign.numerics.formats.fixed import Fixed
from jaxcodesign.numerics.formats.format import Format, floats
from jaxcodesign.numerics.formats.minifloat import Minifloat
from jaxcodesign.numerics.formats.sharing import (
  blocks,
  check_axis_number,
  check_block,
  unblock,
)
from jaxcodesign.numerics.formats.steps import in_steps, step_of

ScaleRule = Literal["floor", "ceil", "even", "rceil"]
SCALE_RULES: tuple[ScaleRule, ...] = ("floor", "ceil", "even", "rceil")


@tree.pytree
class Microscaling(Format):
  """OCP MX: elements times a shared power of two, an E8M0 byte.

  The scale is the exponent e as int32 [..., ceil(N / block)], within -127 ... 127, or
  128 (E8M0's NaN) where the block holds NaN or infinity. With M the largest element,
  2^t the power of two at or below it and a = max|x| of the block, e is

    "floor"  floor(log2 a) - t          the specification; the largest may saturate
    "ceil"   ceil(log2 a) - t
    "even"   floor(log2 a') - t         a' is a with its mantissa rounded to that of M
    "rceil"  ceil(log2(a / M))          the smallest that saturates nothing

  Attributes:
    element: A Minifloat, or a symmetric Fixed, which has steps of 2^(2 - bits); its own
      share is not used, its rule and overflow are.
    block: Neighbours along `axis` with one scale. A last block that is not full
      counts as filled with zeros.
    scale_rule: See above.
    axis: Where blocks lie, counted from the end.
  """

  element: Minifloat | Fixed = tree.static(default=minifloat.E4M3)
  block: int = tree.static(default=32)
  scale_rule: ScaleRule = tree.static(default="floor")
  axis: int = tree.static(default=-1)

  def __post_init__(self):
    check_element(self.element)
    check_block(self.block)
    check_axis_number(self.axis)
    if self.scale_rule not in SCALE_RULES:
      raise ValueError(
        f"scale_rule={self.scale_rule!r} is none of {', '.join(SCALE_RULES)}"
      )

  @compiled
  def scale(self, x: jax.Array) -> jax.Array:
    largest, mantissa, top = _range(self.element)
    infinity = 0x7F800000
    bits = exponents.peak_bits(blocks(floats(x), self.block, self.axis), self.axis)
    # Each rule is the floor of the exponent after an addition to the fraction.
    fraction = int(np.float32(largest).view(np.int32)) & 0x7FFFFF
    added = {
      "floor": 0,
      "ceil": 0x7FFFFF,
      "even": 1 << (22 - mantissa),
      "rceil": 0x7FFFFF - fraction,
    }[self.scale_rule]
    e = exponents.floor_log2(jnp.minimum(bits, infinity - 1) + added) - top
    # The specification's floor never exceeds 127 - top; beyond it 2^e M overflows.
    e = jnp.clip(e, -127, 127 - max(top, 0))
    return jnp.where(bits >= infinity, exponents.INFINITE, e)

  def elements(self, x: jax.Array, scale: Any, source: noise.Noise | None) -> jax.Array:
    lanes = exponents.times_power_of_two(
      blocks(x, self.block, self.axis), -jnp.expand_dims(scale, self.axis)
    )
    return unblock(
      self.element.elements(lanes, unit(self.element), source), x.shape, self.axis
    )

  def values(self, elements: jax.Array, scale: Any) -> jax.Array:
    lanes = self.element.values(
      blocks(elements, self.block, self.axis), unit(self.element)
    )
    return unblock(
      exponents.scaled(lanes, jnp.expand_dims(scale, self.axis)),
      elements.shape,
      self.axis,
    )

  def store(self, elements: jax.Array) -> jax.Array:
    return self.element.store(elements)

  def load(self, codes: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return self.element.load(codes, shape)

  def store_scale(self, scale: jax.Array) -> jax.Array:
    return exponents.to_e8m0(scale)

  def load_scale(self, stored: jax.Array) -> jax.Array:
    return exponents.from_e8m0(stored)

  def bits_per_value(self) -> float:
    return self.element.bits_per_value()

  def terms_per_value(self) -> Any:
    return self.element.terms_per_value()


class TwoLevels(NamedTuple):
  """Scale of a `ScaledBlocks`: of its scale format, and a float32 above them."""

  blocks: jax.Array
  tensor: jax.Array


@tree.pytree
class ScaledBlocks(Format):
  """NVFP4: elements times a block's minifloat scale times a tensor's float32 scale.

  The tensor's scale maps max|x| to the product of the largest element and the largest
  block scale; a block's scale is max|x| of the block over the largest element, rounded,
  and no less than the smallest normal number of its format.

  Attributes:
    element: As in `Microscaling`.
    block: Neighbours along `axis` with one scale, the last filled with zeros.
    scaling: Format of the block scales.
    tensor: False fixes the tensor's scale at 1, as for weights stored without one.
    axis: Where blocks lie, counted from the end.
    known: The tensor's scale, chosen beforehand, a leaf; None takes it from each array.
      `calibration.maximum(NVFP4, x).tensor` is one. Blocks whose scale would pass the
      largest saturate.
  """

  element: Minifloat | Fixed = tree.static(default=minifloat.E2M1)
  block: int = tree.static(default=16)
  scaling: Minifloat = tree.static(default=minifloat.E4M3)
  tensor: bool = tree.static(default=True)
  axis: int = tree.static(default=-1)
  known: jax.typing.ArrayLike | None = None

  def __post_init__(self):
    check_element(self.element)
    check_block(self.block)
    check_axis_number(self.axis)
    if not isinstance(self.scaling, Minifloat):
      raise TypeError(f"scaling={self.scaling!r} is no Minifloat")
    if self.known is not None and not self.tensor:
      raise ValueError("tensor=False has no scale above the blocks, but known is one")
    if tree.is_concrete(self.known) and not (np.asarray(self.known) > 0).all():
      raise ValueError(f"known={self.known} is no scale: it must be positive")

  @compiled
  def scale(self, x: jax.Array) -> TwoLevels:
    largest, _, _ = _range(self.element)
    peaks = exponents.peak(blocks(floats(x), self.block, self.axis), self.axis)
    least, most = 2.0**self.scaling.lowest, self.scaling.largest
    tensor = jnp.ones((), jnp.float32)
    if self.known is not None:
      known = jnp.asarray(self.known).astype(jnp.float32)
      tensor = jnp.maximum(known, exponents.TINY / least)
    elif self.tensor:
      # No lower than that its product with the least block scale is a normal number.
      tensor = jnp.maximum(
        step_of(exponents.peak(peaks, None), largest * most), exponents.TINY / least
      )
    wanted = in_steps(peaks * np.float32(1 / largest), tensor)
    finite = self.scaling.elements(
      jnp.clip(wanted, least, most), jnp.ones((), jnp.float32), None
    )
    # Infinity times zero is NaN, infinity itself is not: the block must be NaN whole.
    return TwoLevels(
      jnp.where(jnp.isfinite(peaks), finite, jnp.float32(jnp.nan)), tensor
    )

  def elements(self, x: jax.Array, scale: Any, source: noise.Noise | None) -> jax.Array:
    step = jnp.expand_dims(scale.blocks * scale.tensor, self.axis)
    lanes = in_steps(blocks(x, self.block, self.axis), step)
    return unblock(
      self.element.elements(lanes, unit(self.element), source), x.shape, self.axis
    )

  def values(self, elements: jax.Array, scale: Any) -> jax.Array:
    lanes = self.element.values(
      blocks(elements, self.block, self.axis), unit(self.element)
    )
    step = jnp.expand_dims(scale.blocks * scale.tensor, self.axis)
    return unblock(lanes * step, elements.shape, self.axis)

  def store(self, elements: jax.Array) -> jax.Array:
    return self.element.store(elements)

  def load(self, codes: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return self.element.load(codes, shape)

  def store_scale(self, scale: TwoLevels) -> TwoLevels:
    return TwoLevels(self.scaling.store(scale.blocks), scale.tensor)

  def load_scale(self, stored: TwoLevels) -> TwoLevels:
    return TwoLevels(
      self.scaling.load(stored.blocks, stored.blocks.shape), stored.tensor
    )

  def bits_per_value(self) -> float:
    return self.element.bits_per_value()

  def terms_per_value(self) -> Any:
    return self.element.terms_per_value()


def check_element(element: Any) -> None:
  """Raises a TypeError or ValueError unless a block can be made of `element`."""
  if not isinstance(element, (Minifloat, Fixed)):
    raise TypeError(f"element={element!r} is neither a Minifloat nor a Fixed")
  if isinstance(element, Fixed) and (element.grid != "symmetric" or element.bits < 2):
    raise ValueError(f"element={element!r}: symmetric integers of 2 or more bits only")


def unit(element: Minifloat | Fixed) -> jax.Array:
  """The scale at which the elements of a block are read: one, or a fixed-point step."""
  step = 2.0 ** (2 - element.bits) if isinstance(element, Fixed) else 1.0
  return jnp.full((), step, jnp.float32)


def _range(element: Minifloat | Fixed) -> tuple[float, int, int]:
  """Largest value of an element, its mantissa bits, the exponent of its largest."""
  if isinstance(element, Minifloat):
    return element.largest, element.mantissa, element.top
  return (2 ** (element.bits - 1) - 1) * 2.0 ** (2 - element.bits), element.bits - 2, 0


MXFP8_E4M3 = Microscaling(minifloat.E4M3)
MXFP8_E5M2 = Microscaling(minifloat.E5M2)
MXFP6_E2M3 = Microscaling(minifloat.E2M3)
MXFP6_E3M2 = Microscaling(minifloat.E3M2)
MXFP4 = Microscaling(minifloat.E2M1)
MXINT8 = Microscaling(Fixed(8))
NVFP4 = ScaledBlocks()
