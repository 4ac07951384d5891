"""Which parameter a value comes from: how a product gets its name.

Name stacks do not name products (linen has them, nnx and equinox do not). What flows
into a product does: every value carries an `Origin`, parameters start with their own,
and each step passes on what it was given.

  a value made of parameters and constants alone keeps the name of the largest leaf
  a weight that data only selects or scales elementwise (an expert picked by a router,
    a mask that is an argument) keeps its name, but is no longer `pure`
  anything else that data touches is an activation, without a name

With it goes how many distinct values there are at most (see `distinct`).

Backward products of weights have no parameter among their operands; they are named by
the leaf of the output that they flow into (`sinks`).
"""

from collections.abc import Hashable, Iterable, Sequence
import math
from typing import Any, NamedTuple

import jax

from jaxcodesign import tree
from jaxcodesign.programs import distinct
from jaxcodesign.programs.jaxprs import PRODUCTS, Literal, Program, Step, Traced

# What data may do to a weight without making it an activation.
_SELECT = {"mul", "div", "select_n", "gather", "dynamic_slice"}
# Inputs whose elements all reach the output, which is larger or smaller.
_MOVES = {
  "slice": (0,),
  "dynamic_slice": (0,),
  "split": (0,),
  "pad": (0,),
  "dynamic_update_slice": (0, 1),
  "scatter": (0, 2),
  "scatter-add": (0, 2),
  "scatter_add": (0, 2),
}


class Origin(NamedTuple):
  """Where a value comes from.

  Attributes:
    leaf: Name of the parameter leaf, "" for activations and constants.
    size: Elements of that leaf; a bias broadcast over a batch outgrows it.
    pure: No data flowed in: parameters and constants only.
    most: Distinct values that it has at most.
  """

  leaf: str
  size: int
  pure: bool
  most: int = 1

  @property
  def rank(self) -> int:
    """2 for a weight, 1 for a weight that data selected, 0 for everything else."""
    return (1 + self.pure) if self.leaf else 0


DATA = Origin("", 0, False)
CONSTANT = Origin("", 0, True)
_SEVERAL = Origin("", -1, True)  # one leaf or another, as a loop or branch has it


def parameters(params: Any, traced: Traced) -> list[Origin]:
  """Origins of the inputs of a traced function whose first argument is `params`."""
  named = [
    Origin(name, math.prod(leaf.shape), True)
    for name, leaf in zip(tree.names(params), jax.tree.leaves(params))
    if tree.is_array(leaf)
  ]
  found = named + [DATA] * (len(traced.program.inputs) - len(named))
  return _bounded(found, distinct.sizes(traced.arrays))


def flow(program: Program, inputs: Sequence[Origin]) -> dict[Hashable, Origin]:
  """Origin of every variable of a program whose inputs have the given ones."""
  question = ("flow", *inputs)
  if question not in program.notes:
    known: dict[Hashable, Origin] = {
      v: CONSTANT._replace(most=math.prod(getattr(value, "shape", ())))
      for v, value in program.constants
    }
    known.update(zip(program.inputs, inputs))
    for step in program.steps:
      known.update(zip(step.writes, through(step, read(known, step))))
    program.notes[question] = known
  return program.notes[question]


def look(known: dict[Hashable, Origin], atom: Any) -> Origin:
  """Origin of a variable or a Literal."""
  return CONSTANT if isinstance(atom, Literal) else known[atom]


def read(known: dict[Hashable, Origin], step: Step) -> list[Origin]:
  """Origins of what a step reads; of a part of it, inside a shard_map."""
  have = [look(known, atom) for atom in step.reads]
  sizes = distinct.sizes(step.ins)
  return [o if o.most <= n else o._replace(most=n) for o, n in zip(have, sizes)]


