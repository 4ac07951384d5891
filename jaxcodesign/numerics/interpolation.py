"""Between the points of a measured table: straight lines in log-log, nothing outside.

Of equals in accuracy the cheapest under vmap: one logarithm, a hinge for each inner
point, one exponential; no search and no gather.
"""

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
  knots, logs = np.log2(at), np.log2(values)
  slopes = np.diff(logs) / np.diff(knots)
  xp, u = _log2(x)
  line = float(logs[0]) + float(slopes[0]) * (u - float(knots[0]))
  # Unrolled: a sum over an axis of points is three times slower under vmap.
  for knot, bend in zip(knots[1:-1], np.diff(slopes)):
    line += float(bend) * xp.maximum(u - float(knot), 0.0)
  inside = (u >= float(knots[0])) & (u <= float(knots[-1]))
  found = xp.where(inside, xp.exp2(line), np.nan)
  return float(found) if xp is np else found


def check_inside(what: str, x: Any, at: np.ndarray, way_out: str) -> None:
  """Raises a ValueError if a known `x` lies outside the points `at`."""
  if not tree.is_concrete(x):
    return
  found = np.asarray(x)
  if not np.all((found >= at[0]) & (found <= at[-1])):
    raise ValueError(
      f"{what}={x} is outside what was measured, {at[0]:.0f} to {at[-1]:.0f}: {way_out}"
    )


def _log2(x: Any) -> tuple[Any, Any]:
  """The module that computes, and log2(x), exact where x is a power of two."""
  if tree.is_concrete(x) and np.ndim(x) == 0:
    return np, np.log2(float(x))
  u = jnp.log2(jnp.asarray(x, jnp.result_type(float)))
  # log2 may miss an integer by its rounding, and with it the point.
  near = jnp.round(u)
  miss = 8 * jnp.finfo(u.dtype).eps * (1 + jnp.abs(u))
  off = jnp.where(jnp.abs(near - u) <= miss, near - u, 0.0)
  return jnp, u + jax.lax.stop_gradient(off)
