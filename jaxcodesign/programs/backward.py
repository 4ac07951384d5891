"""A matrix product whose two backward products are rounded as well.

Of y = x w^T, with the gradient g of the loss by y coming in, training needs

  input gradient   g w      contracted over the outputs n
  weight gradient  g^T x    contracted over the batch m

Each contracts along an axis of its own, so a format with groups or shared exponents
rounds the same gradient, weight or activation anew for each product: hardware that
multiplies blocks needs the blocks along the contraction. Both are found by transposing
the forward product and rewriting its one product, so strides, groups and dilations of
convolutions come out as autodiff has them.

References: Zhang, McDanel, Kung, "FAST", HPCA 2022; Gupta et al., "Deep Learning with
Limited Numerical Precision", ICML 2015.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxcodesign import tree
from jaxcodesign.numerics.formats import Format
from jaxcodesign.numerics.noise import Noise
from jaxcodesign.programs.rewrite import Dot, rewrite_gemms
from jaxcodesign.programs.workload import Gemm

# (format, operand, noise, whether the operand lies across) -> rounded
Round = Callable[[Format | None, jax.Array, Noise | None, bool], jax.Array]


@tree.pytree
class Backward:
  """Formats of the two backward products, each along its own contraction.

  Attributes:
    input_gradient: Of the incoming gradient where it meets the weight.
    weight_gradient: Of the incoming gradient where it meets the activation.
    weight: Of the weight in the input gradient; None: as in the forward product.
    activation: Of the activation in the weight gradient; None: as in the forward one.
  """

  input_gradient: Format | None = None
  weight_gradient: Format | None = None
  weight: Format | None = None
  activation: Format | None = None


class Side(NamedTuple):
  """One backward product: the gradient by one operand, from the other operand.

  Attributes:
    gradient: Format of the incoming gradient, None to leave it.
    other: Format of the other operand, None to leave it.
    operand: The other operand, as the forward product had it if `other` is None.
    noise: Of the incoming gradient and of the other operand, None for nearest.
  """

  gradient: Format | None
  other: Format | None
  operand: jax.Array
  noise: tuple[Noise | None, Noise | None]


def product(
  dot: Dot, lhs: jax.Array, rhs: jax.Array, left: Side, right: Side, rounded: Round
) -> jax.Array:
  """`dot(lhs, rhs)`, with its gradients by `lhs` and `rhs` computed as told.

  Args:
    dot: The original product.
    lhs: What it multiplies, rounded.
    rhs: The same.
    left: How the gradient by `lhs` is computed; its operand is on the right.
    right: How the gradient by `rhs` is computed.
    rounded: Rounds an operand of a backward product.

  Returns:
    What `dot` returns. It cannot be differentiated in forward mode: no gradient comes
    in there.
  """
  # A grid that no layout changes is the same in both products: round once.
  once = _same(left, right)
  shapes = [jax.typeof(lhs), jax.typeof(rhs)]

  @jax.custom_vjp
  def multiplied(lhs: jax.Array, rhs: jax.Array, sides: Any) -> jax.Array:
    del sides
    return dot(lhs, rhs)

  def forward(lhs: jax.Array, rhs: jax.Array, sides: Any) -> Any:
    return dot(lhs, rhs), sides

  def backward(sides: tuple[Side, Side], g: jax.Array) -> Any:
    if once:
      g = rounded(sides[0].gradient, g, sides[0].noise[0], False)
      sides = sides[0]._replace(gradient=None), sides[1]._replace(gradient=None)
    by_lhs = lambda other: lambda x: dot(x, other)
    by_rhs = lambda other: lambda x: dot(other, x)
    return (
      _transposed(by_lhs, shapes[0], sides[0], g, rounded),
      _transposed(by_rhs, shapes[1], sides[1], g, rounded),
      None,
    )

  multiplied.defvjp(forward, backward)
  return multiplied(lhs, rhs, (left, right))


def _same(left: Side, right: Side) -> bool:
  fmt = left.gradient
  return fmt is not None and fmt is right.gradient and fmt.pointwise


def _transposed(
  linear: Callable[[jax.Array], Callable[[jax.Array], jax.Array]],
  shape: Any,
  side: Side,
  g: jax.Array,
  rounded: Round,
) -> jax.Array:
  """The gradient by the argument of `linear(operand)`, an array of `shape`."""

  def gradient(operands: dict[str, jax.Array], g: jax.Array) -> jax.Array:
    return jax.linear_transpose(linear(operands["operand"]), shape)(g)[0]

  def rule(gemm: Gemm, lhs: jax.Array, rhs: jax.Array, dot: Dot) -> jax.Array:
    of_operand = (side.other, side.noise[1])
    of_gradient = (side.gradient, side.noise[0])
    ways = (of_operand, of_gradient) if gemm.lhs else (of_gradient, of_operand)
    operands = [
      rounded(fmt, x, key, across)
      for x, (fmt, key), across in zip((lhs, rhs), ways, dot.across)
    ]
    return dot(*operands)

  return rewrite_gemms(gradient, rule)({"operand": side.operand}, g)
