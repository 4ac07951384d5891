"""Hard decisions of a cost model, smooth where a designer descends.

Each takes a temperature: 0 decides exactly and has no gradient through the decision;
above 0 the decision is soft. The three are scaled to one knob, useful from 0.05 to 0.5,
so that the smooth cost stays near the exact one: a ceiling forgets where a tile ends (a
steep step would drown how many there are), while a buffer that is too small costs a
hundred times one that is not, so its switch stays sharp.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.numerics.formats import rounding

Scalar = jax.typing.ArrayLike
_CEILING, _SWITCH = 10.0, 0.1


def ceil(x: Any, temperature: Scalar) -> jax.Array:
  """Folds that cover `x` arrays: ceil(x), and never less than the one there must be."""
  x = jnp.asarray(x, jnp.result_type(float))
  if _cold(temperature):
    return jnp.maximum(jnp.ceil(x), 1.0)
  heat = _CEILING * jnp.asarray(temperature, x.dtype)
  return jnp.maximum(rounding.smooth_ceil(x, heat), 1.0)


def exceeds(need: Any, room: Any, temperature: Scalar) -> jax.Array:
  """1 where `need` > `room`, else 0; a sigmoid in their ratio when hot."""
  if _cold(temperature):
    return jnp.where(need > room, 1.0, 0.0)
  hot = jnp.asarray(temperature) > 0
  safe = jnp.where(hot, temperature, 1.0) * _SWITCH
  tiny = jnp.finfo(jnp.result_type(float)).tiny
  soft = jax.nn.sigmoid((jnp.log(jnp.maximum(need, tiny)) - jnp.log(room)) / safe)
  return jnp.where(hot, soft, jnp.where(need > room, 1.0, 0.0))


def maximum(x: Any, y: Any, temperature: Scalar) -> jax.Array:
  """The larger of two positives; when hot, a sum of powers that both have a part in."""
  if _cold(temperature):
    return jnp.maximum(x, y)
  hot = jnp.asarray(temperature) > 0
  safe = jnp.where(hot, temperature, 1.0)
  tiny = jnp.finfo(jnp.result_type(float)).tiny
  logs = [jnp.log(jnp.maximum(v, tiny)) / safe for v in (x, y)]
  return jnp.where(hot, jnp.exp(safe * jnp.logaddexp(*logs)), jnp.maximum(x, y))


def _cold(temperature: Scalar) -> bool:
  """Known to be 0: gradients then need not be traced through what is not chosen."""
  return tree.is_concrete(temperature) and not np.any(np.asarray(temperature))
