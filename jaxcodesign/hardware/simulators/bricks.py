"""A convolution cut into the steps of the bit-level accelerators of `peers`.

A step is one kernel position times a brick of `lanes` input channels, for a group of
`windows` output pixels (row by row) and a block of `filters` output channels at once,
as in the Toronto DNNsim.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.numerics.formats import terms


@dataclasses.dataclass(frozen=True)
class Tile:
  """How much an accelerator does in a step; DNNsim's sizes by default.

  Attributes:
    lanes: Input channels.
    windows: Output pixels.
    filters: Output channels.
    activation_bits: p_a, at most 16, a sign not included.
    weight_bits: p_w, at most 16, the sign included.
    bits_per_cycle: Activation bits that Loom takes at once.
    shift_bits: B of Pragmatic's first stage; None is a full shifter (1-stage).
    encoding: Terms of Laconic, one of `terms.ENCODINGS`.
    signed: Activations have a sign beside p_a bits of magnitude.
    trim: Dynamic Stripes skips the low zeros that all activations of a step share.
    dynamic_weights: Loom takes no more bits of the weights than a step's need.
    run_ahead: Steps that a window of Pragmatic may be ahead of the slowest, a register
      for the weights of each. All meet where a group of windows or a block ends; that
      the registers have to be filled one after the other is left out.
  """

  lanes: int = 16
  windows: int = 16
  filters: int = 256
  activation_bits: int = 8
  weight_bits: int = 8
  bits_per_cycle: int = 1
  shift_bits: int | None = None
  encoding: terms.Encoding = "binary"
  signed: bool = False
  trim: bool = False
  dynamic_weights: bool = False
  run_ahead: int = 0

  def __post_init__(self):
    for field in ("lanes", "windows", "filters", "bits_per_cycle"):
      if getattr(self, field) < 1:
        raise ValueError(f"Tile.{field}={getattr(self, field)}: at least 1 is needed")
    for field in ("activation_bits", "weight_bits"):
      if not 1 <= getattr(self, field) <= 16:
        raise ValueError(f"Tile.{field}={getattr(self, field)} is not in 1 .. 16")
    if self.shift_bits is not None and self.shift_bits < 0:
      raise ValueError(f"Tile.shift_bits={self.shift_bits}: 0 or more, or None")
    if self.run_ahead < 0:
      raise ValueError(f"Tile.run_ahead={self.run_ahead}: 0 or more")
    if self.encoding not in terms.ENCODINGS:
      known = ", ".join(terms.ENCODINGS)
      raise ValueError(f"Tile.encoding={self.encoding!r} is none of {known}")

  @property
  def sign_bits(self) -> int:
    """Bits of an activation beside its p_a, 0 or 1."""
    return int(self.signed)


DNNSIM = Tile()


@tree.pytree
class Bricks:
  """A convolution cut into steps; padding is zero.

  Attributes:
    activations: int32 [groups, steps, windows, lanes].
    weights: int32 [blocks, steps, filters, lanes].
    pixels: Windows that are none of the padding.
    channels: Input channels that are none of the padding.
    tile: What it was cut for.
  """

  activations: jax.Array
  weights: jax.Array
  pixels: int = tree.static()
  channels: int = tree.static()
  tile: Tile = tree.static()

  def options(self, tile: Tile | None) -> Tile:
    """`tile`, or the own one if None.

    Raises:
      ValueError: If what the bricks were cut and checked for is another in `tile`.
    """
    if tile is None:
      return self.tile
    for name in _CUT_FOR:
      own, other = getattr(self.tile, name), getattr(tile, name)
      if own != other:
        raise ValueError(
          f"bricks of Tile.{name}={own} do not suit {name}={other}: cut them again "
          "with bricks(..., tile=tile)"
        )
    return tile


_CUT_FOR = ("lanes", "windows", "filters", "activation_bits", "weight_bits", "signed")


def bricks(
  activations: jax.Array,
  weights: jax.Array,
  *,
  stride: int = 1,
  padding: int = 0,
  tile: Tile = DNNSIM,
) -> Bricks:
  """Cuts a convolution into steps.

  Args:
    activations: [channels, height, width] integers below 2^p_a, none negative unless
      `tile.signed`: then their magnitudes are.
    weights: [filters, channels, kernel height, kernel width] integers, two's
      complement of p_w bits: -2^(p_w - 1) .. 2^(p_w - 1) - 1.
    stride: Of the window, both ways.
    padding: Zeros around the image.
    tile: Sizes of a step.

  Raises:
    ValueError: If shapes or values do not fit, a size or the stride is 0, or the
      padding negative.
  """
  _check_shapes(activations.shape, weights.shape, stride, padding)
  _check_range(activations, weights, tile)
  x = np.asarray(activations, np.int32)
  w = np.asarray(weights, np.int32)
  x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
  kernel = w.shape[2:]
  seen = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))
  seen = seen[:, ::stride, ::stride]  # [channels, out height, out width, *kernel]
  channels, high, wide = seen.shape[:3]
  # Windows row by row, steps by kernel position and brick.
  seen = seen.transpose(1, 2, 3, 4, 0).reshape(high * wide, -1, channels)
  seen = _cut(_cut(seen, 0, tile.windows), 3, tile.lanes)
  seen = seen.transpose(0, 2, 3, 1, 4)
  held = _cut(_cut(w.transpose(0, 2, 3, 1), 0, tile.filters), 4, tile.lanes)
  held = held.transpose(0, 2, 3, 4, 1, 5)
  steps = seen.shape[1] * seen.shape[2]
  return Bricks(
    jnp.asarray(seen.reshape(seen.shape[0], steps, *seen.shape[3:])),
    jnp.asarray(held.reshape(held.shape[0], steps, *held.shape[4:])),
    high * wide,
    channels,
    tile,
  )


def _cut(x: np.ndarray, axis: int, size: int) -> np.ndarray:
  """`axis` as two, of which the second has `size`; zeros fill the last."""
  count = -(-x.shape[axis] // size)
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, count * size - x.shape[axis])
  padded = np.pad(x, widths)
  return padded.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])


def _check_shapes(
  image: tuple[int, ...], weights: tuple[int, ...], stride: int, padding: int
) -> None:
  if len(image) != 3 or len(weights) != 4:
    raise ValueError(
      f"activations {image} and weights {weights}: [channels, height, width] and "
      "[filters, channels, height, width] are needed"
    )
  if 0 in image or 0 in weights:
    raise ValueError(f"activations {image} or weights {weights} are empty")
  if image[0] != weights[1]:
    raise ValueError(f"{image[0]} channels of activations, {weights[1]} of weights")
  if stride < 1 or padding < 0:
    raise ValueError(f"stride={stride} must be 1 or more, padding={padding} 0 or more")
  padded = tuple(size + 2 * padding for size in image[1:])
  if any(size < k for size, k in zip(padded, weights[2:])):
    raise ValueError(f"a kernel of {weights[2:]} is larger than the image {padded}")


def _check_range(activations: Any, weights: Any, tile: Tile) -> None:
  for name, x in (("activations", activations), ("weights", weights)):
    if not np.issubdtype(np.asarray(x).dtype, np.integer):
      raise ValueError(f"{name} are {np.asarray(x).dtype}: integers are needed")
  top = (1 << tile.activation_bits) - 1
  low = -top if tile.signed else 0
  if np.min(activations) < low or np.max(activations) > top:
    way_out = "" if tile.signed else "; Tile(signed=True) takes negative ones"
    raise ValueError(
      f"activations must be {low} .. {top}, p_a={tile.activation_bits} bits{way_out}"
    )
  reach = 1 << (tile.weight_bits - 1)
  if np.min(weights) < -reach or np.max(weights) >= reach:
    raise ValueError(
      f"weights must be {-reach} .. {reach - 1}: two's complement of p_w="
      f"{tile.weight_bits} bits"
    )
