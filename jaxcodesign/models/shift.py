"""Shift: each channel moves by a pixel, or stays, before a 1x1 convolution mixes them.

Together they stand in for a 3x3 convolution without a window: the kernel of the product
is one matrix [channels in, channels out], which an array holds as it is.

References: Wu et al., "Shift: A Zero FLOP, Zero Parameter Alternative to Spatial
Convolutions", CVPR 2018; Kung, McDanel, Zhang, "Packing Sparse Convolutional Neural
Networks for Efficient Systolic Array Implementations", ASPLOS 2019, whose released code
draws the shifts as here.
"""

import functools

from flax import nnx
import jax
import numpy as np

Shifts = tuple[tuple[int, int], ...]  # (down, right) in {-1, 0, 1} for each channel

_PROBABILITIES = (0.3, 0.4, 0.3)  # of -1, 0 and 1, rows and columns alike


def draw(channels: int, seed: int | tuple[int, ...]) -> Shifts:
  """Draws the shift of each channel; the same seed gives the same shifts."""
  rng = np.random.default_rng(seed)
  drawn = rng.choice((-1, 0, 1), size=(channels, 2), p=_PROBABILITIES)
  return tuple((int(down), int(right)) for down, right in drawn)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def shift(x: jax.Array, shifts: Shifts) -> jax.Array:
  """Returns y[b, i, j, c] = x[b, i + down_c, j + right_c, c], zero beyond the edges.

  A depthwise 3x3 convolution of padding 1 whose kernels are one at (1 + down, 1 +
  right). Differentiable in reverse mode, and its gradient in both modes.

  Args:
    x: [B, H, W, C].
    shifts: (down, right) of each channel.
  """
  return _moved(x, shifts)


def _forward(x: jax.Array, shifts: Shifts) -> tuple[jax.Array, None]:
  return _moved(x, shifts), None


def _backward(shifts: Shifts, _: None, dy: jax.Array) -> tuple[jax.Array]:
  # The shift back: autodiff's scatter-add is 8 times as slow on CPU.
  return (_moved(dy, tuple((-down, -right) for down, right in shifts)),)


shift.defvjp(_forward, _backward)


def _moved(x: jax.Array, shifts: Shifts) -> jax.Array:
  b, h, w, channels = x.shape
  down, right = np.array(shifts).T
  rows, columns = np.arange(h)[:, None, None] + down, np.arange(w)[:, None] + right
  inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
  at = np.where(inside, (rows * w + columns) * channels + np.arange(channels), -1)
  # Not a sum of nine masked slices: half as fast, and nine operations to every machine.
  return jax.lax.gather(
    x.reshape(b, -1),
    at[..., None].astype(np.int32),
    jax.lax.GatherDimensionNumbers(
      offset_dims=(0,), collapsed_slice_dims=(1,), start_index_map=(1,)
    ),
    slice_sizes=(b, 1),
    mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
    fill_value=0,
  )


class Shift(nnx.Module):
  """A `shift` without parameters, drawn once from its seed."""

  def __init__(self, channels: int, seed: int | tuple[int, ...]):
    self.shifts = draw(channels, seed)

  def __call__(self, x: jax.Array) -> jax.Array:
    return shift(x, self.shifts)
