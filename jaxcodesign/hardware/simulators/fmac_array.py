"""The FAST array, cycle by cycle: three modes in which no operand is transposed.

A cell is an fMAC: it multiplies two groups of g mantissas, 2-bit chunk by 2-bit chunk,
one pass a cycle, as `fmac`. Of the products of a layer with R x C cells, here turned so
that rows carry the contraction as everywhere in this library (the paper's picture has
A entering at the bottom and O leaving right; 256 rows of outputs and 64 columns are
recalled):

  forward          cell (r, c) keeps W[c, group r of k]. A enters from the left, a
                   chunk of a group a cycle, and moves right; sums move down.
  input gradient   the same values stay. dO enters from above and moves down, a chunk of
                   one value a cycle; g neighbours of a row hold a group of n, and each
                   has g values of k: their sums move right, as integers within a group,
                   as floats from one to the next.
  weight gradient  dO and A stream in groups of m; outputs stay, then drain.

W is loaded once for both modes: a block of g neighbouring cells of a row holds g x g
values, whole groups along k and along n alike. Each mode rounds W along its own
contraction. That the converter stands behind the registers, and that integers are
passed on within a block, are assumptions, as are these: folds and loads do not overlap,
a sum takes two cycles a cell (an output register, as in "rtl" accounting, see
`folding`), operands one. A fold takes, with p passes,

  forward          R + m p + 2 R + C - 2          cut along k by g R, along n by C
  input gradient   R + m p + 2 C + R - 2          likewise; R less after the forward one
  weight gradient  ceil(m / g) p + 2 R + C - 1    along n by R, along k by C

Laws (tests): values == `fmac.simulate` of the groups bit for bit, so the same sums in
the same order; cycles == `cycles(...)`; W is read n k times for both modes together.

Reference: Zhang, McDanel, Kung. "FAST: DNN Training Under Variable Precision Block
Floating Point with Stochastic Rounding", HPCA 2022.
"""

from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
from jax import lax
import jax.numpy as jnp

from jaxcodesign.hardware.machines.spec import Accounting
from jaxcodesign.hardware.simulators import fmac_scan
from jaxcodesign.hardware.simulators.array_scan import pad
from jaxcodesign.hardware.simulators.fmac_scan import HOP, Bits, groups

__all__ = [
  "MODES", "Bits", "Mode", "StationaryTrace", "cycles", "groups", "output_stationary",
  "overhead", "weight_stationary",
]  # fmt: skip

Mode = Literal["forward", "input_gradient", "weight_gradient"]
MODES: tuple[Mode, ...] = get_args(Mode)


def overhead(
  mode: Mode,
  rows: Any,
  cols: Any,
  accounting: Accounting = "rtl",
  *,
  loaded: bool = False,
) -> Any:
  """Cycles of a fold beyond those of its stream.

  Args:
    mode: Of the product.
    rows: R, which may be traced.
    cols: C.
    accounting: "scalesim" has sums of one cycle a cell, and no drain.
    loaded: The weight is there, from the mode before.
  """
  hop = HOP if accounting == "rtl" else 1
  if mode == "weight_gradient":
    return rows + cols - 2 + (rows + 1 if accounting == "rtl" else 0)
  long, wide = (rows, cols) if mode == "forward" else (cols, rows)
  return (0 if loaded else rows) + hop * long + wide - 2


