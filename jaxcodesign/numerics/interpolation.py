"""Between the points of a measured table: straight lines in log-log, nothing outside.

Of equals in accuracy the cheapest under vmap: one logarithm, a hinge for each inner
point, one exponential; no search and no gather.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree


def power_laws(x: Any, at: np.ndarray, values: np.ndarray) -> Any:
  """A power law between each two neighbouring points, exact at the points.

  Args:
    x: [...], may be traced.
    at: [P] ascending powers of two, P >= 2.
    values: [P] positive, what was measured there.

  Returns:
    [...] the values at `x`, NaN where it lies outside `at`; where `x` is one known
    number a Python float, computed in double precision. The derivative at an inner
    point is the mean of those to its left and right.
  """
  points = tuple(map(float, at)), tuple(map(float, values))
  if tree.is_concrete(x) and np.ndim(x) == 0:
    return float(_laws(np, np.log2(float(x)), *points))
  return _traced(x, *points)


# Traced once for a table: a machine asks its memories' curves some twenty times.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _traced(x: jax.Array, at: tuple[float, ...], values: tuple[float, ...]) -> Any:
  return _laws(jnp, _log2(x), at, values)


def _laws(xp: Any, u: Any, at: tuple[float, ...], values: tuple[float, ...]) -> Any:
  """The values at 2**`u`, by numpy or jax.numpy."""
  knots, logs = np.log2(at), np.log2(values)
  slopes = np.diff(logs) / np.diff(knots)
  line = float(logs[0]) + float(slopes[0]) * (u - float(knots[0]))
  # Unrolled: a sum over an axis of points is three times slower under vmap.
  for knot, bend in zip(knots[1:-1], np.diff(slopes)):
    line += float(bend) * xp.maximum(u - float(knot), 0.0)
  inside = (u >= float(knots[0])) & (u <= float(knots[-1]))
  return xp.where(inside, xp.exp2(line), np.nan)


def check_inside(what: str, x: Any, at: np.ndarray, way_out: str) -> None:
  """Raises a ValueError if a known `x` lies outside the points `at`."""
  if not tree.is_concrete(x):
    return
  found = np.asarray(x)
  if not np.all((found >= at[0]) & (found <= at[-1])):
    raise ValueError(
      f"{what}={x} is outside what was measured, {at[0]:.0f} to {at[-1]:.0f}: {way_out}"
    )


def _log2(x: jax.Array) -> jax.Array:
  """log2(x), exact where x is a power of two."""
  u = jnp.log2(jnp.asarray(x, jnp.result_type(float)))
  # log2 may miss an integer by its rounding, and with it the point.
  near = jnp.round(u)
  miss = 8 * jnp.finfo(u.dtype).eps * (1 + jnp.abs(u))
  off = jnp.where(jnp.abs(near - u) <= miss, near - u, 0.0)
  return u + jax.lax.stop_gradient(off)
