"""A systolic array, cycle by cycle: operands move from cell to cell through registers.

One step of the scan is one clock cycle of all cells. Operands enter skewed at the
edges, pass one cell a cycle, and are multiplied where they meet:

  os   left operands move right, right operands move down, sums stay, then drain down;
  ws   right operands are loaded from above (R cycles) and stay, left operands move
       right, sums move down; a product longer than R rows continues the sums that come
       back from the result buffer;
  is   ws with the two operands exchanged.

A product larger than the array runs fold by fold, the registers cleared before each.
`folding` has the cycles of a fold in both accountings; the scans here take exactly that
many steps, and whether those suffice is seen in the product. Integers are summed in
int32, which wraps modulo 2^32 as a register does: int8 operands cannot reach that below
k = 131,072. Floats are summed in float32 or wider, in the order of k within a fold.

Laws (tests): product == a @ b.T exactly in integers; trace.cycles == cycles(...); busy
cells summed over a trace are m k n.
"""

from functools import partial
import operator
from typing import get_args

import jax
import jax.numpy as jnp

from jaxcodesign.hardware.machines.spec import Accounting, Dataflow
from jaxcodesign.hardware.simulators.array_scan import Trace, whole_bytes
from jaxcodesign.hardware.simulators.folding import along, fill
from jaxcodesign.hardware.simulators.systolic_moving import moving
from jaxcodesign.hardware.simulators.systolic_stationary import stationary


