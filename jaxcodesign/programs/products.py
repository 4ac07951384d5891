"""Matrix products in canonical form: lhs [batch, m, k], rhs [batch, n, k].

Every `dot_general` and `conv_general_dilated` is one such product, contraction last.

  dot_general   batch, free and contracting dimensions are each merged, in their order.
  convolution   by im2col: m runs over images and output pixels, k over the window and
                then the input channels (channels fastest), n over filters; feature
                groups and batch groups are the batch, so a depthwise layer of C
                channels is C products with n = 1. Padding is multiplied like any pixel.
  transposed    a convolution with dilated input (lhs_dilation, unit strides) multiplies
                each *input* pixel by every filter tap and adds the results where they
                land (col2im): m over input pixels, k = input channels, n = filters x
                window. No inserted zero is multiplied, so the input gradient of a
                strided layer costs what its forward product costs. Where the window
                outgrows the output (the weight gradient of a transposed layer) the
                operands are flipped: the dilated input is slid over the kernel, a
                convolution, m over kernels and output pixels, n over images.

Where exactly one operand is a weight, it is the right one: `flip` swaps the operands of
a dot written the other way around (equinox).

Executing a product keeps convolutions as they are: the left operand is then the image
[B, *spatial, C], channels last, in place of its windows [batch, m, k], which hold every
pixel k/C times; `im2col` makes the matrices.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcodesign.programs import im2col, jaxprs
from jaxcodesign.programs.jaxprs import Dot, Step
from jaxcodesign.programs.provenance import Origin


class Dims(NamedTuple):
  """Sizes of a product: batch times [m, k] @ [k, n]."""

  batch: int
  m: int
  k: int
  n: int


class Canonical(NamedTuple):
  """A product step with its operands put in order.

  Attributes:
    lhs: [batch, m, k], or the image [B, *spatial, C] of a convolution.
    rhs: [batch, n, k].
    dot: (lhs, rhs) -> [batch, m, n], or the image [B, *spatial, filters]: the original
      product on canonical operands.
    shape: Of what `dot` returns; its dtype is that of what the step writes.
    finish: What `dot` returns -> what the step writes.
    across: Whether lhs, and rhs, were transposed to bring the contraction last.
    taps: Of the window that the contraction of rhs runs over, channels fastest: its
      axis is taps x channels merged.
  """

  lhs: jax.Array
  rhs: jax.Array
  dot: Callable[[jax.Array, jax.Array], jax.Array]
  shape: tuple[int, ...]
  finish: Callable[[jax.Array], jax.Array]
  across: tuple[bool, bool] = (False, False)
  taps: int = 1


def kind(step: Step, flip: bool = False) -> str:
  """The kind of a product step; raises Unsupported for strided transposed ones."""
  if step.op == "dot_general":
    return "dot"
  conv = jaxprs.conv_numbers(step)
  if flip or max(conv.lhs_dilation, default=1) == 1:
    return "conv"
  if max(conv.strides) > 1:
    raise jaxprs.Unsupported(
      f"{jaxprs.location(step)}: a convolution with lhs_dilation={conv.lhs_dilation} "
      f"and strides={conv.strides} is no single matrix product; subsample its result"
    )
  return "transposed_conv"


def dims(step: Step, flip: bool = False) -> Dims:
  """Sizes of a product step, with its operands swapped if `flip`."""
  lhs, rhs, out = step.ins[0].shape, step.ins[1].shape, step.outs[0].shape
  if step.op == "dot_general":
    d = jaxprs.dot_numbers(step)
    batch = math.prod(lhs[i] for i in d.lhs_batch)
    k = math.prod(lhs[i] for i in d.lhs_contract)
    # Not by division: a contraction of length zero is legal.
    m = math.prod(lhs[i] for i in _free(len(lhs), d.lhs_batch, d.lhs_contract))
    n = math.prod(rhs[i] for i in _free(len(rhs), d.rhs_batch, d.rhs_contract))
    return Dims(batch, n, k, m) if flip else Dims(batch, m, k, n)
  conv = jaxprs.conv_numbers(step)
  groups = conv.groups * conv.batch_groups
  sizes = lambda shape, spec: (*(shape[i] for i in spec[:2]), _area(shape, spec))
  images, _, pixels = sizes(lhs, conv.lhs_spec)
  filters, channels, window = sizes(rhs, conv.rhs_spec)
  places = _area(out, conv.out_spec)
  images, filters = images // conv.batch_groups, filters // groups
  if flip:
    return Dims(groups, filters * places, pixels * channels, images)
  if kind(step) == "transposed_conv":
    return Dims(groups, images * pixels, channels, filters * window)
  return Dims(groups, images * places, window * channels, filters)


def window(step: Step, flip: bool = False) -> int:
  """Taps that a contraction runs over besides channels: 1 unless a convolution."""
  if step.op == "dot_general" or flip or kind(step) == "transposed_conv":
    return 1
  return _area(step.ins[1].shape, jaxprs.conv_numbers(step).rhs_spec)


def _area(shape: Sequence[int], spec: Sequence[int]) -> int:
  return math.prod(shape[i] for i in spec[2:])


def flipped(step: Step, origins: Sequence[Origin]) -> bool:
  """Whether canonical order swaps the operands.

  It does for a dot whose only weight is on the left, and for a transposed convolution
  that is really the weight gradient of one (see the module's docstring).
  """
  if step.op == "dot_general":
    return origins[0].rank > origins[1].rank
  conv = jaxprs.conv_numbers(step)
  if origins[1].rank or max(conv.lhs_dilation, default=1) == 1:
    return False
  window = _area(step.ins[1].shape, conv.rhs_spec)
  places = _area(step.outs[0].shape, conv.out_spec)
  more = places < window or max(conv.strides) > 1
  return more and max(conv.rhs_dilation) == 1


def canonical(
  step: Step, lhs: Any, rhs: Any, *, flip: bool = False, matrices: bool = False
) -> Canonical:
  """Puts the operands of a product step in order; see `Canonical`.

  Args:
    step: A product step.
    lhs: Its left operand.
    rhs: Its right operand.
    flip: Whether to swap them; see `flipped`.
    matrices: Whether convolutions become matrices too.
  """
  if step.op == "dot_general":
    return _dot(step, lhs, rhs, flip)
  return (_matrices if matrices else _conv)(step, lhs, rhs, flip)


def _free(rank: int, batch: Sequence[int], contract: Sequence[int]) -> list[int]:
  return [i for i in range(rank) if i not in batch and i not in contract]


def _dot(step: Step, lhs: Any, rhs: Any, flip: bool) -> Canonical:
  d: Dot = jaxprs.dot_numbers(step)
  left = _matrix(lhs, d.lhs_batch, d.lhs_contract)
  right = _matrix(rhs, d.rhs_batch, d.rhs_contract)
  sizes = [left.batch, left.free, right.free]
  swap = lambda out: jnp.swapaxes(out, 1, 2) if flip else out

  def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = (b, a) if flip else (a, b)
    # The step itself on its own layout: XLA cancels the transpositions, so a rule that
    # changes nothing changes no bit.
    out = jaxprs.bind(step, [left.back(a), right.back(b)])[0]
    return swap(_merge(out, sizes))

  first, second = (right, left) if flip else (left, right)
  batch, m, _, n = dims(step, flip)
  finish = lambda out: _split(swap(out), sizes)
  across = first.across, second.across
  return Canonical(first.value, second.value, dot, (batch, m, n), finish, across)


class _Matrix(NamedTuple):
  """An operand of a dot as [batch, free, contract], the sizes merged in each."""

  value: jax.Array
  batch: list[int]
  free: list[int]
  back: Callable[[jax.Array], jax.Array]
  across: bool


def _matrix(x: Any, batch: tuple[int, ...], contract: tuple[int, ...]) -> _Matrix:
  x = jnp.asarray(x)
  across = bool(contract) and contract[-1] != x.ndim - 1
  free = _free(x.ndim, batch, contract)
  # Axes are exchanged last, so that whoever exchanges them again meets this exchange
  # with nothing in between, and XLA makes no copy.
  parts = (batch, contract, free) if across else (batch, free, contract)
  order = [axis for part in parts for axis in part]
  sizes = [[x.shape[axis] for axis in part] for part in parts]
  turn = lambda y: jnp.swapaxes(y, 1, 2) if across else y
  return _Matrix(
    turn(_merge(jnp.transpose(x, order), sizes)),
    sizes[0],
    [x.shape[axis] for axis in free],
    lambda y: jnp.transpose(_split(turn(y), sizes), _inverse(order)),
    across,
  )


def _merge(x: jax.Array, sizes: Sequence[Sequence[int]]) -> jax.Array:
  """Merges consecutive axes of the given sizes into one axis each."""
  # Part by part: explicit shardings follow one merge at a time.
  for at, part in enumerate(sizes):
    x = x.reshape(*x.shape[:at], math.prod(part), *x.shape[at + len(part) :])
  return x


def _split(x: jax.Array, sizes: Sequence[Sequence[int]]) -> jax.Array:
  """Undoes `_merge`."""
  for at, part in reversed(list(enumerate(sizes))):
    x = x.reshape(*x.shape[:at], *part, *x.shape[at + 1 :])
  return x


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
  return tuple(sorted(range(len(order)), key=order.__getitem__))


def _conv(step: Step, lhs: Any, rhs: Any, flip: bool) -> Canonical:
  conv = jaxprs.conv_numbers(step)
  orders = [_last(s) for s in (conv.lhs_spec, conv.rhs_spec, conv.out_spec)]
  image, kernel = jnp.transpose(lhs, orders[0]), jnp.transpose(rhs, orders[1])
  # Flipped, the kernel is the image; the images are the filters of the result too.
  turn = (-1, *range(1, image.ndim - 1), 0) if flip else tuple(range(image.ndim))
  order = tuple(orders[2][i] for i in turn)
  shape = tuple(step.outs[0].shape[i] for i in order)
  taps = 1
  if flip:
    filters, back = im2col.rows(conv, image)
  else:
    size = dims(step)
    taps = size.k // kernel.shape[-1] if kernel.shape[-1] else 1
    filters = kernel.reshape(size.batch, size.n, size.k)
    back = lambda b: b.reshape(kernel.shape)

  def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    image, kernel = (back(b), a) if flip else (a, back(b))
    operands = [jnp.transpose(x, _inverse(o)) for x, o in zip((image, kernel), orders)]
    return jnp.transpose(jaxprs.bind(step, operands)[0], order)

  finish = lambda out: jnp.transpose(out, _inverse(order))
  lhs = kernel if flip else image
  return Canonical(lhs, filters, dot, shape, finish, taps=taps)


def _matrices(step: Step, lhs: Any, rhs: Any, flip: bool) -> Canonical:
  conv, size = jaxprs.conv_numbers(step), dims(step, flip)
  image = jnp.transpose(lhs, _last(conv.lhs_spec))
  kernel = jnp.transpose(rhs, _last(conv.rhs_spec))
  out = _last(conv.out_spec)
  ways = {"conv": im2col.conv, "transposed_conv": im2col.transposed_conv}
  way = im2col.slide if flip else ways[kind(step)]
  a, b, join = way(conv, image, kernel, [step.outs[0].shape[i] for i in out])

  def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    numbers = (((2,), (2,)), ((0,), (0,)))
    return jax.lax.dot_general(a, b, numbers, **jaxprs.accuracy(step))

  finish = lambda result: jnp.transpose(join(result), _inverse(out))
  return Canonical(a, b, dot, (size.batch, size.m, size.n), finish)


def _last(spec: Sequence[int]) -> tuple[int, ...]:
  """The order that puts the feature axis of a spec last."""
  return (spec[0], *spec[2:], spec[1])
