"""Weights rounded with an eye on the activations that they will meet.

A layer computes x w^T. Given activations x [M, K] of a few hundred examples, the error
that counts is that of the output, tr(D H D^T) with D the change of the weight [N, K]
and H = x^T x / M. Three ways to make it smaller, each for any format:

  smooth  moves the range of channels with outliers from activations into weights
  gptq    rounds a column, then lets the columns to come make up for its error
  awq     scales up the channels that matter before rounding

For the last two activations are divided by a power of two first, that at or below their
largest magnitude: no result depends on their unit, and no moment overflows.

References: Xiao et al., "SmoothQuant", ICML 2023; Frantar et al., "GPTQ", ICLR 2023;
Lin et al., "AWQ", MLSys 2024.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg as linalg
import numpy as np

from jaxcodesign import tree
from jaxcodesign.numerics.formats import exponents
from jaxcodesign.numerics.formats.format import Format
from jaxcodesign.numerics.formats.term_budget import Terms


def smooth(weight: jax.Array, activation: jax.Array, strength: float = 0.5) -> Any:
  """Factors that make activations easier to round: x / f times (w f)^T is x w^T.

  Args:
    weight: [N, K].
    activation: [M, K] of the same channels.
    strength: How much of the range moves into the weight, in [0, 1].

  Returns:
    [K] float32, max|x|^strength / max|w|^(1 - strength) of each channel, no less than
    1e-5; 1 where either is all zero.

  Raises:
    ValueError: If shapes do not fit, a value is not finite, or `strength` is outside.
  """
  weight, activation = _pair(weight, activation)
  if not 0 <= strength <= 1:
    raise ValueError(f"strength={strength} is outside [0, 1]; 0.5 is usual")
  x, w = (jnp.max(jnp.abs(a), axis=0) for a in (activation, weight))
  dead = (x == 0) | (w == 0)
  x, w = (jnp.where(dead, jnp.float32(1), a) for a in (x, w))
  return jnp.maximum(x**strength / w ** (1 - strength), 1e-5)


def gptq(
  fmt: Format,
  weight: jax.Array,
  activation: jax.Array,
  *,
  damp: float = 0.01,
  block: int = 128,
  order: bool = False,
) -> jax.Array:
  """Rounds a weight column by column, later columns making up for earlier errors.

  The grid is that of the original weight, `fmt.scale(weight)`. A column is rounded,
  and its error divided over the columns to come as H tells. Values of a `Terms` group
  share a budget, so a group (the least common multiple with a group of scales) is
  rounded as one and its error passed on as one; for all other formats a column is a
  unit, its scale being known. A channel that is always zero is rounded to nearest, and
  so is a row whose output error would otherwise grow: cutting terms is no rounding to
  nearest, and passing on its error can cost more than it saves.

  The result is on the grid already: leave it out of the policy that runs it, whose
  format would take its scale anew.

  Args:
    fmt: Any format; its groups run along K, whatever its axis.
    weight: [N, K].
    activation: [M, K].
    damp: Share of the mean of H's diagonal that is added to it.
    block: Columns between two updates of all that follow; speed only.
    order: Whether columns of large activations come first; for formats without groups.

  Returns:
    [N, K] in the dtype of `weight`.

  Raises:
    ValueError: If shapes do not fit, a value is not finite, `damp` is not positive,
      `order` meets groups, or H is not positive definite in spite of `damp`.
  """
  given = weight
  weight, activation = _pair(weight, activation)
  fmt = fmt.along(-1) or fmt
  fmt.check(weight.shape[1])
  if not damp > 0 or block < 1:
    raise ValueError(f"damp={damp} must be positive (0.01 is usual), block={block} too")
  width = unit(fmt)
  if order and width > 1:
    raise ValueError(
      f"order=True moves columns apart that share a scale in {fmt!r}; order needs a "
      "format with one scale a tensor or channel"
    )
  size = width * max(1, block // width)
  out = _gptq(fmt, weight, activation, damp, size, width, order)
  if tree.is_concrete(out) and not np.isfinite(np.asarray(out)).all():
    raise ValueError(f"the activations' second moment is singular: raise damp={damp}")
  return out.astype(given.dtype)


def awq(
  fmt: Format, weight: jax.Array, activation: jax.Array, *, grid: int = 20
) -> tuple[jax.Array, jax.Array]:
  """Scales channels by their mean activation to a power, the best of `grid` powers.

  Args:
    fmt: Any format; its groups run along K, whatever its axis.
    weight: [N, K].
    activation: [M, K].
    grid: Powers tried: 0, 1/grid, ..., (grid - 1)/grid. 0 is rounding to nearest.

  Returns:
    factors [K] float32, and the rounded weight [N, K] that belongs to activations
    divided by them: x w^T is nearly (x / factors) rounded^T.

  Raises:
    ValueError: If shapes do not fit, a value is not finite, or `grid` < 1.
  """
  given = weight
  weight, activation = _pair(weight, activation)
  fmt = fmt.along(-1) or fmt
  fmt.check(weight.shape[1])
  if grid < 1:
    raise ValueError(f"grid={grid} must be at least 1; 20 is usual")
  factors, rounded = _awq(fmt, weight, activation, grid)
  return factors, rounded.astype(given.dtype)


def unit(fmt: Format) -> int:
  """Neighbouring columns that `gptq` sees at once: those that share scale or budget."""
  share, block = getattr(fmt, "share", None), getattr(fmt, "block", 1)
  width = math.lcm(share if isinstance(share, int) else 1, block)
  return math.lcm(width, fmt.group) if isinstance(fmt, Terms) else width


def moment(activation: jax.Array) -> jax.Array:
  """H = x^T x / M [K, K] of activations [M, K]."""
  x = activation.astype(jnp.float32)
  return jnp.matmul(x.T, x, precision="highest") / x.shape[0]


@functools.partial(jax.jit, static_argnames=("size", "width", "order"))
def _gptq(
  fmt: Format,
  weight: jax.Array,
  activation: jax.Array,
  damp: Any,
  size: int,
  width: int,
  order: bool,
) -> jax.Array:
  scale, h = fmt.scale(weight), moment(_near_one(activation, activation))
  k = weight.shape[1]
  places = jnp.argsort(-jnp.diagonal(h)) if order else jnp.arange(k)
  more = -k % size  # columns of zeros that nothing depends on
  upper = _inverse_root(h[places][:, places], damp, more)
  w = jnp.pad(weight[:, places], ((0, 0), (0, more)))

  def columns(b: jax.Array, w: jax.Array) -> jax.Array:
    start = b * size
    here = jax.lax.dynamic_slice(w, (0, start), (w.shape[0], size))
    rows = jax.lax.dynamic_slice(upper, (start, 0), (size, k + more))
    triangle = jax.lax.dynamic_slice(rows, (0, start), (size, size))
    local = functools.partial(_at, scale, start // width)
    solve = _jointly if isinstance(fmt, Terms) and width > 1 else _one_by_one
    here, error = solve(fmt, here, triangle, local, width)
    w = w - jnp.matmul(error, rows, precision="highest")
    # Columns before are rounded already: the rows of `upper` are zero there.
    return jax.lax.dynamic_update_slice(w, here, (0, start))

  out = jax.lax.fori_loop(0, (k + more) // size, columns, w)[:, :k]
  out = out[:, jnp.argsort(places)]
  nearest = fmt.round(weight, scale)
  change = lambda rounded: _near_one(rounded - weight, weight)
  worse = _output_error(change(out), h) > _output_error(change(nearest), h)
  return jnp.where(worse[:, None], nearest, out)


def _near_one(x: jax.Array, like: jax.Array) -> jax.Array:
  """`x` over the power of two at or below the largest magnitude of `like`."""
  exponent = exponents.floor_log2(exponents.peak_bits(like, None))
  return exponents.times_power_of_two(x, -exponent)


def _output_error(change: jax.Array, h: jax.Array) -> jax.Array:
  """Mean squared error of each output [N] for a `change` [N, K] of its weight."""
  return jnp.sum(jnp.matmul(change, h, precision="highest") * change, axis=1)


def _inverse_root(h: jax.Array, damp: Any, more: int) -> jax.Array:
  """Upper triangular U with U^T U the inverse of damped H, `more` columns wider."""
  diagonal = jnp.diagonal(h)
  ridge = jnp.where(diagonal == 0, jnp.float32(1), damp * jnp.mean(diagonal))
  factor = linalg.cho_factor(h + jnp.diag(ridge))
  inverse = linalg.cho_solve(factor, jnp.eye(h.shape[0], dtype=jnp.float32))
  upper = linalg.cholesky((inverse + inverse.T) * 0.5)
  return linalg.block_diag(upper, jnp.eye(more, dtype=jnp.float32))


def _at(scale: Any, first: jax.Array, group: jax.Array) -> Any:
  """The part of `scale` that belongs to unit `first + group`, one unit wide."""
  # A scale for each group has two axes, one for each row has one.
  part = lambda leaf: (
    jax.lax.dynamic_slice(leaf, (0, first + group), (leaf.shape[0], 1))
    if leaf.ndim == 2
    else leaf
  )
  return jax.tree.map(part, scale)


Local = Callable[[jax.Array], Any]


def _one_by_one(
  fmt: Format, w: jax.Array, upper: jax.Array, local: Local, width: int
) -> tuple[jax.Array, jax.Array]:
  """Rounded columns [N, B] of a block, and errors [N, B] over the diagonal."""

  def column(j: jax.Array, carry: Any) -> Any:
    w, error = carry
    group = j // width
    lanes = jax.lax.dynamic_slice(w, (0, group * width), (w.shape[0], width))
    rounded = fmt.round(lanes, local(group))
    rounded = jax.lax.dynamic_slice(rounded, (0, j % width), (w.shape[0], 1))
    row = jax.lax.dynamic_slice(upper, (j, 0), (1, w.shape[1]))
    exact = jax.lax.dynamic_slice(w, (0, j), (w.shape[0], 1))
    off = (exact - rounded) / jax.lax.dynamic_slice(row, (0, j), (1, 1))
    w = jax.lax.dynamic_update_slice(w - off * row, rounded, (0, j))
    return w, jax.lax.dynamic_update_slice(error, off, (0, j))

  return jax.lax.fori_loop(0, w.shape[1], column, (w, jnp.zeros_like(w)))


def _jointly(
  fmt: Format, w: jax.Array, upper: jax.Array, local: Local, width: int
) -> tuple[jax.Array, jax.Array]:
  """As `_one_by_one`, `width` columns rounded as one."""

  def columns(group: jax.Array, carry: Any) -> Any:
    w, error = carry
    start = group * width
    lanes = jax.lax.dynamic_slice(w, (0, start), (w.shape[0], width))
    rounded = fmt.round(lanes, local(group))
    rows = jax.lax.dynamic_slice(upper, (start, 0), (width, w.shape[1]))
    corner = jax.lax.dynamic_slice(rows, (0, start), (width, width))
    off = linalg.solve_triangular(corner, (lanes - rounded).T, trans="T").T
    w = w - jnp.matmul(off, rows, precision="highest")
    w = jax.lax.dynamic_update_slice(w, rounded, (0, start))
    return w, jax.lax.dynamic_update_slice(error, off, (0, start))

  start = (w, jnp.zeros_like(w))
  return jax.lax.fori_loop(0, w.shape[1] // width, columns, start)


@functools.partial(jax.jit, static_argnames="grid")
def _awq(
  fmt: Format, weight: jax.Array, activation: jax.Array, grid: int
) -> tuple[jax.Array, jax.Array]:
  activation = _near_one(activation, activation)
  h = moment(activation)
  mean = jnp.mean(jnp.abs(activation), axis=0)

  def factors(power: jax.Array) -> jax.Array:
    f = jnp.maximum(mean**power, 1e-4)
    return f / jnp.sqrt(jnp.max(f) * jnp.min(f))

  def loss(power: jax.Array) -> jax.Array:
    f = factors(power)
    change = fmt.quantize(weight * f[None]) / f[None] - weight
    return jnp.sum(_output_error(_near_one(change, weight), h))

  powers = jnp.arange(grid, dtype=jnp.float32) * jnp.float32(1 / grid)
  best = factors(powers[jnp.argmin(jax.lax.map(loss, powers))])
  return best, fmt.quantize(weight * best[None])


def _pair(weight: Any, activation: Any) -> tuple[jax.Array, jax.Array]:
  """Both in float32, checked."""
  for name, x in (("weight", weight), ("activation", activation)):
    if not tree.is_array(x) or not jnp.issubdtype(x.dtype, jnp.floating):
      kind = getattr(x, "dtype", type(x).__name__)
      raise TypeError(f"{name} is {kind}; pass a floating-point array [rows, K]")
    if x.ndim != 2 or 0 in x.shape:
      raise ValueError(
        f"{name} has shape {x.shape}; reshape it to [rows, K], K the contraction"
      )
    if tree.is_concrete(x) and not np.isfinite(np.asarray(x)).all():
      raise ValueError(f"{name} has values that are not finite; leave those rows out")
  if weight.shape[1] != activation.shape[1]:
    raise ValueError(
      f"weight {weight.shape} and activation {activation.shape} must share their last "
      "axis, the contraction; transpose a kernel [K, N] first"
    )
  return jnp.asarray(weight, jnp.float32), jnp.asarray(activation, jnp.float32)
