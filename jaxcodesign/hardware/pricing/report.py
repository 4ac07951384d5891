"""What a workload costs, product by product and summed."""

import jax
import numpy as np

from jaxcodesign import tree
from jaxcodesign.hardware.pricing import view


@tree.pytree
class CostReport:
  """What a workload costs. Totals are sums over products, the vector unit and I/O.

  The rows of two workloads add up to those of both together, but for weights that fit
  the weight buffer only apart. `print(report.table())`, or leave a report at the end of
  a notebook cell.

  Attributes:
    names: Products, in order.
    product_time_s: [L] seconds.
    product_energy_j: [L] joules, leakage included.
    product_cycles: [L] cycles, stalls on DRAM included.
    product_utilization: [L] cell cycles that multiplied over those that passed.
    product_sram_bytes: [L] bytes into and out of the three buffers.
    product_dram_bytes: [L] bytes to and from DRAM.
    product_parts_j: [L] joules by cause: "mac", "sram", "dram", "leakage".
    other_time_s: Seconds of the vector unit and of the program's inputs and outputs.
    other_energy_j: Joules of these.
    parts_j: Energy by cause: "mac", "sram", "dram", "leakage", "vector".
    idle_j: Of parts_j["mac"], what clocked cells took while they did not multiply.
    time_s: Total seconds.
    energy_j: Total joules.
    cycles: Total cycles.
    utilization: Of the array while it runs products.
    traffic_bytes: Total bytes to and from DRAM.
  """

  names: tuple[str, ...] = tree.static()
  product_time_s: jax.Array
  product_energy_j: jax.Array
  product_cycles: jax.Array
  product_utilization: jax.Array
  product_sram_bytes: jax.Array
  product_dram_bytes: jax.Array
  product_parts_j: dict[str, jax.Array]
  other_time_s: jax.Array
  other_energy_j: jax.Array
  parts_j: dict[str, jax.Array]
  idle_j: jax.Array
  time_s: jax.Array
  energy_j: jax.Array
  cycles: jax.Array
  utilization: jax.Array
  traffic_bytes: jax.Array

  @property
  def edp_js(self) -> jax.Array:
    """Energy-delay product in joule seconds."""
    return self.energy_j * self.time_s

  def table(self) -> str:
    """One product a line, then the totals; for reports of one design.

    Raises:
      ValueError: If the report is traced or of many designs.
    """
    return view.text(*self._shown())

  def _repr_html_(self) -> str:
    return view.html(*self._shown())

  def _shown(self) -> tuple[list[view.Row], view.Sums]:
    leaves = jax.tree.leaves(self)
    if not all(tree.is_concrete(x) for x in leaves) or np.ndim(self.time_s):
      raise ValueError(
        "this report is traced or of many designs: index it first, "
        "jax.tree.map(lambda x: x[i], report)"
      )
    rows = [
      view.Row(
        name,
        float(self.product_time_s[i]),
        float(self.product_energy_j[i]),
        float(self.product_utilization[i]),
        float(self.product_sram_bytes[i]),
        float(self.product_dram_bytes[i]),
        {part: float(x[i]) for part, x in self.product_parts_j.items()},
      )
      for i, name in enumerate(self.names)
    ]
    sums = view.Sums(
      float(self.time_s),
      float(self.energy_j),
      float(self.other_time_s),
      float(self.other_energy_j),
      float(self.idle_j),
      float(self.utilization),
      float(self.traffic_bytes),
      {part: float(x) for part, x in self.parts_j.items()},
    )
    return rows, sums
