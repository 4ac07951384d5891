"""An operand of a product, rounded where it lies and with noise of its own."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxcodesign.numerics.formats import exponents, noise
from jaxcodesign.numerics.formats.format import Format
from jaxcodesign.programs import jaxprs
from jaxcodesign.programs.policy import Operand
from jaxcodesign.programs.workload import Gemm

# (operand, number) -> noise for it, None to round to nearest
Draw = Callable[[Operand, int], noise.Noise | None]


def source_of(key: noise.Noise | jax.Array | None) -> Any:
  """The source that a `key` means, one with a PRNG key that products can fold into.

  Raises:
    TypeError: If it is neither None nor such a source.
  """
  source = noise.of(key)
  if source is not None and not hasattr(source, "key"):
    raise TypeError(
      f"key={key!r} has no PRNG key to draw every product's noise from; pass "
      "jax.random.key(seed), Counter(key), Threefry(key) or Lfsr(key)"
    )
  return source


def draws(
  source: Any, product: int, loops: Sequence[jax.Array], stochastic: Sequence[Operand]
) -> Draw:
  """The noise of every operand of one execution of one product.

  Args:
    source: What `source_of` returned.
    product: Its number in the program.
    loops: Numbers of the iterations around it.
    stochastic: The operands that have noise.
  """
  if source is None:
    return lambda operand, number: None
  key = jax.random.fold_in(source.key, product)
  for index in loops:
    key = jax.random.fold_in(key, index)

  def draw(operand: Operand, number: int) -> noise.Noise | None:
    if operand not in stochastic:
      return None
    return dataclasses.replace(source, key=jax.random.fold_in(key, number))

  return draw


def lying(fmt: Format, x: jax.Array, across: bool) -> tuple[Format, jax.Array]:
  """A format along the contraction of `x`, and `x` as the program has it.

  Args:
    fmt: Along the last axis.
    x: [..., M, K], or [..., K] unless `across`.
    across: Whether `x` lies with its two last axes exchanged.
  """
  moved = fmt.along(-2) if across else None
  return (fmt, x) if moved is None else (moved, jnp.swapaxes(x, -1, -2))


def round_operand(
  gemm: Gemm,
  side: str,
  clip: bool,
  fmt: Format | None,
  x: jax.Array,
  source: noise.Noise | None,
  across: bool,
  taps: int = 1,
) -> jax.Array:
  """`x` rounded to `fmt`, where it lies if `across`; errors name the product."""
  if fmt is None:
    return x
  block = getattr(fmt, "block", None)
  if taps > 1 and block and x.shape[-1] // taps % block == 0:
    # The same blocks, but the axis of channels stays one: it may lie over devices.
    apart = x.reshape(*x.shape[:-1], taps, -1)
    return round_operand(gemm, side, clip, fmt, apart, source, False).reshape(x.shape)
  along, turned = lying(fmt, x, across)
  with blaming(gemm, side, x):
    scale = along.scale(turned)
    given = _inside(along, turned, scale) if clip else turned
    out = along.round(given, scale, _local(source, x))
  return out if turned is x else jnp.swapaxes(out, -1, -2)


@contextlib.contextmanager
def blaming(gemm: Gemm, side: str, x: jax.Array) -> Iterator[None]:
  """Errors of a format raised inside name the product, the operand and its shape."""
  try:
    yield
  except (TypeError, ValueError) as error:
    raise type(error)(
      f"{gemm.name} ({gemm.source}), {side} {list(x.shape)}: {error}"
    ) from error


def refuse_backward(gemm: Gemm) -> None:
  """Raises Unsupported unless autodiff makes the backward pass of a product."""
  if gemm.custom:
    raise jaxprs.Unsupported(
      f"{gemm.source}: {gemm.name} is inside a custom derivative, whose backward pass "
      "is its author's; a rule with gradient formats cannot reach it: match it with a "
      "rule before, without gradient"
    )
  if gemm.role in ("input_gradient", "weight_gradient"):
    raise jaxprs.Unsupported(
      f"{gemm.source}: {gemm.name} is a product of a backward pass already; with "
      "gradient formats quantize the function, then differentiate it: "
      "jax.grad(quantize(loss, policy))"
    )


def _local(source: Any, x: jax.Array) -> Any:
  """The noise of a device's own part of `x` inside shard_map."""
  if source is None:
    return None
  for axis in jaxprs.varying(x):
    key = jax.random.fold_in(source.key, jax.lax.axis_index(axis))
    source = dataclasses.replace(source, key=key)
  return source


def _inside(fmt: Format, x: jax.Array, scale: Any) -> jax.Array:
  """`x`, without a gradient where it lies more than 4 ulp beyond its grid.

  A peak that just fits may lie an ulp beyond, as its step is rounded. The gradient by
  what spans the grid, a learned step or limit, stays.
  """
  end = jnp.abs(fmt.ends(x, scale)).astype(jnp.float32)
  ulp = exponents.power_of_two(exponents.floor_log2(exponents.bits_of(end)))
  beyond = end + 4 * float(jnp.finfo(x.dtype).eps) * ulp
  saturated = jnp.abs(x).astype(jnp.float32) > beyond
  return jnp.where(saturated, jax.lax.stop_gradient(x), x)
