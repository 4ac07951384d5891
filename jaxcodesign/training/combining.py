"""Column combining under joint optimization: prune, combine, train on, and again.

At each event of a schedule, between two steps, every layer is pruned to a density, its
columns are grouped, and of each group one weight a row stays; training goes on under
these masks, and wins back what the round cost. The network that comes out is packed
without a further loss.

A kernel is seen as the matrix that an array holds: outputs as rows, its contraction,
taps and input channels of a convolution, as columns.

Reference: Kung, McDanel, Zhang. "Packing Sparse Convolutional Neural Networks for
Efficient Systolic Array Implementations: Column Combining Under Joint Optimization",
ASPLOS 2019.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcodesign import tree
from jaxcodesign.numerics.schedules import Iterative, Schedule
from jaxcodesign.numerics.sparsity import masks as masking
from jaxcodesign.numerics.sparsity.column_combining import (
  Groups,
  Method,
  PackedColumns,
  conflict_mask,
  group_columns,
  pack,
)
from jaxcodesign.numerics.sparsity.patterns import Unstructured, magnitude
from jaxcodesign.training import pruning
from jaxcodesign.training.masked import Masked


@dataclasses.dataclass(frozen=True)
class Layer:
  """How the layers that a glob matches are combined.

  Attributes:
    leaf: Glob on the names of kernels; the first that matches a leaf decides.
    density: Part of the weights that stays at the end, conflicts not yet pruned. The
      released code has 1 - 0.8 (1 - 1 / alpha).
    alpha: Most columns of a group.
    gamma: Most conflicts of a group, per row on average.
  """

  leaf: str
  density: float = 0.3
  alpha: int = 8
  gamma: float = 0.5

  def __post_init__(self):
    if not 0 < self.density <= 1:
      raise ValueError(f"density={self.density} of {self.leaf} must be in (0, 1]")
    if self.alpha < 1 or not 0 <= self.gamma < math.inf:
      raise ValueError(f"alpha must be at least 1 and gamma at least 0 in {self}")


@dataclasses.dataclass(frozen=True)
class Combine(Masked):
  """Layers to combine, when, and how.

  Under `Cubic` and `OneShot` schedules a round prunes to the density of its time, as
  the released code does, before it prunes conflicts. Under `Iterative` it prunes a
  share of what has survived, conflicts included, as in the paper's loop: a layer that
  has reached its density is left as it is.

  Each round groups anew and may prune gamma conflicts a row. Without `regrow` these add
  up, so many rounds end well below the density.

  Attributes:
    layers: More specific globs first.
    schedule: Of the density; its times are shares of the run, in [0, 1).
    method: Of grouping, "pairs" as the released code, or "dense_first".
    sections: Columns within which groups stay; None for all.
    regrow: Whether masked weights keep their gradients and may come back in a later
      round, as in the released code.
  """

  layers: tuple[Layer, ...]
  schedule: Schedule
  method: Method = "pairs"
  sections: int | None = None
  regrow: bool = False

  def __post_init__(self):
    if not self.layers:
      raise ValueError("layers=(): name the layers to combine, or do not combine")

  def wrap(
    self, optimizer: optax.GradientTransformation, steps: int
  ) -> optax.GradientTransformation:
    """`optimizer` under masks that `combine` sets, in a run of so many steps."""
    del steps  # they are counted outside
    rules = [masking.Rule(x.leaf, Unstructured(x.density)) for x in self.layers]
    return pruning.prune(optimizer, rules, None, regrow=self.regrow)

  def rounds(self, steps: int) -> list[int]:
    """The steps, from 0, of a run of `steps` before which `combine` is to be called.

    Raises:
      ValueError: If the last one is not within the run.
    """
    schedule = self.schedule.scaled(steps)
    schedule.check(steps)
    places = jnp.arange(schedule.last + 1)
    return np.flatnonzero(jax.vmap(schedule.is_event)(places)).tolist()

  def between(
    self, state: Any, memory: Mapping[str, Any], step: int, steps: int
  ) -> tuple[Any, dict[str, Any]]:
    """`state` under the masks of one round; the memory holds the groups."""
    before = Combined(pruning.masks_of(state.optimizer), groups_of(memory))
    found = self.combine(state.params, before, step, steps)
    moved = pruning.with_masks(state.optimizer, found.masks)
    return state._replace(optimizer=moved), remembered(found.groups)

  def combine(
    self, params: Any, before: "Combined", step: int, steps: int
  ) -> "Combined":
    """One round: what stays of `params` from now on.

    Args:
      params: Tree of arrays, on the host or not, latent weights if `regrow`.
      before: The present masks, and the groups of the round before, if any.
      step: From 0.
      steps: Of the run.
    """
    schedule = self.schedule.scaled(steps)
    densities, done = {}, {}
    for name, layer, mask in _chosen(params, before.masks, self.layers):
      density = float(schedule(step, layer.density))
      if isinstance(schedule, Iterative):
        left = float(np.mean(np.asarray(mask)))
        rounds = (step - schedule.begin) // schedule.every
        share = schedule.rate * schedule.decay**rounds
        density = min(left, max(layer.density, left * (1 - share)))
        if left <= layer.density and name in before.groups:
          done[name] = mask
          continue
      densities[name] = density
    found = combine(
      params, self.layers, densities, method=self.method, sections=self.sections
    )
    return _kept(before, found, done)


class Combined(NamedTuple):
  """What stays of a network, and which columns share one.

  Attributes:
    masks: A tree like the parameters: bool, None for a leaf that is not combined.
    groups: Of each combined leaf, by name.
  """

  masks: Any
  groups: dict[str, Groups]


def combine(
  params: Any,
  layers: Sequence[Layer],
  densities: Mapping[str, float] | None = None,
  *,
  method: Method = "pairs",
  sections: int | None = None,
) -> Combined:
  """Prunes, groups and prunes conflicts once; a host algorithm.

  Args:
    params: Tree of arrays.
    layers: Which are combined, and how.
    densities: Of the leaves by name, before conflicts; one that is not named is left
      out. Those of `layers` if None.
    method: See `Combine`.
    sections: See `Combine`.

  Raises:
    ValueError: If a glob matches nothing, or a kernel is no matrix.
  """
  found: dict[str, jax.Array] = {}
  groups: dict[str, Groups] = {}
  for name, layer, leaf in _chosen(params, params, layers):
    if densities is not None and name not in densities:
      continue
    density = layer.density if densities is None else densities[name]
    scores = magnitude(as_matrix(leaf, name))
    # A density above what is left would keep zeros, which are no weights.
    keep = np.asarray(_largest(density, scores)) & (np.asarray(scores) > 0)
    scores = np.where(keep, scores, 0)
    groups[name] = group_columns(
      scores, alpha=layer.alpha, gamma=layer.gamma, method=method, sections=sections
    )
    mask = keep & np.asarray(conflict_mask(scores, groups[name]))
    found[name] = jnp.asarray(as_kernel(mask, leaf.shape))
  masks = [found.get(name) for name in tree.names(params)]
  return Combined(jax.tree.structure(params).unflatten(masks), groups)


def _kept(before: "Combined", found: "Combined", done: Mapping[str, Any]) -> "Combined":
  """`found`, and masks and groups that were there of the leaves that are done."""
  old = {name: before.groups[name] for name in done}
  structure = jax.tree.structure(before.masks, is_leaf=lambda x: x is None)
  names = tree.names(structure.unflatten(range(structure.num_leaves)))
  fresh = structure.flatten_up_to(found.masks)
  masks = [done.get(name, mask) for name, mask in zip(names, fresh)]
  return Combined(structure.unflatten(masks), old | found.groups)


def remembered(groups: Mapping[str, Groups]) -> dict[str, Any]:
  """Groups as JSON has them; `groups_of` is the inverse."""
  members = lambda g: np.asarray(g.members).tolist()
  kept = {n: {"members": members(g), "columns": g.columns} for n, g in groups.items()}
  return {"groups": kept}


def groups_of(memory: Mapping[str, Any]) -> dict[str, Groups]:
  """The groups of each combined leaf that a run remembers, {} without any."""
  return {
    name: Groups(np.array(g["members"], np.int32), g["columns"])
    for name, g in memory.get("groups", {}).items()
  }


def as_matrix(kernel: Any, name: str = "kernel") -> np.ndarray:
  """[outputs, contraction] of a kernel [..., outputs], as flax lays it out.

  The columns of a convolution [H, W, C, N] are its taps, channels fastest: those of
  im2col.

  Raises:
    ValueError: If it has fewer than two axes.
  """
  kernel = np.asarray(kernel)
  if kernel.ndim < 2:
    raise ValueError(f"{name} has shape {kernel.shape}: only matrices are combined")
  return kernel.reshape(-1, kernel.shape[-1]).T


def as_kernel(matrix: Any, shape: Sequence[int]) -> Any:
  """The inverse of `as_matrix` for a kernel of `shape`."""
  return matrix.T.reshape(shape)


def packed(params: Any, groups: Mapping[str, Groups]) -> dict[str, PackedColumns]:
  """The packed form of each combined leaf of pruned parameters."""
  leaves = tree.named_leaves(params)
  return {name: pack(as_matrix(leaves[name]), g) for name, g in groups.items()}


@jax.jit
def _largest(density: jax.typing.ArrayLike, scores: jax.Array) -> jax.Array:
  return Unstructured(density).mask(scores)


def _chosen(
  params: Any, values: Any, layers: Sequence[Layer]
) -> list[tuple[str, Layer, Any]]:
  """Name, layer and value of each leaf that is combined."""
  names = tree.names(params)
  structure = jax.tree.structure(params)
  chosen: dict[str, Layer] = {}
  for layer in layers:
    for name in tree.match(layer.leaf, names):
      chosen.setdefault(name, layer)
  by_name = dict(zip(names, structure.flatten_up_to(values)))
  return [(name, chosen[name], by_name[name]) for name in names if name in chosen]
