"""Masks of a tree of parameters: which leaves are sparse, and in which pattern.

A rule selects leaves by a glob on their names, as rules of number formats do; the first
rule that matches a leaf decides, and a leaf that none matches stays dense: its mask is
None, which costs nothing and is no leaf.

  rules = [Rule("head/*", None), Rule("*/kernel", sparsity.NOfM(2, 4, axis=0))]
  sparse = apply(masks(params, rules), params)
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcodesign import tree
from jaxcodesign.numerics.sparsity.patterns import Pattern, magnitude


@tree.pytree
class Rule:
  """A pattern for the leaves whose names match.

  Attributes:
    leaf: Shell-style glob on the name of a leaf, "conv1/*"; see `tree.names`.
    pattern: None leaves these leaves dense, whatever later rules say.
  """

  leaf: str = tree.static()
  pattern: Pattern | None = None


def masks(params: Any, rules: Sequence[Rule], *, scores: Any = None) -> Any:
  """The mask of each leaf under the first rule that matches it.

  Args:
    params: A tree of arrays.
    rules: More specific ones first. A pytree: densities in it may be traced.
    scores: A tree like `params` of what the patterns compare, as
      `jax.tree.map(sparsity.saliency, params, grads)`; the magnitudes if None.

  Returns:
    A tree like `params`: bool arrays of the leaves' shapes, None where a leaf is dense.

  Raises:
    ValueError: If a rule decides no leaf, a pattern does not fit one, or `scores` are
      not like `params`; the message names it.
    TypeError: If scores are complex.
  """
  leaves, structure = jax.tree.flatten(params)
  names = tree.names(params)
  chosen = assign(rules, names)
  given = leaves if scores is None else _like(scores, structure, "scores")
  found = []
  for name, leaf, score in zip(names, leaves, given):
    pattern = chosen.get(name)
    if pattern is None:
      found.append(None)
      continue
    score = magnitude(leaf) if scores is None else jnp.asarray(score)
    _check_shape("scores", name, score, leaf)
    try:
      found.append(_mask(pattern, score))
    except (TypeError, ValueError) as error:
      raise type(error)(f"{name}: {error}") from error
  return structure.unflatten(found)


def apply(masks: Any, params: Any) -> Any:
  """`params` with zeros where a mask is False; gradients are zero there too.

  Args:
    masks: A tree like `params`: bool arrays of the leaves' shapes, None for a leaf that
      stays as it is.
    params: A tree of arrays.

  Raises:
    ValueError: If `masks` is not like `params` or a mask has another shape.
    TypeError: If a mask is not bool.
  """
  leaves, structure = jax.tree.flatten(params)
  kept = []
  for name, leaf, mask in zip(
    tree.names(params), leaves, _like(masks, structure, "masks")
  ):
    if mask is None:
      kept.append(leaf)
      continue
    mask, leaf = jnp.asarray(mask), jnp.asarray(leaf)
    _check_shape("masks", name, mask, leaf)
    if mask.dtype != bool:
      raise TypeError(f"masks: {name} is {mask.dtype}; pass bool, mask != 0")
    kept.append(jnp.where(mask, leaf, jnp.zeros((), leaf.dtype)))
  return structure.unflatten(kept)


def _mask(pattern: Pattern, scores: jax.Array) -> jax.Array:
  """The mask, spread over devices as `scores` are."""
  place = jax.typeof(scores).sharding
  if all(axis is None for axis in place.spec):
    return pattern.mask(scores)
  # On explicit axes a reshape must be told its sharding. Counts need all scores anyway.
  whole = jax.NamedSharding(place.mesh, jax.P())
  return jax.reshard(pattern.mask(jax.reshard(scores, whole)), place)


def assign(rules: Sequence[Rule], names: list[str]) -> dict[str, Pattern | None]:
  """The pattern of each leaf of `names` that a rule matches, by name.

  Raises:
    ValueError: If a rule decides no leaf.
  """
  chosen: dict[str, Pattern | None] = {}
  for i, rule in enumerate(rules):
    fresh = [name for name in tree.match(rule.leaf, names) if name not in chosen]
    if not fresh:
      raise ValueError(
        f"rule {i} ({rule.leaf!r}) decides nothing: rules before it take every leaf it "
        "matches; put the more specific rule first"
      )
    chosen |= dict.fromkeys(fresh, rule.pattern)
  return chosen


def _like(other: Any, structure: Any, what: str) -> list[Any]:
  """What `other` holds at each leaf of `structure`, None included."""
  try:
    return structure.flatten_up_to(other)
  except ValueError as error:
    raise ValueError(f"{what} are no tree like params: {error}") from error


def _check_shape(what: str, name: str, found: jax.Array, leaf: Any) -> None:
  if found.shape != jnp.shape(leaf):
    raise ValueError(
      f"{what}: {name} has shape {found.shape}, the parameter {jnp.shape(leaf)}; make "
      "them from these parameters"
    )
