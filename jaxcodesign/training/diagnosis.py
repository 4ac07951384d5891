"""Where a loss stopped being a number: the first tensor that is not finite.

The failing batch goes through the network once more, with the parameters before the
step, and every product reports whether its operands and its result are finite.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.programs.rewrite import Dot, rewrite_gemms
from jaxcodesign.programs.workload import Gemm


def suspect(loss: Callable[[Any, Any], Any], params: Any, batch: Any) -> str:
  """Names the first tensor, in the order of computation, that is not finite.

  Args:
    loss: (params, batch) -> an outcome with `.loss`, as the step had it.
    params: Before the step.
    batch: Of the step.

  Returns:
    A clause for an error message: an input, a parameter, an operand or result of a
    product, or the gradient of a parameter.
  """
  for kind, values in (("the batch's", batch), ("the parameter", params)):
    for name, leaf in tree.named_leaves(values).items():
      if not _finite(leaf):
        return f"{kind} {name} holds NaN or inf"
  # On one device, where reports come in the order of computation.
  params, batch = jax.tree.map(jnp.asarray, jax.device_get((params, batch)))
  found: list[str] = []

  def report(name: str, flags: Any) -> None:
    words = ("its input", "its weight", "its result")
    broken = [word for word, fine in zip(words, np.asarray(flags)) if not fine]
    if broken:
      found.append(f"{broken[0]} is not finite in the product {name}")

  def rule(gemm: Gemm, lhs: jax.Array, rhs: jax.Array, dot: Dot) -> jax.Array:
    out = dot(lhs, rhs)
    flags = jnp.stack([jnp.all(jnp.isfinite(x)) for x in (lhs, rhs, out)])
    jax.debug.callback(
      lambda flags, name=gemm.name: report(name, flags), flags, ordered=True
    )
    return out

  outcome = jax.jit(rewrite_gemms(loss, rule))(params, batch)
  jax.effects_barrier()
  if found:
    return found[0]
  if not np.isfinite(np.asarray(outcome.loss)):
    return "the loss itself, all products being finite"
  grads = jax.jit(jax.grad(lambda p: loss(p, batch).loss))(params)
  for name, leaf in tree.named_leaves(grads).items():
    if not _finite(leaf):
      return f"the gradient of {name} is not finite, the forward pass being so"
  return "nothing in full precision: the rounding of an operand overflows"


def _finite(leaf: Any) -> bool:
  if not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating):
    return True
  return bool(jnp.all(jnp.isfinite(jnp.asarray(leaf))))