def through(step: Step, ins: Sequence[Origin]) -> list[Origin]:
  """Origins of what `step` writes, from those of what it reads."""
  if step.inner is not None:
    found = _through_inner(step, ins)
    return _bounded(found, map(min, distinct.sizes(step.outs), (o.most for o in found)))
  return _bounded(_origins(step, ins), distinct.bounds(step, [o.most for o in ins]))


def _bounded(origins: Iterable[Origin], most: Iterable[int]) -> list[Origin]:
  return [o._replace(most=n) for o, n in zip(origins, most)]


def _origins(step: Step, ins: Sequence[Origin]) -> list[Origin]:
  if step.op in PRODUCTS and not all(o.leaf for o in ins):
    # Two weights make a weight (a low-rank update); a cotangent that happens to be
    # constant does not.
    return [DATA]
  largest = max(ins, key=lambda o: o.size, default=CONSTANT)
  if all(o.pure for o in ins):
    return [largest] * len(step.writes)
  if len(step.writes) == 1 and (step.op in _SELECT or len(ins) == 1):
    size = max(getattr(step.outs[0], "size", 0), 1)  # a token has none
    named = [o for o in ins if o.leaf and o.size >= size]
    if named:
      return [max(named, key=lambda o: o.size)._replace(pure=False)]
  return [DATA] * len(step.writes)


