"""Which values of an array stay: patterns that hardware can skip.

A pattern turns scores [...] (magnitudes, or anything that is larger where a value
matters more) into a mask. Members so far: NOfM.
"""

import abc

import jax
import jax.numpy as jnp

from jaxcodesign import tree


class Pattern(abc.ABC):
  """A rule for which values stay.

  Laws: an exact count per group; the mask of a masked array is the same mask, where
  scores are magnitudes and no kept one is zero.
  """

  @abc.abstractmethod
  def mask(self, scores: jax.Array) -> jax.Array:
    """bool [...]: True where a value stays, for real `scores` [...], NaN lowest."""


@tree.pytree
class NOfM(Pattern):
  """The n largest of every m neighbours: 2:4, 4:8, 1:4. Ties go to the lower index.

  Attributes:
    n: Values that stay, 0 to m.
    m: Neighbours along `axis`; must divide it.
    axis: Of the contraction; negative counts from the end.

  Reference: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.
  """

  n: int = tree.static(default=2)
  m: int = tree.static(default=4)
  axis: int = tree.static(default=-1)

  def __post_init__(self):
    if self.m < 1 or not 0 <= self.n <= self.m:
      raise ValueError(f"n={self.n} of m={self.m}: 0 <= n <= m and m >= 1 are needed")

  def mask(self, scores: jax.Array) -> jax.Array:
    """bool [...]: True for exactly n of every m.

    Raises:
      TypeError: If `scores` are complex.
      ValueError: If `axis` is out of range or m does not divide it.
    """
    if jnp.issubdtype(scores.dtype, jnp.complexfloating):
      raise TypeError(f"scores are {scores.dtype}; pass their magnitudes, jnp.abs(x)")
    if not -scores.ndim <= self.axis < scores.ndim:
      raise ValueError(f"axis={self.axis} is out of range for shape {scores.shape}")
    axis = self.axis % scores.ndim
    if scores.shape[axis] % self.m:
      raise ValueError(
        f"m={self.m} does not divide axis {self.axis} of shape {scores.shape}; pad it "
        "with zeros or leave this array dense"
      )
    shape = scores.shape
    groups = scores.reshape(*shape[:axis], -1, self.m, *shape[axis + 1 :])
    if jnp.issubdtype(groups.dtype, jnp.floating):
      groups = jnp.where(jnp.isnan(groups), jnp.array(-jnp.inf, groups.dtype), groups)
    lanes = [jax.lax.index_in_dim(groups, i, axis + 1) for i in range(self.m)]
    return jnp.concatenate(self._kept(lanes), axis=axis + 1).reshape(shape)

  def _kept(self, lanes: list[jax.Array]) -> list[jax.Array]:
    """For each lane, whether fewer than n others come before it."""
    kept = []
    for i, lane in enumerate(lanes):
      ahead = jnp.zeros(lane.shape, jnp.int8)
      for j, other in enumerate(lanes):
        if j != i:
          first = other >= lane if j < i else other > lane
          ahead = ahead + first.astype(jnp.int8)
      kept.append(ahead < self.n)
    return kept
