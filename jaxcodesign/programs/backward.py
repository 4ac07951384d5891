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

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax

from jaxcodesign import tree
from jaxcodesign.numerics.formats.format import Format
from jaxcodesign.numerics.formats.noise import Noise
from jaxcodesign.programs.materialize import materialized, materialized_across
from jaxcodesign.programs.rewrite import Dot, rewrite_gemms
from jaxcodesign.programs.workload import Gemm

# (format, operand, noise, whether the operand lies across, taps) -> rounded
Round = Callable[[Format | None, jax.Array, Noise | None, bool, int], jax.Array]


@tree.pytree
class _AsForward:
  """Stands for the format that an operand has in the forward product, until `after`."""


AS_FORWARD: Any = _AsForward()


@tree.pytree
class Backward:
  """Formats of the two backward products, each along its own contraction.

  None leaves an operand as it is, not rounded in the forward product either.

  Attributes:
    input_gradient: Of the incoming gradient where it meets the weight.
    weight_gradient: Of the incoming gradient where it meets the activation.
    weight: Of the weight in the input gradient; as in the forward product by default.
    activation: Of the activation in the weight gradient, likewise.
  """

  input_gradient: Format | None = None
  weight_gradient: Format | None = None
  weight: Format | None = AS_FORWARD
  activation: Format | None = AS_FORWARD

  def after(self, weight: Format | None, activation: Format | None) -> "Backward":
    """The same with nothing left to the forward product, whose formats are given."""
    own = lambda back, forward: forward if isinstance(back, _AsForward) else back
    return dataclasses.replace(
      self, weight=own(self.weight, weight), activation=own(self.activation, activation)
    )


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


class Decision(NamedTuple):
  """What is decided about the backward products once the gradient has come in.

  Attributes:
    decide: (gradient, left, right, known) -> (left, right, report). A side is None
      where autodiff does not ask for its product.
    known: Arrays that `decide` needs, a pytree; it may close over none that is traced.
    probe: An array of the type of the report, which its gradient is; None to do
      without.
  """

  decide: Callable[[jax.Array, Side | None, Side | None, Any], Any]
  known: Any
  probe: jax.Array | None


def sides(
  formats: Sequence[Format | None],
  back: Sequence[Format | None],
  gradients: Sequence[Format | None],
  exact: Sequence[jax.Array],
  values: Sequence[jax.Array],
  noises: Sequence[tuple[Noise | None, Noise | None]],
) -> tuple[Side, Side]:
  """How the gradients by the left and by the right operand are computed.

  Args:
    formats: Of the left and the right operand in the forward product.
    back: Of the same in the backward products.
    gradients: Of the incoming gradient in the gradient by the left, and by the right.
    exact: The operands.
    values: The operands as the forward product has them.
    noises: Of the incoming gradient and of the other operand, for each side.
  """
  made = []
  for i, (gradient, keys) in enumerate(zip(gradients, noises)):
    at = 1 - i  # of the operand that the gradient by operand i is made from
    fmt = back[at]
    # Rounded already, and on the same grid however the array lies?
    known = fmt is formats[at] and (fmt is None or fmt.pointwise or fmt.static)
    # No gradient flows to it from a loss, but one does from that loss' gradient.
    source = values[at] if known else exact[at]
    made.append(Side(gradient, None if known else fmt, source, keys))
  return made[0], made[1]


