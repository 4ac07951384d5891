"""What each layer of a network costs on an array: the rows of a table, CSV or JSON."""

import csv
import io
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcodesign.hardware import cost
from jaxcodesign.hardware.spec import Accelerator
from jaxcodesign.programs import precision
from jaxcodesign.programs.workload import Workload


class LayerCost(NamedTuple):
  """A product of a workload on a machine, all its executions together.

  Attributes:
    name: Of the product.
    runs: Products [m, k] x [n, k]: batch times count of its `Gemm`.
    m: Rows of the left operand.
    k: Contraction.
    n: Rows of the right operand.
    folds: Of the array.
    array_cycles: That the array takes when it never waits.
    cycles: With stalls on DRAM.
    utilization: Cell cycles that multiplied over those that passed, stalls included.
    sram_reads: Values that the array reads from its buffers, partial sums included.
    sram_writes: Results and partial sums that it writes.
    dram_bytes: To and from DRAM.
    time_s: Seconds.
    energy_j: Joules, leakage included.
  """

  name: str
  runs: int
  m: int
  k: int
  n: int
  folds: int
  array_cycles: float
  cycles: float
  utilization: float
  sram_reads: float
  sram_writes: float
  dram_bytes: float
  time_s: float
  energy_j: float


class Priced(NamedTuple):
  """A workload on one machine."""

  machine: Accelerator
  layers: tuple[LayerCost, ...]
  report: cost.CostReport

  @property
  def name(self) -> str:
    """The array as a user writes it: "os:32x32"."""
    return f"{self.machine.dataflow}:{self.machine.rows:g}x{self.machine.cols:g}"


def price(
  workload: Workload, machine: Accelerator, *, policy: precision.Policy = ()
) -> Priced:
  """Prices a workload in closed form, in float64: exact counts up to 2^53.

  Raises:
    ValueError: As `cost.evaluate`.
  """
  report = cost.exact(workload, machine, policy=policy)
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (machine, policy))
    array = cost.folded(workload, wide[0], policy=wide[1])
    array = jax.tree.map(np.asarray, array)
  edges = array.edges
  reads = edges.ifmap_reads + edges.weight_reads + edges.ofmap_reads
  layers = []
  for i, g in enumerate(workload.gemms):
    layers.append(
      LayerCost(
        g.name, g.batch * g.count, g.m, g.k, g.n, int(array.folds[i]),
        float(array.cycles[i]), float(report.product_cycles[i]),
        float(report.product_utilization[i]), float(reads[i]),
        float(edges.ofmap_writes[i]), float(report.product_dram_bytes[i]),
        float(report.product_time_s[i]), float(report.product_energy_j[i]),
      )
    )  # fmt: skip
  return Priced(machine, tuple(layers), report)


def record(priced: Priced) -> dict[str, Any]:
  """A priced workload as JSON can hold it: layers, what is no layer, totals."""
  m, r = priced.machine, priced.report
  return {
    "array": priced.name,
    "machine": m.name,
    "accounting": m.accounting,
    "layers": [layer._asdict() for layer in priced.layers],
    "other": {
      "cycles": float(r.cycles - np.sum(r.product_cycles)),
      "time_s": float(r.other_time_s),
      "energy_j": float(r.other_energy_j),
    },
    "total": {
      "cycles": float(r.cycles),
      "utilization": float(r.utilization),
      "dram_bytes": float(r.traffic_bytes),
      "time_s": float(r.time_s),
      "energy_j": float(r.energy_j),
    },
  }


def table(many: list[Priced]) -> str:
  """All layers on all machines as CSV: the array, then the fields of `LayerCost`."""
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  writer.writerow(("array", *LayerCost._fields))
  for priced in many:
    writer.writerows((priced.name, *layer) for layer in priced.layers)
  return file.getvalue()
