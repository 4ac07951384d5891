"""What a format does outside of jit, as one program.

Operation by operation a rounding reads and writes its array twenty times: 4096^2 values
take 0.4 to 2.5 s instead of 0.03 to 0.1. Inside another program nothing is added: the
operations are those of the method itself.
"""

from collections.abc import Callable
import functools
from typing import Any, ParamSpec, TypeVar

import jax

from jaxcodesign import tree

P = ParamSpec("P")
T = TypeVar("T")


def compiled(method: Callable[P, T]) -> Callable[P, T]:
  """`method(fmt, *arrays)` compiled once for each format and types of the arrays.

  Leaves of the format that are Python numbers are known to the program, arrays are
  arguments of it, so a loop that learns a step compiles once. Anything else than arrays
  goes to the method as it is, which refuses it in its own words.
  """
  named = jax.jit(method, static_argnums=0, inline=True)
  filled = jax.jit(method, inline=True)

  @functools.wraps(method)
  def call(*args: P.args, **kwargs: P.kwargs) -> T:
    given: Any = (args[1:], kwargs)
    if not all(map(_is_data, jax.tree.leaves(given))):
      return method(*args, **kwargs)
    leaves = jax.tree.leaves(args[0])
    if all(isinstance(leaf, (int, float)) for leaf in leaves):
      return named(*args, **kwargs)
    return (filled if all(map(_is_data, leaves)) else method)(*args, **kwargs)

  return call


def _is_data(leaf: object) -> bool:
  return tree.is_array(leaf) and not isinstance(leaf, jax.ShapeDtypeStruct)