def product(
  dot: Dot,
  lhs: jax.Array,
  rhs: jax.Array,
  left: Side,
  right: Side,
  rounded: Round,
  *,
  decision: Decision | None = None,
) -> jax.Array:
  """`dot(lhs, rhs)`, with its gradients by `lhs` and `rhs` computed as told.

  Args:
    dot: The original product.
    lhs: What it multiplies, rounded.
    rhs: The same.
    left: How the gradient by `lhs` is computed; its operand is on the right.
    right: How the gradient by `rhs` is computed.
    rounded: Rounds an operand of a backward product.
    decision: What is left open until the gradient comes in, None for nothing.

  Returns:
    What `dot` returns. It cannot be differentiated in forward mode: no gradient comes
    in there.
  """
  # A grid that no layout changes is the same in both products: round once.
  once = decision is None and _same(left, right)
  shapes = [jax.typeof(lhs), jax.typeof(rhs)]
  decide, known, probe = decision or Decision(lambda g, *s: (*s[:2], None), None, None)
  # Which products autodiff asks for is of interest to a report alone.
  asks = probe is not None

  @jax.custom_vjp
  def multiplied(lhs: jax.Array, rhs: jax.Array, probe: Any, held: Any) -> jax.Array:
    del probe, held
    return dot(lhs, rhs)

  def forward(lhs: Any, rhs: Any, probe: Any, held: Any) -> Any:
    if not asks:
      return dot(lhs, rhs), held
    value = lambda tree: jax.tree.map(lambda leaf: leaf.value, tree)
    left, right, known = value(held)
    wanted = left if lhs.perturbed else None, right if rhs.perturbed else None
    return dot(lhs.value, rhs.value), (*wanted, known)

  def backward(held: Any, g: Any) -> Any:
    if asks and type(g) is jax.custom_derivatives.SymbolicZero:
      return None, None, None, None
    if not once:
      g = materialized(g)  # read by a peak and a rounding for each side
    left, right, report = decide(g, *held)
    if once:
      g = rounded(left.gradient, g, left.noise[0], False, 1)
      left, right = left._replace(gradient=None), right._replace(gradient=None)
    return *_gradients(dot, shapes, (left, right), g, rounded), report, None

  multiplied.defvjp(forward, backward, symbolic_zeros=asks)
  return multiplied(lhs, rhs, probe, (left, right, known))


def contractions(dot: Dot, lhs: jax.Array, rhs: jax.Array) -> list[tuple[int, int]]:
  """(taps, channels) that the right operand of each backward product is summed over.

  First of the gradient by `lhs`, then of that by `rhs`. Blocks and scales of that
  operand run along both, channels fastest; those of a left operand, if it is an image,
  along its channels. Which product autodiff makes is a matter of strides.
  """
  shapes = [jax.typeof(lhs), jax.typeof(rhs)]
  found: list[tuple[int, int]] = []

  def seen(fmt: Any, x: jax.Array, key: Any, across: bool, taps: int) -> jax.Array:
    del fmt, key, across
    found.append((taps, x.shape[-1] // taps))
    return x

  plain = lambda operand: Side(None, None, operand, (None, None))
  by_both = lambda lhs, rhs, g: _gradients(
    dot, shapes, (plain(rhs), plain(lhs)), g, seen
  )
  jax.eval_shape(by_both, lhs, rhs, jax.eval_shape(dot, lhs, rhs))
  return found[1::2]  # the left operand of a product comes first


def _gradients(
  dot: Dot, shapes: Sequence[Any], sides: tuple[Any, Any], g: jax.Array, rounded: Round
) -> tuple[Any, Any]:
  """The gradients by both operands, None for one that nobody asks for."""
  by_lhs = lambda other: lambda x: dot(x, other)
  by_rhs = lambda other: lambda x: dot(other, x)
  return (
    _transposed(by_lhs, shapes[0], sides[0], g, rounded),
    _transposed(by_rhs, shapes[1], sides[1], g, rounded),
  )


def _same(left: Side, right: Side) -> bool:
  fmt = left.gradient
  if fmt is None or fmt is not right.gradient:
    return False
  return fmt.pointwise or fmt.static


def _transposed(
  linear: Callable[[jax.Array], Callable[[jax.Array], jax.Array]],
  shape: Any,
  side: Side | None,
  g: jax.Array,
  rounded: Round,
) -> jax.Array | None:
  """The gradient by the argument of `linear(operand)`, an array of `shape`."""
  if side is None:
    return None

  def gradient(operands: dict[str, jax.Array], g: jax.Array) -> jax.Array:
    return jax.linear_transpose(linear(operands["operand"]), shape)(g)[0]

  def rule(gemm: Gemm, lhs: jax.Array, rhs: jax.Array, dot: Dot) -> jax.Array:
    of_operand = (side.other, side.noise[1])
    of_gradient = (side.gradient, side.noise[0])
    ways = (of_operand, of_gradient) if gemm.lhs else (of_gradient, of_operand)
    operands = []
    for x, (fmt, key), across, taps in zip((lhs, rhs), ways, dot.across, dot.taps):
      x = rounded(fmt, x, key, across, taps)
      # The product may want it transposed: rounding must not be fused into that.
      operands.append(materialized_across(x) if across and fmt is not None else x)
    return dot(*operands)

  return rewrite_gemms(gradient, rule)({"operand": side.operand}, g)
