"""Which forward product each product of a training iteration belongs to.

The gradients of y = x w^T by x and by w are two more products. In the trace of a
gradient they carry the name of the weight; those of two activations carry their line in
the program. Where several forward products have one name (a weight used twice, the
layers of a Python loop), backward products run in the opposite order, so the last one
that has none yet is meant. An input gradient contracts over the outputs n, the gradient
by a right operand over the rows m: that tells those of two activations apart, unless m
is n.
"""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

from jaxcodesign.programs.workload import Gemm, Workload

FORWARD, BY_LEFT, BY_RIGHT = range(3)


class Belongs(NamedTuple):
  """What a product of the workload computes.

  Attributes:
    products: Forward products it may belong to, as positions among these; several only
      where a recomputed one cannot be told apart.
    kinds: FORWARD, BY_LEFT (the input gradient) or BY_RIGHT (the weight gradient); the
      last two together where they cannot be told apart, being of the same sizes.
  """

  products: tuple[int, ...]
  kinds: tuple[int, ...]


def forward(workload: Workload) -> tuple[Gemm, ...]:
  """The forward products, in order of execution."""
  return tuple(g for g in workload.gemms if g.role == "forward")


def belongs(workload: Workload) -> tuple[Belongs, ...]:
  """Finds the forward product of every product of a gradient.

  Args:
    workload: From `trace(jax.grad(loss))`.

  Returns:
    One entry for each product of the workload.

  Raises:
    ValueError: If a backward product has no forward product left that it could belong
      to; the message names it and its line.
  """
  first = forward(workload)
  taken: set[tuple[int, int]] = set()
  found, seen = [], 0
  for g in workload.gemms:
    if g.role == "forward":
      found.append(Belongs((seen,), (FORWARD,)))
      seen += 1
      continue
    alike = [i for i, f in enumerate(first) if _alike(f, g)]
    if g.role == "recompute" and alike:
      found.append(Belongs(tuple(alike), (FORWARD,)))
      continue
    found.append(_backward(g, first, alike, taken))
  return tuple(found)


def in_place(workload: Workload, kin: Sequence[Belongs]) -> Workload:
  """The workload with input gradients as an array runs them that holds the weight.

  They have the sizes of the forward product: [m, n] gradients meet the [n, k] weight
  where it lies and leave [m, k], of which those of a convolution's windows are added
  up. Autodiff's own convolution contracts over n and the window at once, and over the
  zeros between strides.

  Args:
    workload: A gradient's.
    kin: What `belongs` says of it.
  """
  first, gemms = forward(workload), []
  for g, (products, kinds) in zip(workload.gemms, kin):
    if g.rhs and kinds == (BY_LEFT,):
      f = first[products[0]]
      g = dataclasses.replace(
        g,
        batch=f.batch,
        m=f.m,
        k=f.n,
        n=f.k,
        lhs_elements=f.out_elements,
        out_elements=f.lhs_elements,
      )
    gemms.append(g)
  return dataclasses.replace(workload, gemms=tuple(gemms))


def _alike(f: Gemm, g: Gemm) -> bool:
  """Whether two products have one leaf, or stand on one line if one has none."""
  mine, its = (x.rhs or x.lhs or x.output for x in (f, g))
  return mine == its if mine and its else f.source == g.source


def _backward(
  g: Gemm, first: Sequence[Gemm], alike: Sequence[int], taken: set[tuple[int, int]]
) -> Belongs:
  for i in reversed(alike):
    kinds = _kinds(g, first[i])
    free = [kind for kind in kinds if (i, kind) not in taken]
    if free:
      taken.add((i, free[0]))
      return Belongs((i,), kinds)
  raise ValueError(
    f"{g.source}: product {g.name} [{g.m}, {g.k}] x [{g.n}, {g.k}] ({g.role}) belongs "
    "to no forward product of this workload: trace jax.grad of a loss, and no custom "
    "derivative with products of its own"
  )


def _kinds(g: Gemm, f: Gemm) -> tuple[int, ...]:
  if g.role == "weight_gradient":
    return (BY_RIGHT,)
  if g.rhs:
    return (BY_LEFT,)
  sizes = ((BY_LEFT, f.n), (BY_RIGHT, f.m))
  return tuple(kind for kind, contraction in sizes if g.k == contraction)
