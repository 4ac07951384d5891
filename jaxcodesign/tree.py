"""Frozen dataclasses that jax can look into, and names for the leaves of any tree.

What moves (is traced, swept, differentiated) is a leaf; what shapes is static. A leaf
is named by its path, `"encoder/layer_0/kernel"`, the same for dicts, flax linen, flax
nnx and equinox, so that one glob selects the same weights in all of them.
"""

from collections.abc import Collection, Iterable
import dataclasses
import difflib
import fnmatch
import glob
from typing import Any, TypeVar, dataclass_transform

import jax
from jax.core import Tracer
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")


def static(*, default: Any = dataclasses.MISSING) -> Any:
  """A field that shapes the computation: hashable, compared, never traced."""
  return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def pytree(cls: type[T]) -> type[T]:
  """Makes `cls` a frozen dataclass and a pytree; fields are leaves unless `static`.

  `__post_init__` may check values: it runs when a user makes an object, not when jax
  puts one together from tracers, gradients or axis numbers.
  """
  cls = dataclasses.dataclass(frozen=True)(cls)
  fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
  is_static = lambda field: field.metadata.get("static", False)
  leaves = [field.name for field in fields if not is_static(field)]
  rest = [field.name for field in fields if is_static(field)]
  keys = [jax.tree_util.GetAttrKey(name) for name in leaves]

  def flatten(x):
    return [getattr(x, name) for name in leaves], tuple(getattr(x, n) for n in rest)

  def flatten_with_keys(x):
    children, shape = flatten(x)
    return list(zip(keys, children)), shape

  def unflatten(shape, children):
    made = object.__new__(cls)
    for name, value in (*zip(leaves, children), *zip(rest, shape)):
      object.__setattr__(made, name, value)
    return made

  jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
  return cls


def names(tree: Any) -> list[str]:
  """Names of the leaves of `tree`, in the order of `jax.tree.leaves`.

  Path entries are joined by `/`. flax nnx ends each path in the attribute `value` of
  its variables; that ending is dropped. A tree that is one leaf is called `params`.
  """
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
  full = [jax.tree_util.keystr(p, simple=True, separator="/") for p in paths]
  short = [
    name.removesuffix("value").rstrip("/") if _is_value(path) else name
    for name, path in zip(full, paths)
  ]
  # A key that holds a slash can make two paths read the same; as code they differ.
  code = [jax.tree_util.keystr(p) for p in paths]
  chosen = next((s for s in (short, full) if len(set(s)) == len(s)), code)
  return [name or "params" for name in chosen]


def _is_value(path: tuple[Any, ...]) -> bool:
  return path[-1:] == (jax.tree_util.GetAttrKey("value"),)


def named_leaves(tree: Any) -> dict[str, Any]:
  """Leaves of `tree` by name."""
  return dict(zip(names(tree), jax.tree.leaves(tree)))


def is_array(leaf: Any) -> bool:
  """Whether `leaf` has a shape and a dtype: an array, a tracer, a ShapeDtypeStruct."""
  return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def is_concrete(leaf: Any) -> bool:
  """Whether the value of `leaf` can be read now: no tracer, no shape-only stand-in."""
  if isinstance(leaf, (Tracer, jax.ShapeDtypeStruct)):
    return False
  return isinstance(leaf, (int, float, np.ndarray, np.generic, jax.Array))


def check_number(name: str, leaf: Any) -> None:
  """Raises a TypeError if the leaf `name`, traced or not, is no real number."""
  if is_array(leaf) and not (
    jnp.issubdtype(leaf.dtype, jnp.integer) or jnp.issubdtype(leaf.dtype, jnp.floating)
  ):
    raise TypeError(
      f"{name} has dtype {leaf.dtype}; pass an integer or a floating-point number"
    )


def literal(pattern: str, candidates: Collection[str]) -> str:
  """The glob that selects `pattern` itself where that is one of the candidates.

  Names may hold what globs read otherwise: of `h[0]` and `h0` the first is meant.
  """
  return glob.escape(pattern) if pattern in candidates else pattern


def match(pattern: str, candidates: Iterable[str]) -> list[str]:
  """The candidates that the shell-style glob `pattern` selects.

  A pattern that is itself a candidate selects that one alone, see `literal`.

  Raises:
    ValueError: If it selects none; the message names the nearest candidates.
  """
  candidates = list(candidates)
  meant = literal(pattern, candidates)
  found = [c for c in candidates if fnmatch.fnmatchcase(c, meant)]
  if found:
    return found
  near = difflib.get_close_matches(pattern, candidates, n=3, cutoff=0.3)
  hint = ", ".join(near or candidates[:8]) or "nothing to select from"
  raise ValueError(f"{pattern!r} matches no name; nearest: {hint}")


def check_finite(tree: Any, what: str) -> None:
  """Raises a ValueError that names the first leaf of `tree` holding NaN or infinity."""
  for name, leaf in named_leaves(tree).items():
    dtype = leaf.dtype if is_array(leaf) else np.asarray(leaf).dtype
    if not jnp.issubdtype(dtype, np.inexact):
      continue
    bad = ~np.isfinite(np.asarray(leaf))
    if bad.any():
      raise ValueError(
        f"{what}: {name} holds {int(bad.sum())} of {bad.size} values that are NaN or "
        "infinite; retrain with a lower learning rate or clean the input"
      )
