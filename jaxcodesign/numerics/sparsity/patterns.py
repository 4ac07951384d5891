"""Which values of an array stay: patterns that hardware can skip.

A pattern turns scores [...], larger where a value matters more, into a mask:

  Unstructured  the largest, wherever they are
  NOfM          the n largest of every m neighbours
  Blocks        rectangles, by the sum of their scores
  Channels      whole slices of one axis, by the sum of their scores

A density, and the n of NOfM, is a leaf: it may be traced, so a schedule that moves it
compiles once. Of `size` values (blocks, channels) a density keeps round(density *
size), in float32, halves to even: exact up to 2^24 of them, to within one in 2^24
beyond. Equal scores go to the lower index in row-major order, also where all are equal;
NaN counts as -inf.
"""

import abc
import dataclasses
import math
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.numerics.formats import exponents

_LANES = 32  # parts of an array that are counted side by side, see `_at_least`


class Pattern(abc.ABC):
  """A rule for which values stay.

  Laws: an exact count per group; the mask of a masked array is the same mask, where
  scores are magnitudes and no kept one is zero; `at(density)` is the same pattern, and
  of the same scores a lower density keeps a part of what a higher one does.

  Attributes:
    density: Part that stays, 0 to 1.
  """

  density: jax.typing.ArrayLike

  def at(self, density: jax.typing.ArrayLike) -> Self:
    """The same pattern at another density, which may be traced.

    Raises:
      ValueError: If it is outside [0, 1]; a traced one counts as the nearer end.
    """
    return dataclasses.replace(self, density=density)  # pyright: ignore[reportArgumentType]

  @abc.abstractmethod
  def mask(self, scores: jax.Array) -> jax.Array:
    """bool [...]: True where a value stays, for real `scores` [...], NaN lowest.

    Raises:
      TypeError: If `scores` are complex.
      ValueError: If the pattern does not fit the shape of `scores`.
    """


@tree.pytree
class Unstructured(Pattern):
  """The largest values of the whole array.

  Attributes:
    density: Part that stays, 0 to 1; a traced one outside counts as the nearer end.
  """

  density: jax.typing.ArrayLike

  def __post_init__(self):
    check_density(self.density)

  def mask(self, scores: jax.Array) -> jax.Array:
    _check_real(scores)
    return _largest(scores, _count(self.density, scores.size))


@tree.pytree
class NOfM(Pattern):
  """The n largest of every m neighbours: 2:4, 4:8, 1:4. Ties go to the lower index.

  Attributes:
    n: Values that stay, 0 to m; a traced one outside counts as the nearer end.
    m: Neighbours along `axis`; must divide it.
    axis: Of the contraction; negative counts from the end.

  Reference: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.
  """

  n: jax.typing.ArrayLike = 2
  m: int = tree.static(default=4)
  axis: int = tree.static(default=-1)

  def __post_init__(self):
    if not jnp.issubdtype(jnp.result_type(self.n), jnp.integer):
      raise TypeError(f"n={self.n} is no integer; NOfM.at takes a density")
    given = np.asarray(self.n) if tree.is_concrete(self.n) else np.zeros(())
    if self.m < 1 or np.any(given < 0) or np.any(given > self.m):
      raise ValueError(f"n={self.n} of m={self.m}: 0 <= n <= m and m >= 1 are needed")

  @property
  def density(self) -> jax.typing.ArrayLike:  # pyright: ignore[reportIncompatibleVariableOverride]
    """n / m, in float32 where n is an array."""
    if tree.is_array(self.n):
      return jnp.asarray(self.n).astype(jnp.float32) / jnp.float32(self.m)
    return self.n / self.m

  def at(self, density: jax.typing.ArrayLike) -> Self:
    """The pattern that keeps round(density * m) of m, halves to even.

    Raises:
      ValueError: If `density` is outside [0, 1]; a traced one counts as the nearer end.
    """
    check_density(density)
    return dataclasses.replace(self, n=_part(density, self.m))

  def mask(self, scores: jax.Array) -> jax.Array:
    """bool [...]: True for exactly n of every m.

    Raises:
      TypeError: If `scores` are complex.
      ValueError: If `axis` is out of range, m does not divide it, or n has a shape.
    """
    _check_real(scores)
    _check_scalar("n", self.n)
    axis = _positive(self.axis, scores.shape)
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
    count = jnp.uint8 if self.m < 256 else jnp.int32
    n = jnp.clip(jnp.asarray(self.n), 0, self.m).astype(count)
    kept = []
    for i, lane in enumerate(lanes):
      ahead = jnp.zeros(lane.shape, count)
      for j, other in enumerate(lanes):
        if j != i:
          first = other >= lane if j < i else other > lane
          ahead = ahead + first.astype(count)
      kept.append(ahead < n)
    return kept


