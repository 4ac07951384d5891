"""Energy of a simulated product from what its registers did, cycle by cycle.

`cost` prices an active cycle as if operands were random; a trace knows which bits
flipped, so sparse, small or repeated operands cost what they switch. Per toggle see
`Mac.toggle_j`, which random operands in an output-stationary array were made to fit
(they flip 18 bits a product there, 16 are assumed; the stationary arrays flip twice as
many, as their 32-bit sums pass two registers a cell). Every cell is clocked in every
cycle; operands cross the edges of the array from their buffers, in the widths of the
accelerator. Filling the buffers, DRAM and the vector unit are not in a trace.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxcodesign.hardware.array_scan import Trace
from jaxcodesign.hardware.spec import Accelerator


def energy_j(trace: Trace, accelerator: Accelerator) -> dict[str, Any]:
  """Joules of a trace by cause: "toggles", "idle", "sram" and "leakage".

  Args:
    trace: Of `systolic.simulate` on rows x cols cells of the accelerator, its toggles
      counted.
    accelerator: Leaves may be traced; derivatives exist.

  Raises:
    ValueError: If the trace has no toggles, or a buffer's capacity is not tabulated.
  """
  if trace.toggles is None:
    raise ValueError("the trace counted no toggles: simulate with toggles=True")
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
  return {
    "toggles": flips * a.mac.toggle_j(),
    "idle": trace.cycles * a.rows * a.cols * a.mac.idle_j,
    "sram": jnp.sum(jnp.stack([total(n) * width * each for n, width, each in moves])),
    "leakage": trace.cycles / a.clock_hz * a.leakage_w(),
  }
