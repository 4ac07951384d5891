"""Running statistics, as of batch normalization: leaves that no gradient moves."""

from typing import Any

import jax

from jaxcodesign import tree


def with_statistics(params: Any, stats: Any) -> Any:
  """`params` with the running statistics of `stats`, None for other leaves."""
  if stats is None:
    return params
  return jax.tree.map(
    lambda new, old: old if new is None else new,
    stats,
    params,
    is_leaf=lambda x: x is None,
  )


def refuse_masked(masks: Any, params: Any, stats: Any) -> None:
  """Raises a ValueError if a running statistic is under a mask.

  Args:
    masks: Tree like the parameters, None for a leaf that is not pruned.
    params: The parameters.
    stats: `Forward.stats`, None for a network that has none.
  """
  if stats is None:
    return
  structure = jax.tree.structure(params)
  for name, mask, moved in zip(
    tree.names(params), structure.flatten_up_to(masks), structure.flatten_up_to(stats)
  ):
    if mask is not None and moved is not None:
      raise ValueError(
        f"{name} is a running statistic and may not be pruned; name the kernels, as "
        "'*/kernel' does"
      )
