"""Bits of a fixed-point operand that may be traced: a number format for prices alone.

The width of `Fixed` shapes a grid and is static; here it is a leaf, so that `jax.grad`
and vmap reach it through `cost.evaluate`:

  policy = (Rule("*", Width(6.0), Width(8.0)),)
  jax.grad(lambda p: cost.evaluate(work, machine, policy=p).edp_js)(policy)

At whole bits a `Width` costs what `Fixed` does. Between them bytes, bit-serial cycles
and switched energy follow the bits; whole passes, fused cells and terms stay whole and
have the derivative of the line through full ones, see `cost.steps`. Folds and buffers
that overflow are smooth at a temperature above 0 only.
"""

from typing import Any, Never

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.numerics.formats import noise
from jaxcodesign.numerics.formats.fixed import Fixed
from jaxcodesign.numerics.formats.format import Format
from jaxcodesign.numerics.formats.rounding import straight_through
from jaxcodesign.numerics.formats.sharing import Share, check_group, check_share


@tree.pytree
class Width(Format):
  """`Fixed` as a cost model sees it; rounding with it raises a TypeError.

  Attributes:
    bits: 1 to 24, the sign included, whole or not; a leaf.
    share: Values with one scale, as in `Fixed`: a group must divide the contraction.
  """

  bits: jax.typing.ArrayLike
  share: Share = tree.static(default="tensor")

  def __post_init__(self):
    if tree.is_concrete(self.bits):
      found = np.asarray(self.bits, float)
      if not np.all((found >= 1) & (found <= 24)):
        raise ValueError(f"Width has 1 to 24 bits: bits={self.bits}")
    check_share(self.share)

  @classmethod
  def of(cls, fmt: Fixed) -> "Width":
    """The width of a format whose bits are static.

    Raises:
      TypeError: If `fmt` is not `Fixed`: a mantissa or a budget is a leaf already.
    """
    if not isinstance(fmt, Fixed):
      raise TypeError(
        f"{fmt!r} is not Fixed: mantissas and budgets are leaves that have derivatives "
        "by themselves, other widths shape a grid"
      )
    return cls(float(fmt.bits), fmt.share)

  def bits_per_value(self) -> Any:
    tree.check_number("bits", self.bits)
    return jnp.asarray(self.bits).astype(jnp.result_type(float))

  def terms_per_value(self) -> Any:
    # Those of `terms.most_terms`, one for each two bits of the magnitude.
    half = jnp.maximum(self.bits_per_value() - 1, 1) / 2
    return straight_through(half, jnp.floor(half)) + 1

  @property
  def pointwise(self) -> bool:
    return self.share == "tensor"

  def check(self, length: int) -> None:
    check_group(self.share, length)

  def scale(self, x: jax.Array) -> Never:
    self._refuse()

  def elements(self, x: jax.Array, scale: Any, source: noise.Noise | None) -> Never:
    self._refuse()

  def values(self, elements: jax.Array, scale: Any) -> Never:
    self._refuse()

  def store(self, elements: jax.Array) -> Never:
    self._refuse()

  def _refuse(self) -> Never:
    raise TypeError(
      "Width prices operands and cannot round them, its bits may be traced: quantize "
      "with Fixed(bits), and price with Width.of(Fixed(bits))"
    )