def enter(step: Step, ins: Sequence[Origin]) -> list[list[Origin]]:
  """Origins of the inputs of each program inside `step`.

  A loop carry has the origin that survives an iteration: a fixed point.
  """
  inner, ins = step.inner, list(ins)
  assert inner is not None
  whole = distinct.sizes(step.ins)
  if inner.kind == "cond":
    return [ins[1:]] * len(inner.programs)
  if inner.kind == "while":
    n, m = inner.consts
    carry = _bounded(ins[n + m :], whole[n + m :])
    carry = _settle(inner.programs[1], ins[n : n + m], carry, [])
    return [[*ins[:n], *carry], [*ins[n : n + m], *carry]]
  if inner.kind == "scan":
    n, end = inner.consts[0], inner.consts[0] + inner.carry
    parts = [size // max(inner.times, 1) for size in whole[end:]]
    xs = _bounded(ins[end:], map(min, parts, (o.most for o in ins[end:])))
    carry = _bounded(ins[n:end], whole[n:end])
    return [[*ins[:n], *_settle(inner.programs[0], ins[:n], carry, xs), *xs]]
  if inner.kind == "other":
    return [[DATA] * len(p.inputs) for p in inner.programs]
  return [ins]


def outputs(program: Program, inputs: Sequence[Origin]) -> list[Origin]:
  """Origins of what a program returns."""
  known = flow(program, inputs)
  return [look(known, a) for a in program.outputs]


def _through_inner(step: Step, ins: Sequence[Origin]) -> list[Origin]:
  inner = step.inner
  assert inner is not None
  sizes = distinct.sizes(step.outs)
  if inner.kind == "other":
    one = CONSTANT if all(o.pure for o in ins) else DATA
    return _bounded([one] * len(sizes), sizes)
  entered = enter(step, ins)
  if inner.kind == "while":
    return _bounded(entered[1][inner.consts[1] :], sizes)
  each = [outputs(p, o) for p, o in zip(inner.programs, entered)]
  found = [_join(column) for column in zip(*each)]
  # All iterations of a scan, all devices of a shard_map.
  return _bounded(found, (o.most * inner.times for o in found))


def _settle(
  body: Program, consts: list[Origin], carry: list[Origin], xs: list[Origin]
) -> list[Origin]:
  while True:
    after = outputs(body, [*consts, *carry, *xs])[: len(carry)]
    joined = [_join(pair)._replace(most=pair[0].most) for pair in zip(carry, after)]
    if joined == carry:
      return carry
    carry = joined


def _join(origins: Sequence[Origin]) -> Origin:
  """One origin for a value that may be any of several; never gains a name twice."""
  pure, most = all(o.pure for o in origins), max(o.most for o in origins)
  named = [o for o in origins if o.leaf]
  several = any(o.size == _SEVERAL.size for o in origins)
  if several or any(o.leaf != named[0].leaf for o in named):
    found = _SEVERAL if pure else DATA
  elif pure:
    found = named[0] if named else CONSTANT
  else:
    # A loop that starts from zeros and goes on with data holds data.
    found = named[0] if len(named) == len(origins) else DATA
  return found._replace(pure=pure, most=most)


def sinks(program: Program, names: Sequence[str]) -> dict[Hashable, str]:
  """Names of variables by the output leaf they flow into, elements kept one to one.

  Args:
    program: Any program.
    names: One per output of `program`, "" for outputs of no interest.

  Returns:
    Variable -> name. A variable that flows into several has the first one's.
  """
  question = ("sinks", *names)
  if question not in program.notes:
    found: dict[Hashable, str] = {}
    _name(found, program.outputs, names)
    for step in reversed(program.steps):
      wanted = [found.get(v, "") for v in step.writes]
      if any(wanted):
        _name(found, step.reads, _pull(step, wanted))
    program.notes[question] = found
  return program.notes[question]


def _name(
  found: dict[Hashable, str], atoms: Sequence[Any], names: Sequence[str]
) -> None:
  for atom, name in zip(atoms, names):
    if name and not isinstance(atom, Literal):
      found.setdefault(atom, name)


def _pull(step: Step, wanted: list[str]) -> list[str]:
  """For each input of `step`, the name of the output it reaches one to one."""
  if step.inner is not None:
    return _pull_inner(step, wanted)
  nothing = [""] * len(step.reads)
  if step.op in PRODUCTS:
    return nothing
  first = next(name for name in wanted if name)
  if step.op in _MOVES:
    return [first if i in _MOVES[step.op] else "" for i in range(len(step.reads))]
  if step.op == "concatenate":
    return [first] * len(step.reads)
  size = lambda aval: getattr(aval, "size", None)
  if len(step.writes) == 1:
    return [first if size(a) == size(step.outs[0]) else "" for a in step.ins]
  if len(step.writes) == len(step.reads):  # psum, optimization_barrier
    same = [size(a) == size(b) for a, b in zip(step.ins, step.outs)]
    return [name if hit else "" for name, hit in zip(wanted, same)]
  return nothing


def _pull_inner(step: Step, wanted: list[str]) -> list[str]:
  inner = step.inner
  assert inner is not None
  if inner.kind in ("while", "other"):
    return [""] * len(step.reads)
  reached: dict[Hashable, str] = {}
  for program in inner.programs:
    found = sinks(program, wanted)
    index = len(step.reads) - len(program.inputs)  # cond: 1, the branch index
    _name(
      reached, range(index, len(step.reads)), [found.get(v, "") for v in program.inputs]
    )
  return [reached.get(i, "") for i in range(len(step.reads))]


def gradient_names(outputs: Any, params: Any) -> list[str]:
  """For each leaf of `outputs`, the parameter that it is the gradient of, else "".

  Its name ends in the parameter's and its shape in the parameter's shape:
  `jax.value_and_grad` returns leaf `1/encoder/kernel`, the gradient of
  `encoder/kernel`; a vmapped gradient has leading axes. Parameters that are one leaf
  have no name to end in, so the shape decides.
  """
  known = {n: x.shape for n, x in tree.named_leaves(params).items() if tree.is_array(x)}

  def parameter(name: str, shape: tuple[int, ...]) -> str:
    parts = name.split("/")
    tails = ["/".join(parts[i:]) for i in range(len(parts))]
    fits = lambda t: t in known and shape[len(shape) - len(known[t]) :] == known[t]
    return next(filter(fits, [*tails, *(known if len(known) == 1 else [])]), "")

  return [parameter(n, x.shape) for n, x in tree.named_leaves(outputs).items()]
