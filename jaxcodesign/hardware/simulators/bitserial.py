"""The bit-serial systolic array of the column-combining paper, gate by gate.

A cell holds a weight, 8 bits of magnitude and a sign, and L/8 interleaved MACs that
share it. A pixel's unsigned 8-bit value enters lowest bit first and goes to MAC t mod
L/8; eight cycles later the next pixel enters. In cycle t = 0 .. L-1 of a product a MAC,
with state p (8 bits) and carries cy, cyd, cleared at t = 0, does

  S = (x_t ? W : 0) + p        eight full adders
  b = S & 1,  p = S >> 1       the product, lowest bit first
  d = b, or for negative weights ~b (+ 1 at t = 0, carry cyd)
  out = d ^ a_t ^ cy           registered, read by the next cell a cycle later
  cy = majority(d, a_t, cy)

so sums are two's complement of L bits, lowest bit first, and wrap modulo 2^L. Data
moves through the rows (one output channel each) a cycle a hop, sums and control through
the columns (one combined input channel each). An MX cell selects one of alpha bits.

Every state bit of 8, 16 or 32 rows is a bit of one machine word, and the scan evaluates
the gates on words: one step is one clock cycle of every MAC.

Laws (tests): a tile of N x M cells and T pixels takes 8 (T - 1) + L + M + N - 2 cycles;
the product is exact modulo 2^L.

Reference: Kung, McDanel, Zhang. "Packing Sparse Convolutional Neural Networks for
Efficient Systolic Array Implementations: Column Combining Under Joint Optimization",
ASPLOS 2019, figure 7, and its published Verilog.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jaxcodesign.hardware.simulators.array_scan import pad
from jaxcodesign.hardware.simulators.bit_words import (
  DATA_BITS,
  control,
  data_bits,
  packed,
  sum_bits,
  sums_of,
)

# Folds run side by side up to so many words of each state bit: enough to outweigh a
# step's overhead, few enough for all of the state to stay in the nearest cache.
_SIDE_BY_SIDE_WORDS = 256

ACCUMULATOR_BITS = (16, 32)


class BitTrace(NamedTuple):
  """What the array did; arrays are int32 [folds, cycles of a fold].

  Attributes:
    load_cycles: Cycles to load the weights of a fold, before its other cycles.
    busy: MACs that take in a data bit; L/8 MACs of a cell take turns.
    toggles: State bits of MACs that flip.
  """

  load_cycles: int
  busy: jax.Array
  toggles: jax.Array | None

  @property
  def cycles(self) -> int:
    """Cycles of all folds, loading included."""
    folds, steps = self.busy.shape
    return folds * (self.load_cycles + steps)


def tile_cycles(pixels: int, rows: int, cols: int, accumulator_bits: int = 32) -> int:
  """Cycles of one tile, from the first data bit in to the last result bit made.

  Interleaved MACs take a new pixel every 8 cycles; weight load comes on top.
  """
  return DATA_BITS * (pixels - 1) + accumulator_bits + cols + rows - 2


def cycles(
  pixels: int,
  channels: int,
  filters: int,
  rows: int,
  cols: int,
  accumulator_bits: int = 32,
  load_bits: int = 8,
) -> int:
  """Cycles of `simulate` in closed form: folds of tiles, each loaded first.

  Raises:
    ValueError: If a size is below 1, or a number of bits does not exist.
  """
  sizes = {"pixels": pixels, "channels": channels, "filters": filters}
  for name, size in (*sizes.items(), ("rows", rows), ("cols", cols)):
    if size < 1:
      raise ValueError(f"{name}={size}: a size is at least 1")
  _check_bits(accumulator_bits, load_bits)
  folds = -(-filters // rows) * -(-channels // cols)
  load = rows * -(-8 // load_bits)
  return folds * (load + tile_cycles(pixels, rows, cols, accumulator_bits))


@partial(
  jax.jit,
  static_argnames=("rows", "cols", "accumulator_bits", "load_bits", "toggles"),
)
def simulate(
  data: jax.Array,
  weights: jax.Array,
  channel: jax.Array | None = None,
  *,
  rows: int,
  cols: int,
  accumulator_bits: int = 32,
  load_bits: int = 8,
  toggles: bool = True,
) -> tuple[jax.Array, BitTrace]:
  """Runs data @ weights.T on an array of rows x cols bit-serial cells.

  Args:
    data: [pixels, channels] uint8, or [pixels, channels, alpha] for MX cells.
    weights: [filters, channels] integers in -255 .. 255, as sign and magnitude. Larger
      magnitudes lose their high bits, as in a register of 8.
    channel: [filters, channels] integers in [0, alpha): which input a weight of a
      combined column belongs to; needed with alpha. Outside: a zero weight.
    rows: Output channels at a time, static.
    cols: Input channels at a time; more are further folds that continue the sums.
    accumulator_bits: L, 16 or 32.
    load_bits: Weight bits that enter a column in a cycle, 1 to 8.
    toggles: Count flipping state bits.

  Returns:
    int32 [pixels, filters], the product modulo 2^L as a signed number, and the trace.

  Raises:
    ValueError: If shapes, types or options do not fit.
  """
  _check(data, weights, channel, rows, cols, accumulator_bits, load_bits)
  (pixels, channels), filters = data.shape[:2], weights.shape[0]
  tall, wide = -(-filters // rows), -(-channels // cols)
  if data.ndim == 2:
    data, channel = data[:, :, None], jnp.zeros(weights.shape, jnp.int32)
  x = pad(data, 1, wide * cols).reshape(pixels, wide, cols, -1).transpose(1, 3, 2, 0)
  blocks = lambda w: _blocks(w, (tall, rows, wide, cols))
  assert channel is not None  # _check
  w, select = blocks(weights), blocks(channel)

  def filter_block(i: jax.Array) -> Any:
    def fold(sums: jax.Array, j: jax.Array) -> Any:
      size = (
        jnp.minimum(rows, filters - i * rows),
        jnp.minimum(cols, channels - j * cols),
      )
      return _tile(x[j], w[i, j], select[i, j], sums, size, accumulator_bits, toggles)

    return lax.scan(fold, jnp.zeros((pixels, rows), jnp.int32), jnp.arange(wide))

  words = cols * -(-rows // 32)
  together = min(tall, max(1, _SIDE_BY_SIDE_WORDS // words))
  batch = together if together > 1 else None
  product, (busy, flipped) = lax.map(filter_block, jnp.arange(tall), batch_size=batch)
  product = product.swapaxes(0, 1).reshape(pixels, tall * rows)[:, :filters]
  flat = lambda y: y.reshape(tall * wide, -1)
  flipped = None if flipped is None else flat(flipped)
  return product, BitTrace(rows * -(-8 // load_bits), flat(busy), flipped)


def _blocks(w: jax.Array, sizes: tuple[int, int, int, int]) -> jax.Array:
  """[tall, wide, rows, cols] blocks of a matrix, zeros beyond its edges."""
  tall, rows, wide, cols = sizes
  padded = pad(pad(w, 0, tall * rows), 1, wide * cols)
  return padded.reshape(sizes).swapaxes(1, 2)


@partial(jax.jit, static_argnames=("accumulator_bits", "first_bit"))
def requantize(
  sums: jax.Array, *, accumulator_bits: int = 32, first_bit: int = 11
) -> jax.Array:
  """The serial ReLU and requantization unit behind the array, bit by bit.

  It sees a sum lowest bit first and keeps 8 bits from `first_bit` (11 to 18 in the
  published Verilog); after the sign bit, L cycles later, a negative sum gives 0 and a
  larger one 255: clip(sums >> first_bit, 0, 255).

  Args:
    sums: int32 [...].
    accumulator_bits: L, 16 or 32.
    first_bit: Lowest bit that is kept, at most L - 9.

  Returns:
    uint8 [...].

  Raises:
    ValueError: If the window does not fit below the sign.
  """
  if accumulator_bits not in ACCUMULATOR_BITS:
    raise ValueError(f"accumulator_bits={accumulator_bits} is none of 16, 32")
  if not 0 <= first_bit <= accumulator_bits - 9:
    raise ValueError(f"first_bit={first_bit} is not in 0 .. {accumulator_bits - 9}")
  end = first_bit + 8

  def cycle(state: Any, t: jax.Array) -> Any:
    window, over, _ = state
    bit = (sums >> t & 1).astype(jnp.uint8)
    inside = (t >= first_bit) & (t < end)
    window = jnp.where(inside, window >> 1 | bit << 7, window)
    return (window, jnp.where((t >= end), over | bit, over), bit), None

  zero = jnp.zeros(sums.shape, jnp.uint8)
  state, _ = lax.scan(cycle, (zero, zero, zero), jnp.arange(accumulator_bits))
  window, over, sign = state
  return jnp.where(sign == 1, 0, jnp.where(over == 1, 255, window)).astype(jnp.uint8)


def _tile(
  x: jax.Array,
  weight: jax.Array,
  channel: jax.Array,
  sums: jax.Array,
  size: tuple[jax.Array, jax.Array],
  length: int,
  toggles: bool,
) -> Any:
  """x [alpha, cols, pixels], weight [rows, cols]; continues sums [pixels, rows]."""
  (alpha, cols, pixels), rows = x.shape, weight.shape[0]
  steps, macs = tile_cycles(pixels, rows, cols, length), length // DATA_BITS
  magnitude, negative = jnp.abs(weight), packed((weight < 0).T).T
  planes = [packed((magnitude >> j & 1).T.astype(bool)).T for j in range(8)]
  selects = [packed((channel == i).T).T for i in range(alpha)]
  turn, first = control(steps, rows, pixels, macs)
  feed = (data_bits(x, steps), sum_bits(sums, steps, length), turn, first)

  def cycle(state: Any, edge: Any) -> Any:
    bits, turn, first, macs_state = state
    bits = [_next_row(edge[0][i], bits[i]) for i in range(alpha)]
    turn, first = _next_col(edge[2], turn), _next_col(edge[3], first)
    chosen = bits[0] if alpha == 1 else _any(b & s for b, s in zip(bits, selects))
    new = _mac(macs_state, chosen[None] & turn, planes, negative, first, edge[1])
    flipped = _flipped(macs_state, new) if toggles else None
    return (bits, turn, first, new), (new[-1][:, :, -1], flipped)

  word = negative.dtype
  cells = (macs, negative.shape[0], cols)
  zero = jnp.zeros(cells, word)
  state = ([zero[0]] * alpha, zero, zero, (*[zero] * 8, zero, zero, zero))
  _, (out, flipped) = lax.scan(cycle, state, feed)
  busy = _busy(steps, rows, cols, size, pixels)
  return sums_of(out, rows, cols, pixels, length), (busy, flipped)


def _mac(
  state: Any,
  x: jax.Array,
  weight: Any,
  negative: jax.Array,
  first: jax.Array,
  edge: Any,
) -> Any:
  """One cycle of all MACs: state bits, each [macs, words, cols]."""
  *p, cy, cyd, out = state
  going = ~first  # the clear pulse
  p, cy, cyd = [q & going for q in p], cy & going, cyd | first
  carry, total = None, []
  for plane, q in zip(weight, p):
    w = plane[None] & x
    half = w ^ q
    total.append(half if carry is None else half ^ carry)
    carry = w & q if carry is None else (w & q) | (half & carry)
  b, *p = *total, carry
  signed = b ^ (negative[None] & ~cyd)
  cyd = ~b & cyd
  a = _next_col(edge, out)
  differ = signed ^ a
  return (*p, (signed & a) | (differ & cy), cyd, differ ^ cy)


def _next_col(edge: jax.Array, x: jax.Array) -> jax.Array:
  """One hop along columns: [..., words, cols] with [..., words] entering."""
  return jnp.concatenate([edge[..., None], x[..., :-1]], axis=-1)


def _next_row(edge: jax.Array, x: jax.Array) -> jax.Array:
  """One hop along rows, the bits of words: [words, cols] with a bit [cols] entering."""
  width = x.dtype.itemsize * 8
  top = jnp.concatenate([edge[None].astype(x.dtype), x[:-1] >> (width - 1)], axis=0)
  return x << 1 | top


def _any(masks: Any) -> jax.Array:
  masks = list(masks)
  found = masks[0]
  for mask in masks[1:]:
    found = found | mask
  return found


def _flipped(before: Any, after: Any) -> jax.Array:
  changed = jnp.stack([lax.population_count(x ^ y) for x, y in zip(before, after)])
  return jnp.sum(changed.astype(jnp.int32))


def _busy(
  steps: int, rows: int, cols: int, size: tuple[jax.Array, jax.Array], pixels: int
) -> jax.Array:
  """Cells that take in a data bit of a real weight, [steps]."""
  row = jnp.arange(rows)[None]
  late = jnp.arange(steps)[:, None] - row
  first = jnp.maximum(0, late - DATA_BITS * pixels + 1)
  inside = jnp.maximum(0, jnp.minimum(size[1] - 1, late) - first + 1)
  return jnp.sum(jnp.where(row < size[0], inside, 0), axis=1, dtype=jnp.int32)


def _check(
  data: jax.Array,
  weights: jax.Array,
  channel: jax.Array | None,
  rows: int,
  cols: int,
  accumulator_bits: int,
  load_bits: int,
) -> None:
  if data.dtype != jnp.uint8 or not jnp.issubdtype(weights.dtype, jnp.signedinteger):
    raise ValueError(
      f"data {data.dtype} and weights {weights.dtype}: the array takes unsigned 8-bit "
      "data (after ReLU) and signed integer weights"
    )
  if data.ndim not in (2, 3) or weights.ndim != 2 or data.shape[1] != weights.shape[1]:
    raise ValueError(
      f"data {data.shape} and weights {weights.shape}: [pixels, channels] (, alpha) "
      "and [filters, channels] are needed"
    )
  if 0 in (*data.shape, *weights.shape):
    raise ValueError(f"data {data.shape} and weights {weights.shape}: a size is zero")
  if (channel is None) == (data.ndim == 3) or (
    channel is not None and channel.shape != weights.shape
  ):
    raise ValueError(
      "data [pixels, channels, alpha] and channel [filters, channels]: both or neither"
    )
  if rows < 1 or cols < 1:
    raise ValueError(f"an array of {rows} x {cols} cells: at least 1 x 1 is needed")
  _check_bits(accumulator_bits, load_bits)


def _check_bits(accumulator_bits: int, load_bits: int) -> None:
  if accumulator_bits not in ACCUMULATOR_BITS:
    raise ValueError(f"accumulator_bits={accumulator_bits} is none of 16, 32")
  if not 1 <= load_bits <= 8:
    raise ValueError(f"load_bits={load_bits}: 1 to 8 bits of a weight enter in a cycle")
