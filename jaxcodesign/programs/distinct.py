"""How many values an operand has at most: copies that a broadcast makes are no data.

A grouped attention repeats each head of its keys for several heads of queries; what is
fetched from memory are the keys. Every value carries a bound on its distinct values:

  a broadcast, a view or a function of single values has no more than what it reads
  a function of several has as many as there are pairs of theirs, and no more than it
    is large: x + 1 as many as x, an outer sum all of its own
  anything else (products, sums, sorted or drawn values) as many as it is large
"""

from collections.abc import Hashable, Sequence
import math
from typing import Any

from jaxcodesign.programs.jaxprs import Literal, Program, Step

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


def flow(program: Program, inputs: Sequence[int]) -> dict[Hashable, int]:
  """A bound for every variable of a program whose inputs have the given ones."""
  question = ("distinct", *inputs)
  if question not in program.notes:
    known = {v: math.prod(getattr(c, "shape", ())) for v, c in program.constants}
    known.update(zip(program.inputs, inputs))
    for step in program.steps:
      known.update(zip(step.writes, _through(step, read(known, step))))
    program.notes[question] = known
  return program.notes[question]


def read(known: dict[Hashable, int], step: Step) -> list[int]:
  """The bounds of what a step reads; inside a shard_map inputs are parts."""
  have = [_look(known, atom) for atom in step.reads]
  return [min(pair) for pair in zip(have, sizes(step.ins))]


def _look(known: dict[Hashable, int], atom: Any) -> int:
  return 1 if isinstance(atom, Literal) else known[atom]


def sizes(avals: Sequence[Any]) -> list[int]:
  """The bounds of values of which nothing is known; 1 of what has no size."""
  return [getattr(aval, "size", 1) for aval in avals]


def enter(step: Step, ins: Sequence[int]) -> list[list[int]]:
  """Bounds of the inputs of each program inside `step`, for one iteration of loops."""
  inner = step.inner
  assert inner is not None
  if inner.kind == "cond":
    return [list(ins[1:])] * len(inner.programs)
  if inner.kind == "scan":
    first, end = inner.consts[0], inner.consts[0] + inner.carry
    carry = sizes(step.ins[first:end])
    # One of `times` slices of each input.
    slices = [
      min(have, -(-whole // max(inner.times, 1)))
      for have, whole in zip(ins[end:], sizes(step.ins[end:]))
    ]
    return [[*ins[:first], *carry, *slices]]
  if inner.kind in ("while", "other"):
    return []
  return [list(ins)]


def _through(step: Step, ins: Sequence[int]) -> list[int]:
  """Bounds of what `step` writes, from those of what it reads."""
  large = sizes(step.outs)
  if step.inner is not None:
    return [min(pair) for pair in zip(large, _through_inner(step, ins, large))]
  if step.op in _PARTS:
    return [min(ins[0], size) for size in large]
  if step.op in ("concatenate", "pad"):
    return [min(sum(ins), size) for size in large]
  if step.op == "optimization_barrier":
    return [min(pair) for pair in zip(ins, large)]
  if step.op in _ELEMENTWISE:
    return [min(math.prod(ins), size) for size in large]
  return large


def _through_inner(step: Step, ins: Sequence[int], large: list[int]) -> list[int]:
  inner = step.inner
  assert inner is not None
  entered = enter(step, ins)
  if not entered:
    return large
  each = []
  for program, bounds in zip(inner.programs, entered):
    known = flow(program, bounds)
    each.append([_look(known, a) for a in program.outputs])
  most = [max(column) for column in zip(*each)]
  if inner.kind == "scan":
    return [*large[: inner.carry], *(n * inner.times for n in most[inner.carry :])]
  return [n * inner.times for n in most]  # of all devices of a shard_map
