"""Functions made programs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxcodesign import tree
from jaxcodesign.programs.jaxprs.program import Traced, Unsupported, read
from jaxcodesign.programs.jaxprs.source import blamed

_UNTRACEABLE = (
  jax.errors.ConcretizationTypeError,  # TracerBoolConversionError is one
  jax.errors.TracerArrayConversionError,
  jax.errors.TracerIntegerConversionError,
  jax.errors.NonConcreteBooleanIndexError,
)


def trace_program(fn: Callable[..., Any], args: Sequence[Any], kwargs: dict) -> Traced:
  """Traces `fn(*args, **kwargs)` on abstract values; runs nothing.

  Leaves with a shape and a dtype (arrays, tracers, ShapeDtypeStructs) become inputs;
  all others (Python numbers, strings, functions) are held as they are.

  Raises:
    Unsupported: If the function needs the value of an array to go on.
  """
  leaves, structure = jax.tree.flatten((tuple(args), kwargs))
  is_array = [tree.is_array(leaf) for leaf in leaves]

  def flat(*arrays: Any) -> Any:
    rest = iter(arrays)
    filled = [next(rest) if hit else leaf for leaf, hit in zip(leaves, is_array)]
    args, kwargs = jax.tree.unflatten(structure, filled)
    return fn(*args, **kwargs)

  arrays = [leaf for leaf, hit in zip(leaves, is_array) if hit]
  try:
    closed, shape = jax.make_jaxpr(flat, return_shape=True)(*arrays)
  except _UNTRACEABLE as error:
    raise Unsupported(
      f"{getattr(fn, '__name__', fn)} cannot be traced: {blamed(error)} needs the "
      "value of an array; branch with jnp.where or jax.lax.cond, loop with "
      "jax.lax.scan, or pass the value as a Python number"
    ) from error
  return Traced(read(closed, {}), arrays, shape)