def cycles(
  mode: Mode,
  m: int,
  k: int,
  n: int,
  *,
  passes: int,
  rows: int,
  cols: int,
  group: int = 16,
  loaded: bool = False,
) -> int:
  """Cycles of a product of the layer [m, k] x [n, k], in closed form.

  Args:
    mode: Which of its three products.
    m: Rows of A and dO.
    k: Inputs.
    n: Outputs.
    passes: Of a pair of groups.
    rows: R.
    cols: C.
    group: g.
    loaded: Each fold finds its weight, from the mode before.

  Raises:
    ValueError: If a size is below 1 or the mode does not exist.
  """
  sizes = {"m": m, "k": k, "n": n, "passes": passes, "rows": rows, "cols": cols}
  for name, size in (*sizes.items(), ("group", group)):
    if size < 1:
      raise ValueError(f"{name}={size}: a size is at least 1")
  if mode not in MODES:
    raise ValueError(f"mode={mode!r} is none of {', '.join(MODES)}")
  up = lambda x, size: -(-x // size)
  more = overhead(mode, rows, cols, loaded=loaded)
  if mode == "weight_gradient":
    return up(n, rows) * up(k, cols) * (up(m, group) * passes + more)
  return up(k, group * rows) * up(n, cols) * (m * passes + more)


class StationaryTrace(NamedTuple):
  """What the array did while the weight stayed; arrays are int32 [folds, cycles].

  Attributes:
    weight_reads: Values of W that enter, in the cycles of a load.
    forward: Cells that add a product other than zero, while A streams.
    input_gradient: Likewise, while dO streams.
  """

  weight_reads: jax.Array
  forward: jax.Array
  input_gradient: jax.Array

  @property
  def cycles(self) -> int:
    """Cycles of all folds, both modes."""
    return self.weight_reads.size + self.forward.size + self.input_gradient.size


@partial(jax.jit, static_argnames=("bits", "rows", "cols", "group"))
def weight_stationary(
  a: jax.Array,
  w: jax.Array,
  g: jax.Array,
  *,
  bits: Bits,
  rows: int,
  cols: int,
  group: int = 16,
) -> tuple[jax.Array, jax.Array, StationaryTrace]:
  """The forward product and the input gradient of a layer, W being loaded once.

  Every fold runs both modes before the next one is loaded: what training does between
  the two is left out, and would load W a second time, as it lies.

  Args:
    a: float32 [m, k] activations.
    w: float32 [n, k] weight.
    g: float32 [m, n] gradient by the output.
    bits: Of each of them, static.
    rows: R, static.
    cols: C, a multiple of `group`, static.
    group: Values that share an exponent.

  Returns:
    The output [m, n], the input gradient [m, k], both float32, and the trace.

  Raises:
    ValueError: If shapes do not fit, or `group` does not divide `cols`.
  """
  (m, k), n = a.shape, w.shape[0]
  _check_layer(a, w, g, cols, group)
  deep = rows * group
  tall, wide = -(-k // deep), -(-n // cols)
  blocks = pad(pad(w, 0, wide * cols), 1, tall * deep)
  blocks = blocks.reshape(wide, cols, tall, rows, group).transpose(0, 2, 3, 1, 4)
  ins = pad(a, 1, tall * deep).reshape(m, tall, deep).swapaxes(0, 1)
  back = pad(g, 1, wide * cols).reshape(m, wide, cols).swapaxes(0, 1)

  def fold(sums: Any, index: jax.Array) -> Any:
    out, dx = sums
    j, i = index // tall, index % tall
    used = jnp.minimum(deep, k - i * deep), jnp.minimum(cols, n - j * cols)
    held, reads = fmac_scan.load(blocks[j, i], used)
    made, busy = fmac_scan.forward(
      groups(ins[i], bits.activation, group), held, out[j], bits
    )
    more, busy_back = fmac_scan.backward(
      groups(back[j], bits.gradient, group), held, dx[i], bits
    )
    trace = StationaryTrace(reads, busy, busy_back)
    return (out.at[j].set(made), dx.at[i].set(more)), trace

  start = jnp.zeros((wide, m, cols)), jnp.zeros((tall, m, deep))
  (out, dx), trace = lax.scan(fold, start, jnp.arange(tall * wide))
  flat = lambda x, size: x.swapaxes(0, 1).reshape(m, -1)[:, :size]
  return flat(out, n), flat(dx, k), trace


def _check_layer(
  a: jax.Array, w: jax.Array, g: jax.Array, cols: int, group: int
) -> None:
  (m, k), n = a.shape, w.shape[0]
  if w.shape != (n, k) or g.shape != (m, n):
    raise ValueError(
      f"a {a.shape}, w {w.shape} and g {g.shape}: [m, k], [n, k], [m, n] are needed"
    )
  if cols % group:
    raise ValueError(f"cols={cols} hold no whole groups of group={group}")


@partial(jax.jit, static_argnames=("bits", "rows", "cols", "group"))
def output_stationary(
  a: jax.Array, g: jax.Array, *, bits: Bits, rows: int, cols: int, group: int = 16
) -> tuple[jax.Array, jax.Array]:
  """The weight gradient of a layer: both operands stream in groups along m.

  Args:
    a: float32 [m, k] activations.
    g: float32 [m, n] gradient by the output.
    bits: Of each of them, static; that of the weight is not used.
    rows: R, static.
    cols: C, static.
    group: Values that share an exponent.

  Returns:
    The weight gradient float32 [n, k], and int32 [folds, cycles]: cells that add a
    product other than zero.

  Raises:
    ValueError: If shapes do not fit.
  """
  (m, k), n = a.shape, g.shape[1]
  if g.shape[0] != m:
    raise ValueError(f"a {a.shape} and g {g.shape}: [m, k] and [m, n] are needed")
  tall, wide = -(-n // rows), -(-k // cols)
  left = groups(pad(g.T, 0, tall * rows), bits.gradient, group)
  right = groups(pad(a.T, 0, wide * cols), bits.activation, group)
  left = jax.tree.map(lambda x: x.reshape(tall, rows, *x.shape[1:]), left)
  right = jax.tree.map(lambda x: x.reshape(wide, cols, *x.shape[1:]), right)
  plan = fmac_scan.passes(bits.gradient, bits.activation)

  def fold(index: jax.Array) -> Any:
    i, j = index // wide, index % wide
    take = lambda x, at: jax.tree.map(lambda y: y[at], x)
    return fmac_scan.streamed(take(left, i), take(right, j), plan)

  out, busy = lax.map(fold, jnp.arange(tall * wide))
  out = out.reshape(tall, wide, rows, cols).swapaxes(1, 2)
  return out.reshape(tall * rows, wide * cols)[:n, :k], busy
