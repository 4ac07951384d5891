"""Energy of a simulated product from what its registers did, cycle by cycle.

`cost` prices an active cycle as if operands were random; a trace knows which bits
flipped, so sparse, small or repeated operands cost what they switch. A toggle costs
`Mac.toggle_j`, made so that random operands cost in either model the same. Of 128^3
int8 products on 16 x 16 cells they flip 16.6 bits each in os, where 16 are assumed, and
36.7 in ws and is, where 36 are; what os flips more are sums that drain, 8 R / K a
product. Every cell is clocked in every cycle; operands cross the edges of the array
from their buffers, in the widths of the accelerator. Filling the buffers, DRAM and the
vector unit are not in a trace.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.hardware.machines.spec import Accelerator
from jaxcodesign.hardware.simulators.array_scan import Trace
from jaxcodesign.hardware.simulators.folding import fill


def energy_j(trace: Trace, accelerator: Accelerator) -> dict[str, Any]:
  """Joules of a trace by cause: "toggles", "idle", "sram" and "leakage".

  Args:
    trace: Of `systolic.simulate` on the accelerator, its toggles counted. Leading axes,
      a vmapped batch, are summed over: one run after the other.
    accelerator: Leaves may be traced; derivatives exist.

  Raises:
    ValueError: If the trace has no toggles, a buffer's capacity is not tabulated, or
      trace and accelerator are known and a fold does not take as many cycles as there,
      or reads more values in one than its edges have lanes: rows, cols, dataflow or
      accounting are others. A trace does not tell R and C apart, only what a fold
      takes to fill and drain.
  """
  if trace.toggles is None:
    raise ValueError("the trace counted no toggles: simulate with toggles=True")
  _check_array(trace, accelerator)
  wide = jnp.result_type(float)
  a: Accelerator = jax.tree.map(lambda x: jnp.asarray(x, wide), accelerator)
  # Sums of int32 counts pass 2^31 in long runs.
  total = lambda counts: jnp.sum(counts.astype(wide))
  values = a.mac.accumulator_bytes
  moves = (
    (trace.left_reads, a.mac.activation_bits / 8, a.ifmap.read_energy_j()),
    (trace.right_reads, a.mac.weight_bits / 8, a.weight.read_energy_j()),
    (trace.result_writes, values, a.ofmap.write_energy_j()),
    (trace.result_reads, values, a.ofmap.read_energy_j()),
  )
  flips = sum(total(kind) for kind in trace.toggles)
  cycles = trace.busy.size  # `Trace.cycles` are those of one of a batch
  return {
    "toggles": flips * a.mac.toggle_j(a.dataflow, a.accounting),
    "idle": cycles * a.rows * a.cols * a.mac.idle_j,
    "sram": jnp.sum(jnp.stack([total(n) * width * each for n, width, each in moves])),
    "leakage": cycles / a.clock_hz * a.leakage_w(),
  }


def _check_array(trace: Trace, a: Accelerator) -> None:
  """Refuses a trace of which a fold shows that it was made on another array."""
  counts = trace.busy, trace.left_reads, trace.right_reads
  if not all(tree.is_concrete(x) for x in (*counts, a.rows, a.cols)):
    return
  # The first fold of each run, a full one if any is: [runs, cycles].
  folds = [np.asarray(x)[..., 0, :].reshape(-1, x.shape[-1]) for x in counts]
  busy, left, right = (x[0].sum(dtype=float) for x in folds)
  # Operands that move are read `time` times by each lane, those that stay once.
  time = {"os": left * right / busy, "ws": busy / right, "is": busy / left}[a.dataflow]
  rows, cols = float(np.asarray(a.rows)), float(np.asarray(a.cols))
  wanted = time + fill(a.dataflow, a.accounting, rows, cols)
  # What stays is loaded from the columns; packed operands enter several to a row.
  most = {"os": (rows, cols), "ws": (np.inf, cols), "is": (cols, np.inf)}[a.dataflow]
  fits = folds[1].max() <= most[0] and folds[2].max() <= most[1]
  if wanted != trace.busy.shape[-1] or not fits:
    raise ValueError(
      f"a fold of the trace takes {trace.busy.shape[-1]} cycles, {wanted:g} on "
      f"{a.name} with {rows:g} x {cols:g} cells, {a.dataflow}, {a.accounting}: price "
      "it on the array, dataflow and accounting that it was simulated with"
    )
