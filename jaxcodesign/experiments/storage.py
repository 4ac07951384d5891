"""Weights of a network as an array holds them: rounded in that form, and priced in it.

A combined layer is rounded packed: a group of a format is of neighbours on the array.
Where such groups do not divide the packed columns, columns of zeros fill the last one.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxcodesign import tree
from jaxcodesign.experiments.networks import Trained
from jaxcodesign.hardware.mapping import stored as storing
from jaxcodesign.hardware.mapping.stored import Stored
from jaxcodesign.numerics.formats.format import Format
from jaxcodesign.numerics.sparsity import masks as masking
from jaxcodesign.numerics.sparsity.column_combining import (
  Groups,
  PackedColumns,
  pack,
  unpack,
)
from jaxcodesign.numerics.sparsity.patterns import NOfM, Pattern
from jaxcodesign.programs import policy as policies
from jaxcodesign.programs import precision
from jaxcodesign.programs.precision import Rule
from jaxcodesign.programs.workload import Workload
from jaxcodesign.training.combining import Combine, as_kernel, as_matrix

_LONGEST = 4096  # the longest group of a format that columns of zeros complete


def rounded(
  policy: precision.Policy, trained: Trained, work: Workload
) -> tuple[precision.Policy, Any]:
  """The policy and parameters that compute what the array would.

  Combined weights come rounded, and the policy leaves them as they are.

  Raises:
    ValueError: If a format groups the weights of a layer that is stored as n:m: which
      of them lie side by side is not modelled.
  """
  formats = _formats(policy, work)
  for name, pattern in _patterns(trained).items():
    weight = formats.get(name, (None, None))[1]
    if isinstance(pattern, NOfM) and weight is not None and _length(weight, 1) > 1:
      raise ValueError(
        f"{name} is stored as n:m, and {weight} rounds groups of neighbours: choose a "
        "format with a scale for each channel"
      )
  if not trained.groups:
    return policy, trained.params
  leaves = tree.named_leaves(trained.params)
  ready = []
  for name, groups in trained.groups.items():
    activation, weight = formats[name]
    if weight is not None:
      packed = pack_leaf(leaves[name], groups, weight)
      matrix = unpack(dataclasses.replace(packed, values=_round(weight, packed.values)))
      leaves[name] = as_kernel(matrix, leaves[name].shape)
    ready.append(Rule(name, None, activation))
  rest = [g for g in work.gemms if g.rhs not in trained.groups]
  meant = policies.literal(policy, [g.rhs for g in rest])
  used = {policies.choose(meant, g) for g in rest}
  others = (rule for i, rule in enumerate(policy) if i in used)
  structure = jax.tree.structure(trained.params)
  return (*ready, *others), structure.unflatten(leaves.values())


def stored(
  policy: precision.Policy, trained: Trained, work: Workload
) -> dict[str, Stored]:
  """How the weights with zeros among them are stored, by the leaf of their product."""
  formats, patterns = _formats(policy, work), _patterns(trained)
  leaves = tree.named_leaves(trained.params)
  found: dict[str, Stored] = {}
  for name, groups in trained.groups.items():
    found[name] = storing.packed(pack_leaf(leaves[name], groups, formats[name][1]))
  for name, matrix in sparse_matrices(trained, work).items():
    pattern, axes = patterns.get(name), np.ndim(leaves[name])
    if name in found:
      continue
    if not isinstance(pattern, NOfM):
      found[name] = storing.dense(matrix)
      continue
    if pattern.axis % axes != axes - 2:
      raise ValueError(
        f"{name}: {pattern} runs along axis {pattern.axis} of a kernel [..., in, out]; "
        "an array skips neighbours of the contraction, axis=-2"
      )
    found[name] = storing.n_of_m(matrix, int(np.asarray(pattern.n)), pattern.m)
  return found


def sparse_matrices(trained: Trained, work: Workload) -> dict[str, np.ndarray]:
  """[n, k] of each product's weight that has zeros, by its leaf.

  Kernels of grouped convolutions are no such matrix: their zeros are executed.
  """
  leaves, found = tree.named_leaves(trained.params), {}
  for g in work.gemms:
    leaf = np.asarray(leaves.get(g.rhs, 1.0))
    if leaf.ndim > 1 and not leaf.all() and as_matrix(leaf).shape == (g.n, g.k):
      found[g.rhs] = as_matrix(leaf)
  return found


def pack_leaf(leaf: Any, groups: Groups, weight: Format | None = None) -> PackedColumns:
  """A combined leaf in packed form, with as many columns as groups of a format fill."""
  more = 0
  if weight is not None:
    more = _length(weight, groups.count) - groups.count
  members = np.pad(np.asarray(groups.members), ((0, more), (0, 0)), constant_values=-1)
  return pack(as_matrix(leaf), Groups(members, groups.columns))


@jax.jit
def _round(fmt: Format, values: jax.Array) -> jax.Array:
  return fmt.quantize(values)


def _formats(
  policy: precision.Policy, work: Workload
) -> dict[str, tuple[Format | None, Format | None]]:
  """Formats of activation and weight by the leaf of the product."""
  return {
    g.rhs: pair for g, pair in zip(work.gemms, policies.assign(policy, work.gemms))
  }


def _patterns(trained: Trained) -> dict[str, Pattern | None]:
  sparsity = trained.sparsity
  if sparsity is None or isinstance(sparsity, Combine):
    return {}
  return masking.assign(sparsity.rules, tree.names(trained.params))


def _length(fmt: Format, least: int) -> int:
  """The shortest contraction of at least so many that the groups of `fmt` divide."""
  for length in range(least, least + _LONGEST):
    try:
      fmt.check(length)
    except ValueError:
      continue
    return length
  raise ValueError(f"{fmt} divides no contraction of {least} to {least + _LONGEST}")
