"""Convolutions as products of true matrices, for engines that know nothing else.

Every convolution becomes lhs [G, M, K] times rhs [G, N, K], contraction last, by moving
pixels only: slices, pads and concatenations. G counts feature or batch groups. Images
[B, *S, C], kernels [O, *W, C] and results [B, *P, O] have their channels last; W, S and
P also stand for the number of taps, input pixels and output pixels.

  conv             lhs is the window of every output pixel, K = W C, channels fastest.
  transposed_conv  every input pixel times every tap, K = C; the products are added
                   where they land (col2im).
  slide            a transposed convolution with more taps than output pixels: windows
                   of the kernel, as wide as the dilated input, times the input.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcodesign.programs.jaxprs import Conv


class Matrices(NamedTuple):
  """Operands of a batched product, and the way from its result to the convolution's."""

  lhs: jax.Array  # [G, M, K]
  rhs: jax.Array  # [G, N, K]
  join: Callable[[jax.Array], jax.Array]  # [G, M, N] -> [B, *P, O]


def conv(
  numbers: Conv, image: jax.Array, kernel: jax.Array, shape: Sequence[int]
) -> Matrices:
  """A convolution without lhs_dilation; `shape` is that of its result [B, *P, O]."""
  window, places = kernel.shape[1:-1], shape[1:-1]
  patches = _windows(
    image, window, places, numbers.strides, numbers.padding, numbers.rhs_dilation
  )
  lhs = _group(numbers, patches)
  rhs = _filters(numbers, kernel, lhs.shape[2])

  def join(out: jax.Array) -> jax.Array:
    out = out.reshape(out.shape[0], shape[0], *places, rhs.shape[1])
    return jnp.moveaxis(out, 0, -2).reshape(shape)

  return Matrices(lhs, rhs, join)


def transposed_conv(
  numbers: Conv, image: jax.Array, kernel: jax.Array, shape: Sequence[int]
) -> Matrices:
  """A convolution with lhs_dilation and unit strides."""
  (images, *pixels, channels), window = image.shape, kernel.shape[1:-1]
  lhs = _group(numbers, image.reshape(images, math.prod(pixels), 1, channels))
  rhs = _filters(numbers, kernel, lhs.shape[2])

  def place(out: jax.Array, tap: tuple[int, ...]) -> jax.Array:
    config = [(0, 0, 0)]
    for i, offset in enumerate(tap):
      low = numbers.padding[i][0] - offset * numbers.rhs_dilation[i]
      extent = (pixels[i] - 1) * numbers.lhs_dilation[i] + 1
      high = shape[i + 1] - low - extent
      config.append((low, high, numbers.lhs_dilation[i] - 1))
    out = out[(..., *tap)]  # [B, *S, O]
    return jax.lax.pad(out, jnp.zeros((), out.dtype), [*config, (0, 0, 0)])

  def join(out: jax.Array) -> jax.Array:
    filters = shape[-1] // out.shape[0]
    out = out.reshape(out.shape[0], shape[0], *pixels, filters, *window)
    out = jnp.moveaxis(out, 0, len(pixels) + 1)
    out = out.reshape(shape[0], *pixels, shape[-1], *window)
    taps = itertools.product(*map(range, window))
    return functools.reduce(operator.add, (place(out, tap) for tap in taps))

  return Matrices(lhs, rhs, join)


def slide(
  numbers: Conv, image: jax.Array, kernel: jax.Array, shape: Sequence[int]
) -> Matrices:
  """A transposed convolution with unit rhs_dilation, its operands in each other's role.

  Output pixel p reads the kernel from tap padding - p stride on, every lhs_dilation-th
  tap: pixels come out in reverse.
  """
  pixels, taps, places = image.shape[1:-1], kernel.shape[1:-1], shape[1:-1]
  padding = []
  for i, (size, dilation) in enumerate(zip(pixels, numbers.lhs_dilation)):
    span = (places[i] - 1) * numbers.strides[i]
    low = span - numbers.padding[i][0]
    extent = (size - 1) * dilation + 1
    padding.append((low, span + extent - low - taps[i]))
  patches = _windows(
    kernel, pixels, places, numbers.strides, padding, numbers.lhs_dilation
  )
  rhs, _ = rows(numbers, image)
  lhs = _filters(numbers, patches, rhs.shape[2])

  def join(out: jax.Array) -> jax.Array:
    filters = shape[-1] // out.shape[0]
    out = out.reshape(out.shape[0], filters, *places, rhs.shape[1])
    out = jnp.moveaxis(jnp.moveaxis(out, -1, 0), (1, 2), (-2, -1))
    return jax.lax.rev(out.reshape(shape), range(1, len(shape) - 1))

  return Matrices(lhs, rhs, join)


def rows(
  numbers: Conv, image: jax.Array
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
  """An image [B, *S, C] as the filters [G, B, S C] of a product, and the way back."""
  images, *pixels, channels = image.shape
  flat = image.reshape(images, 1, math.prod(pixels), channels)

  def back(filters: jax.Array) -> jax.Array:
    groups, many = numbers.groups, numbers.batch_groups
    parts = (many, groups, images // many, math.prod(pixels), channels // groups)
    return jnp.moveaxis(filters.reshape(parts), 1, 3).reshape(image.shape)

  return _group(numbers, flat), back


def _group(numbers: Conv, x: jax.Array) -> jax.Array:
  """[B, M, W, C] -> [G, B M, W C] with the images or the channels split in groups."""
  images, m, window, channels = x.shape
  groups, many = numbers.groups, numbers.batch_groups
  x = x.reshape(many, images // many, m, window, groups, channels // groups)
  return jnp.moveaxis(x, 4, 1).reshape(
    many * groups, images // many * m, window * channels // groups
  )


def _filters(numbers: Conv, kernel: jax.Array, k: int) -> jax.Array:
  """[O, ..., C] -> [G, N, K]."""
  groups = numbers.groups * numbers.batch_groups
  return kernel.reshape(groups, kernel.size // max(groups * k, 1), k)


def _windows(
  image: jax.Array,
  window: Sequence[int],
  places: Sequence[int],
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  dilation: Sequence[int],
) -> jax.Array:
  """[B, *S, C] -> [B, P, W, C]: the window that each output pixel sees."""
  images, *_, channels = image.shape
  taps, pixels = math.prod(window), math.prod(places)
  if not (taps and pixels):
    return jnp.zeros((images, pixels, taps, channels), image.dtype)
  config = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
  padded = jax.lax.pad(image, jnp.zeros((), image.dtype), config)

  # The smaller number of slices: a weight gradient has few output pixels, wide windows.
  if taps <= pixels:
    return jnp.stack(_slices(padded, window, dilation, places, strides), axis=2)
  return jnp.stack(_slices(padded, places, strides, window, dilation), axis=1)


def _slices(
  padded: jax.Array,
  corners: Sequence[int],
  hop: Sequence[int],
  pixels: Sequence[int],
  step: Sequence[int],
) -> list[jax.Array]:
  """[B, *S, C] -> a [B, P, C] for each corner, `hop` apart: P pixels `step` apart."""
  images, *_, channels = padded.shape
  parts = []
  for corner in itertools.product(*map(range, corners)):
    start = [i * h for i, h in zip(corner, hop)]
    stop = [i + (n - 1) * s + 1 for i, n, s in zip(start, pixels, step)]
    part = jax.lax.slice(
      padded, (0, *start, 0), (images, *stop, channels), (1, *step, 1)
    )
    parts.append(part.reshape(images, math.prod(pixels), channels))
  return parts