def cycles(
  m: int,
  k: int,
  n: int,
  rows: int,
  cols: int,
  dataflow: Dataflow,
  accounting: Accounting = "rtl",
) -> int:
  """Cycles of `simulate` in closed form, an exact integer.

  Raises:
    ValueError: If a size is below 1, or dataflow or accounting do not exist.
  """
  _check_choices(dataflow, accounting)
  sizes = {"m": m, "k": k, "n": n, "rows": rows, "cols": cols}
  for name, size in sizes.items():
    if not hasattr(size, "__index__") or size < 1:
      raise ValueError(f"{name}={size}: a size is an integer of at least 1")
  # Python's integers: numpy's would wrap.
  m, k, n, rows, cols = map(operator.index, sizes.values())
  high, wide, time = along(dataflow, m, k, n)
  folds = -(-high // rows) * -(-wide // cols)
  return folds * (time + fill(dataflow, accounting, rows, cols))


@partial(jax.jit, static_argnames=("rows", "cols", "dataflow", "accounting", "toggles"))
def simulate(
  a: jax.Array,
  b: jax.Array,
  *,
  rows: int,
  cols: int,
  dataflow: Dataflow,
  accounting: Accounting = "rtl",
  toggles: bool = True,
) -> tuple[jax.Array, Trace]:
  """Runs a @ b.T on an array of rows x cols cells.

  Args:
    a: [m, k] left operand (activations), integers of up to 32 bits or floats. Integers
      of less than 8 bits lie in registers of 8.
    b: [n, k] right operand (weights), integer or float as `a`.
    rows: Cells a column, static.
    cols: Cells a row, static.
    dataflow: What stays in the cells: "os", "ws" or "is".
    accounting: "rtl" simulates drain and output registers, "scalesim" leaves them out.
    toggles: Count the bits that flip in registers, and follow a valid bit through every
      cell instead of deriving busy cells from the wavefront; 3 to 8 times slower.

  Returns:
    The product [m, n], int32 or the floating type of the sums, and its `Trace`.
    vmap batches operands; sharded batches stay sharded.

  Raises:
    ValueError: If shapes or kinds of operands do not fit, a size is zero, or an option
      does not exist.
  """
  _check_operands(a, b, rows, cols)
  _check_choices(dataflow, accounting)
  a, b = whole_bytes(a), whole_bytes(b)
  if dataflow == "os":
    return moving(a[None], b, None, rows, cols, accounting, toggles)
  if dataflow == "ws":
    return stationary(a[None], b, None, rows, cols, accounting, toggles)
  product, trace = stationary(b[None], a, None, rows, cols, accounting, toggles)
  return product.T, trace._replace(
    left_reads=trace.right_reads,
    right_reads=trace.left_reads,
    toggles=trace.toggles and trace.toggles.exchanged(),
  )


@partial(jax.jit, static_argnames=("rows", "cols", "dataflow", "accounting", "toggles"))
def simulate_packed(
  a: jax.Array,
  values: jax.Array,
  channel: jax.Array,
  *,
  rows: int,
  cols: int,
  dataflow: Dataflow = "ws",
  accounting: Accounting = "rtl",
  toggles: bool = True,
) -> tuple[jax.Array, Trace]:
  """Runs a column-combined product on an array of MX cells.

  A combined column g stands for up to alpha columns of the sparse weight matrix. A cell
  sees all alpha inputs and multiplies the one that its channel index selects (column
  combining, Kung, McDanel, Zhang, ASPLOS 2019). In ws, the paper's, index and weight
  stay, the array is smaller by alpha, and a fold takes as long as that of an unpacked
  one. In os the index moves with its weight, and a fold is shorter by alpha.

  Args:
    a: [m, g, alpha] left operand, the inputs of each combined column.
    values: [n, g] packed weights, integer or float as `a`.
    channel: [n, g] integers in [0, alpha): which input a weight belongs to. A cell
      whose channel is outside multiplies by zero.
    rows: Cells a column, static.
    cols: Cells a row, static.
    dataflow: "ws" or "os".
    accounting: As for `simulate`.
    toggles: As for `simulate`; flips of the index are not counted.

  Returns:
    The product [m, n], sum over g of values[n, g] * a[m, g, channel[n, g]], and its
    `Trace`; left_reads counts all alpha inputs.

  Raises:
    ValueError: As `simulate`, if `channel` is no integer array like `values`, or the
      dataflow is "is": inputs that stay would have to be held alpha at a time.
  """
  if a.ndim != 3 or a.shape[2] < 1:
    raise ValueError(f"packed inputs have shape {a.shape}: [m, g, alpha] is needed")
  _check_operands(a[:, :, 0], values, rows, cols)
  if channel.shape != values.shape or not jnp.issubdtype(channel.dtype, jnp.integer):
    raise ValueError(
      f"channel is {channel.dtype}{list(channel.shape)}: an integer for each of the "
      f"values {list(values.shape)} is needed"
    )
  _check_choices(dataflow, accounting)
  if dataflow == "is":
    raise ValueError(
      'dataflow="is": cells would hold all inputs of a group; use "ws" or "os"'
    )
  lanes = jnp.moveaxis(whole_bytes(a), 2, 0)
  values = whole_bytes(values)
  run = moving if dataflow == "os" else stationary
  return run(lanes, values, channel, rows, cols, accounting, toggles)


def _check_operands(a: jax.Array, b: jax.Array, rows: int, cols: int) -> None:
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
    raise ValueError(
      f"operands have shapes {a.shape} and {b.shape}: [m, k] and [n, k] are needed"
    )
  if 0 in (*a.shape, *b.shape):
    raise ValueError(f"operands {a.shape} and {b.shape} have a size of zero")
  if rows < 1 or cols < 1:
    raise ValueError(f"an array of {rows} x {cols} cells: at least 1 x 1 is needed")
  whole = [jnp.issubdtype(x.dtype, jnp.integer) for x in (a, b)]
  real = [jnp.issubdtype(x.dtype, jnp.floating) for x in (a, b)]
  if not (all(whole) or all(real)):
    raise ValueError(f"operands {a.dtype} and {b.dtype}: both integers or both floats")
  if all(whole) and max(a.dtype.itemsize, b.dtype.itemsize) > 4:
    raise ValueError(
      f"operands {a.dtype} and {b.dtype}: sums have 32 bits, operands at most as many"
    )


def _check_choices(dataflow: str, accounting: str) -> None:
  for what, value, kinds in (
    ("dataflow", dataflow, Dataflow),
    ("accounting", accounting, Accounting),
  ):
    if value not in get_args(kinds):
      raise ValueError(f"{what}={value!r} is none of {', '.join(get_args(kinds))}")
