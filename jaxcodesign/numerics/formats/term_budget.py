"""The format of term quantization: integers under a budget of powers of two."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxcodesign import tree
from jaxcodesign.numerics.formats import exponents, noise, rounding, terms
from jaxcodesign.numerics.formats.compiled import compiled
from jaxcodesign.numerics.formats.format import Format, unflushed
from jaxcodesign.numerics.formats.sharing import (
  Share,
  axis_of,
  check_axis,
  check_axis_number,
  check_group,
  check_share,
  check_whole,
  lanes,
  spread,
)
from jaxcodesign.numerics.formats.steps import in_steps, step_of
from jaxcodesign.numerics.formats.storage import store_integers


@tree.pytree
class Terms(Format):
  """Term quantization: `budget` powers of two for each `group` of integers.

  With budget >= group * most_terms(bits), values within the scale are rounded as by
  `Fixed(bits + 1)`; 2^bits steps are on the grid too, since 127 cut to one term is 128.

  Attributes:
    budget: Terms kept per group, >= 1; a leaf, so that a schedule compiles once.
    group: Neighbours along the last axis that share the budget; must divide it. Weights
      take groups (8 in the paper), activations `group=1` and `budget=s`.
    bits: Magnitude bits of the integers; the sign comes on top.
    encoding: "naf" (default, fewest terms), "hese3", "booth4" or "binary".
    share: Values with one scale, as in `Fixed`.
    axis: Where groups and scales run, as in `Fixed`.

  Reference: Kung, McDanel, Zhang. "Term Quantization", SC 2020.
  """

  budget: jax.typing.ArrayLike
  group: int = tree.static(default=8)
  bits: int = tree.static(default=7)
  encoding: terms.Encoding = tree.static(default="naf")
  share: Share = tree.static(default="tensor")
  axis: int = tree.static(default=-1)

  def __post_init__(self):
    check_whole(group=self.group, bits=self.bits)
    if isinstance(self.budget, str | bool):
      raise TypeError(f"budget={self.budget!r} is no number of terms")
    terms.check_budget(self.budget)
    if self.group < 1:
      raise ValueError(f"group={self.group} must be at least 1")
    if not 1 <= self.bits <= 23:
      raise ValueError(f"bits={self.bits} is outside 1..23")
    if self.encoding not in terms.ENCODINGS:
      raise ValueError(f"encoding={self.encoding!r} is none of {terms.ENCODINGS}")
    check_share(self.share)
    check_axis_number(self.axis)

  @property
  def _most(self) -> int:
    # 127 cut to one term is 128, so 2^bits is on the grid. Booth would need a further
    # digit to write it.
    return 2**self.bits - (self.encoding == "booth4")

  @compiled
  def scale(self, x: jax.Array) -> jax.Array:
    terms.check_budget(self.budget)
    check_axis(x, self.axis)
    terms.check_group(self.group, x.shape, self.axis)
    peak = exponents.peak(
      lanes(unflushed(x), self.share, self.axis), axis_of(self.share, self.axis)
    )
    return step_of(peak, 2.0**self.bits - 1, reach=2.0**self.bits)

  def elements(self, x: jax.Array, scale: Any, source: noise.Noise | None) -> jax.Array:
    steps = in_steps(
      lanes(x, self.share, self.axis), spread(scale, self.share, self.axis)
    )
    steps = jnp.clip(rounding.to_integer(steps, source), -self._most, self._most)
    steps = steps.reshape(x.shape)
    kept = terms.keep_largest(
      jnp.moveaxis(jnp.nan_to_num(steps).astype(jnp.int32), self.axis, -1),
      self.budget,
      group=self.group,
      bits=self.bits,
      encoding=self.encoding,
    )
    # A NaN has no integer: it goes around the encoder.
    kept = jnp.moveaxis(kept, -1, self.axis).astype(jnp.float32)
    return jnp.where(jnp.isnan(steps), steps, kept)

  def values(self, elements: jax.Array, scale: Any) -> jax.Array:
    steps = lanes(elements, self.share, self.axis) * spread(
      scale, self.share, self.axis
    )
    return steps.reshape(elements.shape)

  def store(self, elements: jax.Array) -> jax.Array:
    """As integers of bits + 2: 127 and -127 may have become 128 and -128."""
    return store_integers(elements, 2**self.bits)

  def bits_per_value(self) -> float:
    return float(self.bits + 1)

  def terms_per_value(self) -> Any:
    terms.check_budget(self.budget)
    most = float(terms.most_terms(self.bits, self.encoding))
    budget = jnp.asarray(self.budget, jnp.result_type(float))
    return jnp.minimum(budget / self.group, most)

  def most_terms(self) -> Any:
    terms.check_budget(self.budget)
    most = float(terms.most_terms(self.bits, self.encoding))
    return jnp.minimum(jnp.asarray(self.budget, jnp.result_type(float)), most)

  @property
  def pointwise(self) -> bool:
    return self.group == 1 and self.share == "tensor"

  def ends(self, x: jax.Array, scale: Any) -> jax.Array:
    # Of the integers: what the budget of a group leaves of its largest is no end.
    return self.values(
      jnp.copysign(jnp.float32(self._most), x.astype(jnp.float32)), scale
    )

  def check(self, length: int) -> None:
    terms.check_group(self.group, (length,))
    check_group(self.share, length)
