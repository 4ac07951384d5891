"""How a cell takes the multiply-accumulates of a product: cycles, lanes and joules.

A step of time is what a cell sums at once: its `lanes` products, neighbours along the
contraction. It takes a cycle in a parallel cell, one for each bit of the activation in
a bit-serial one, for each pair of terms or chunks in the others, and as many more as
an operand wider than the cell needs passes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcodesign.hardware.machines import synthesis
from jaxcodesign.hardware.machines.spec import Mac
from jaxcodesign.hardware.mapping.dataflow import Operand
from jaxcodesign.numerics.formats.block_float import BlockFloat
from jaxcodesign.numerics.formats.format import Format
from jaxcodesign.numerics.formats.rounding import (
  straight_through,
  straight_through_ceil,
)
from jaxcodesign.numerics.formats.terms import most_terms
from jaxcodesign.programs import precision
from jaxcodesign.programs.workload import Gemm, Workload


class Steps(NamedTuple):
  """How a cell takes the multiply-accumulates of a product, [L].

  Attributes:
    cycles: Of one step.
    lanes: Multiply-accumulates of one step, neighbours along the contraction.
    active_j: Joules of an active cycle.
  """

  cycles: jax.Array
  lanes: Any
  active_j: Any


def steps(mac: Mac, left: Operand, right: Operand, *, native: bool = False) -> Steps:
  """Cycles, width and energy of a step, for operands of some bits and terms.

  Args:
    mac: The cell.
    left: Activations.
    right: Weights.
    native: The operands are known to be as wide as the cell.

  The numbers of passes, chunks, fused cells and terms are whole at any temperature: an
  operand that fits the cell exactly is the usual case. Their derivatives are those of
  the line through full ones, a secant of the steps: 1 / W passes a bit beyond the W
  bits of the cell and none below, where one pass is the least, half as much at W. Of
  operands narrower than a parallel cell switched energy is smooth.
  """
  if mac.kind == "term_serial":
    cycles = left.terms * right.terms
  elif mac.kind == "chunk_serial":
    cycles = _chunks(right.bits, mac.weight_bits) * _chunks(
      left.bits, mac.activation_bits
    )
  else:
    over_weight = _passes(right.bits, mac.weight_bits)
    over_image = _passes(left.bits, mac.activation_bits)
    if mac.kind == "bit_serial":
      cycles = left.bits * over_weight
    else:
      cycles = over_weight * over_image
      if mac.kind == "parallel" and not native:
        products = right.bits / over_weight * left.bits / over_image
        full = jnp.sqrt(mac.weight_bits * mac.activation_bits)
        used = synthesis.share(jnp.sqrt(products), full)
        return Steps(cycles, mac.lanes, mac.idle_j + mac.dynamic_j() * used)
  lanes = mac.lanes
  if mac.kind == "fusible":
    lanes *= _fused(right.bits, mac.weight_bits) * _fused(
      left.bits, mac.activation_bits
    )
  return Steps(cycles, lanes, mac.energy_j)


def operands(
  workload: Workload, mac: Mac, policy: precision.Policy
) -> tuple[Operand, Operand]:
  """Bits and terms of left and right operands: a format's, or the cell's own."""
  pairs = precision.assign(policy, workload.gemms)
  number = lambda x: jnp.asarray(x, jnp.result_type(float))
  bits = lambda fmt, native: number(native if fmt is None else _bits(fmt))
  # Without a format: any int8, whose magnitude of 7 bits has at most 4 terms.
  native = most_terms(7)
  lefts, rights = [], []
  for (left, right), g in zip(pairs, workload.gemms):
    _check_groups(left, right, g)
    lefts.append(
      (bits(left, mac.activation_bits), left.most_terms() if left else native)
    )
    per_value = right and (right.terms_per_value() if g.rhs else right.most_terms())
    width = mac.weight_bits if g.rhs else mac.activation_bits
    rights.append((bits(right, width), native if right is None else per_value))
  left, right = (
    Operand(*(jnp.stack([number(x) for x in column]) for column in zip(*side)))
    for side in (lefts, rights)
  )
  return left, right


def covering(k: Any, lanes: Any) -> Any:
  """Steps that cover a contraction."""
  one = isinstance(lanes, int) and lanes == 1
  return k if one else straight_through_ceil(k / lanes)


def _bits(fmt: Format) -> jax.Array:
  """Bits of a value; a mantissa, which is a leaf, has the derivative of a bit."""
  if isinstance(fmt, BlockFloat):
    bits = 1 + jnp.asarray(fmt.mantissa, jnp.result_type(float))
    return straight_through(bits, jnp.floor(bits))
  return jnp.asarray(fmt.bits_per_value(), jnp.result_type(float))


def _check_groups(left: Format | None, right: Format | None, g: Gemm) -> None:
  """Refuses what `quantize` would refuse."""
  for fmt, length, side in ((left, g.k // g.window, "left"), (right, g.k, "right")):
    try:
      if fmt is not None:
        fmt.check(length)
    except ValueError as error:
      raise ValueError(f"{g.name}, {side} operand: {error}") from error


def _passes(bits: Any, width: Any) -> jax.Array:
  """Passes of a cell of `width` over operands of `bits`."""
  x = bits / width
  return straight_through(jnp.maximum(x, 1.0), jnp.maximum(jnp.ceil(x), 1.0))


def _chunks(bits: Any, width: Any) -> jax.Array:
  """Chunks of the magnitude, each of a sign and `width` - 1 bits."""
  return straight_through_ceil((bits - 1) / (width - 1))


def _fused(bits: Any, width: Any) -> jax.Array:
  """Multipliers of `bits` that one of `width` splits into, along one operand."""
  x = width / jnp.maximum(bits, 2.0)
  return straight_through(jnp.maximum(x, 1.0), jnp.maximum(jnp.floor(x), 1.0))