@tree.pytree
class Blocks(Pattern):
  """Rectangles that stay or go whole, those with the largest sums of scores first.

  Attributes:
    shape: Of a block along the last axes; must divide them. Axes before are of size 1.
    density: Part of all blocks of the array that stays, 0 to 1, as in `Unstructured`.
  """

  shape: tuple[int, ...] = tree.static()
  density: jax.typing.ArrayLike

  def __post_init__(self):
    object.__setattr__(self, "shape", tuple(self.shape))  # a list has no hash
    if not self.shape or min(self.shape) < 1:
      raise ValueError(f"shape={self.shape} of a block: sizes of at least 1 are needed")
    check_density(self.density)

  def mask(self, scores: jax.Array) -> jax.Array:
    _check_real(scores)
    lead = scores.ndim - len(self.shape)
    sizes = (1,) * lead + self.shape
    if lead < 0 or any(n % b for n, b in zip(scores.shape, sizes)):
      raise ValueError(
        f"blocks of shape={self.shape} do not divide shape {scores.shape}; pad it with "
        "zeros, choose other blocks or leave this array dense"
      )
    split = [x for n, b in zip(scores.shape, sizes) for x in (n // b, b)]
    within = tuple(range(1, len(split), 2))
    sums = jnp.sum(wide(scores).reshape(split), axis=within)
    kept = _largest(sums, _count(self.density, sums.size))
    return jnp.broadcast_to(jnp.expand_dims(kept, within), split).reshape(scores.shape)


@tree.pytree
class Channels(Pattern):
  """Slices of one axis that stay or go whole, those with the largest sums first.

  Attributes:
    density: Part of the channels that stays, 0 to 1, as in `Unstructured`.
    axis: Of the channels; -1, the outputs of a kernel whose contraction comes first.
  """

  density: jax.typing.ArrayLike
  axis: int = tree.static(default=-1)

  def __post_init__(self):
    check_density(self.density)

  def mask(self, scores: jax.Array) -> jax.Array:
    _check_real(scores)
    axis = _positive(self.axis, scores.shape)
    others = tuple(i for i in range(scores.ndim) if i != axis)
    sums = jnp.sum(wide(scores), axis=others)
    kept = _largest(sums, _count(self.density, sums.size))
    return jnp.broadcast_to(jnp.expand_dims(kept, others), scores.shape)


def magnitude(w: jax.typing.ArrayLike) -> jax.Array:
  """|w| [...] as scores; of signed integers as unsigned ones, where |-128| is 128."""
  w = jnp.asarray(w)
  if jnp.issubdtype(w.dtype, jnp.signedinteger):
    return jnp.abs(w).astype(f"uint{8 * w.dtype.itemsize}")
  return jnp.abs(w)


def saliency(w: jax.typing.ArrayLike, g: jax.typing.ArrayLike) -> jax.Array:
  """|w * g| [...]: how much the loss changes, to first order, where a value is zeroed.

  Args:
    w: Floating-point values [...].
    g: Gradient of the loss with respect to them.

  Returns:
    Scores in float32, or float64 if one of the two is: the product of two small numbers
    would vanish in less.

  Raises:
    TypeError: If one is not floating point.
    ValueError: If the shapes differ.

  Reference: Molchanov et al., "Pruning Convolutional Neural Networks for Resource
  Efficient Inference", ICLR 2017.
  """
  w, g = jnp.asarray(w), jnp.asarray(g)
  if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (w, g)):
    raise TypeError(f"w is {w.dtype} and g is {g.dtype}; saliency needs real floats")
  if w.shape != g.shape:
    raise ValueError(
      f"w has shape {w.shape} and g {g.shape}; pass the gradient of this very array"
    )
  dtype = jnp.float64 if jnp.float64 in (w.dtype, g.dtype) else jnp.float32
  return jnp.abs(w.astype(dtype) * g.astype(dtype))


def wide(scores: jax.Array) -> jax.Array:
  """`scores` [...] in float32 or wider, where their sums neither overflow nor drown."""
  return scores if scores.dtype == jnp.float64 else scores.astype(jnp.float32)


def check_density(density: jax.typing.ArrayLike) -> None:
  """Raises a TypeError unless `density` is a real number, a ValueError outside [0, 1].

  Of a traced one the value is not checked.
  """
  tree.check_number("density", density)
  if not tree.is_concrete(density):
    return
  given = np.asarray(density)
  if not np.all((given >= 0) & (given <= 1)):
    raise ValueError(
      f"density={density} is outside [0, 1]; it is the part that stays: 0.1 keeps a "
      "tenth"
    )


def _check_real(scores: jax.Array) -> None:
  if jnp.issubdtype(scores.dtype, jnp.complexfloating):
    raise TypeError(f"scores are {scores.dtype}; pass their magnitudes, jnp.abs(x)")


def _positive(axis: int, shape: tuple[int, ...]) -> int:
  if not -len(shape) <= axis < len(shape):
    raise ValueError(f"axis={axis} is out of range for shape {shape}")
  return axis % len(shape)


def _count(density: jax.typing.ArrayLike, size: int) -> jax.Array:
  """int32: how many of `size` stay; the rounding is told at the top."""
  if size >= 2**31:
    raise ValueError(f"{size} scores: at most 2^31 - 1 are counted; split the array")
  _check_scalar("density", density)
  return _part(density, size)


def _part(density: jax.typing.ArrayLike, size: int) -> jax.Array:
  """int32, of the shape of `density`: round(density * size), at most `size`."""
  part = jnp.asarray(density).astype(jnp.float32)
  kept = jnp.round(part * jnp.float32(size)).astype(jnp.int32)
  return jnp.where(part >= 1, size, jnp.clip(kept, 0, size))


def _check_scalar(name: str, value: jax.typing.ArrayLike) -> None:
  if jnp.ndim(value):
    raise ValueError(
      f"{name} has shape {jnp.shape(value)}: a mask has one; jax.vmap over the pattern"
    )


@jax.jit
def _largest(scores: jax.Array, count: jax.Array) -> jax.Array:
  """bool [...]: True for the `count` largest of all scores, in one program.

  The threshold is found bit by bit, a radix select: as many counts as a key has bits,
  each at the speed of memory, instead of a sort.
  """
  size = scores.size
  if size == 0:
    return jnp.zeros(scores.shape, bool)
  cols = 1 << (size // _LANES).bit_length() // 2
  rows = _LANES * math.ceil(size / (_LANES * cols))
  # The padding is lowest and last: it is chosen after every score, which is never.
  keys = jnp.pad(_keys(scores).reshape(-1), (0, rows * cols - size))
  keys = jax.lax.optimization_barrier(keys.reshape(rows, cols))
  bits = 8 * keys.dtype.itemsize

  def next_bit(i: jax.Array, threshold: jax.Array) -> jax.Array:
    higher = threshold | keys.dtype.type(1) << (bits - 1 - i).astype(keys.dtype)
    return jnp.where(_at_least(keys, higher) >= count, higher, threshold)

  threshold = jax.lax.fori_loop(0, bits, next_bit, keys.dtype.type(0))
  tied = keys == threshold
  ties = jnp.sum(tied, axis=1, dtype=jnp.int32)
  left = count - (_at_least(keys, threshold) - jnp.sum(ties))
  place = jax.lax.broadcasted_iota(jnp.int32, keys.shape, 0) * cols
  place = place + jax.lax.broadcasted_iota(jnp.int32, keys.shape, 1)
  kept = (keys > threshold) | (tied & (place < _end(tied, ties, left)))
  return kept.reshape(-1)[:size].reshape(scores.shape)


def _keys(scores: jax.Array) -> jax.Array:
  """Unsigned integers [...] in the order of `scores`; equal where those are."""
  if jnp.issubdtype(scores.dtype, jnp.floating):
    x = wide(scores)
    x = jnp.where(jnp.isnan(x), -jnp.inf, x)
    x = exponents.flush(x) if x.dtype == jnp.float32 else jnp.where(x == 0, 0.0, x)
    signed = jnp.int32 if x.dtype == jnp.float32 else jnp.int64
    x = jax.lax.bitcast_convert_type(x, signed)
    x = x ^ (x >> 8 * x.dtype.itemsize - 1 & jnp.iinfo(signed).max)
  elif scores.dtype.itemsize < 4:
    x = scores.astype(jnp.int32)
  else:
    x = scores
  if jnp.issubdtype(x.dtype, jnp.unsignedinteger):
    return x
  unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
  top = unsigned.type(1 << 8 * x.dtype.itemsize - 1)
  return jax.lax.bitcast_convert_type(x, unsigned) ^ top


def _at_least(keys: jax.Array, threshold: jax.Array) -> jax.Array:
  """int32: how many of `keys` [rows, cols] are at or above `threshold`.

  Measured on CPU: a reduction with a comparison fused into it does not vectorize; sums
  of lanes do, and are ten times as fast.
  """
  lanes = keys.reshape(_LANES, -1)
  sums = sum((lanes[i] >= threshold).astype(jnp.int32) for i in range(_LANES))
  return jnp.sum(jax.lax.optimization_barrier(sums))


def _end(tied: jax.Array, ties: jax.Array, left: jax.Array) -> jax.Array:
  """int32: the row-major place before which `left` of `tied` [rows, cols] are True.

  `ties` [rows] is their number per row.
  """
  upto = jnp.cumsum(ties)
  row = jnp.sum(upto <= left, dtype=jnp.int32)  # that of the first one to go
  # Past the last row, where none goes, the indices below stop at the last.
  before = (upto - ties)[row]
  col = jnp.sum(jnp.cumsum(tied[row], dtype=jnp.int32) <= left - before)
  return row * tied.shape[1] + col.astype(jnp.int32)
