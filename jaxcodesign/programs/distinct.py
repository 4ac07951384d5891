"""How many values an operand has at most: copies that a broadcast makes are no data.

A grouped attention repeats each head of its keys for several heads of queries; what is
fetched from memory are the keys. Every value carries a bound on its distinct values:

  a broadcast, a view or a function of single values has no more than what it reads
  a function of several has as many as there are pairs of theirs, and no more than it
    is large: x + 1 as many as x, an outer sum all of its own
  anything else (products, sums, sorted or drawn values) as many as it is large
"""

from collections.abc import Sequence
import math
from typing import Any

from jaxcodesign.programs.jaxprs import Step

# Of the first operand alone, whatever else they read.
_PARTS = {"slice", "dynamic_slice", "gather", "split"}
_WORDS = """
broadcast_in_dim reshape squeeze transpose rev copy copy_p expand_dims name
convert_element_type reduce_precision stop_gradient pvary pcast sharding_constraint
mesh_cast reshard
abs acos acosh asin asinh atan atanh cbrt ceil cos cosh erf erf_inv erfc exp exp2 expm1
floor integer_pow is_finite lgamma log log1p logistic neg not population_count real imag
round rsqrt sign sin sinh sqrt square tan tanh
add add_any and atan2 clamp div eq ge gt le lt max min mul ne nextafter or pow rem
select_n shift_left shift_right_arithmetic shift_right_logical sub xor
"""
_ELEMENTWISE = frozenset(_WORDS.split())


def sizes(avals: Sequence[Any]) -> list[int]:
  """The bounds of values of which nothing is known; 1 of what has no size."""
  return [getattr(aval, "size", 1) for aval in avals]


def bounds(step: Step, ins: Sequence[int]) -> list[int]:
  """Bounds of what a step without programs inside writes, from those of its reads."""
  large = sizes(step.outs)
  if step.op in _PARTS:
    return [min(ins[0], size) for size in large]
  if step.op in ("concatenate", "pad"):
    return [min(sum(ins), size) for size in large]
  if step.op == "optimization_barrier":
    return [min(pair) for pair in zip(ins, large)]
  if step.op in _ELEMENTWISE:
    return [min(math.prod(ins), size) for size in large]
  return large
