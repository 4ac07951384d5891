"""What each layer of a network costs on an array: the rows of a table, CSV or JSON."""

from collections.abc import Mapping, Sequence
import csv
import io
import math
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxcodesign.hardware.machines.spec import Accelerator
from jaxcodesign.hardware.mapping.stored import Stored
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.programs import precision
from jaxcodesign.programs.workload import Gemm, Workload

Kind = Literal[
  "stem", "convolution", "pointwise", "depthwise", "grouped", "dense", "activations"
]


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
    kind: As `kinds` says.
    macs: Multiplications of the dense product.
    columns: Of the contraction as the array executes it; k, but for packed weights.
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
  kind: Kind
  macs: int
  columns: float


class Priced(NamedTuple):
  """A workload on one machine."""

  machine: Accelerator
  layers: tuple[LayerCost, ...]
  report: cost.CostReport

  @property
  def name(self) -> str:
    """The array as a user writes it: "os:32x32"."""
    return f"{self.machine.dataflow}:{self.machine.rows:g}x{self.machine.cols:g}"


def kinds(workload: Workload) -> list[Kind]:
  """What each product is.

  "stem" is a first convolution with a window; "pointwise" one without; "depthwise" has
  a product for each channel, "grouped" for each group of channels; "dense" multiplies
  by a weight, "activations" by none.
  """
  return [_kind(g, first=not i) for i, g in enumerate(workload.gemms)]


def _kind(g: Gemm, *, first: bool) -> Kind:
  if g.kind == "dot":
    return "dense" if g.rhs else "activations"
  if g.batch > 1:
    return "depthwise" if g.k == g.window else "grouped"
  if g.window == 1:
    return "pointwise"
  return "stem" if first else "convolution"


def price(
  workload: Workload,
  machine: Accelerator,
  *,
  policy: precision.Policy = (),
  stored: Mapping[str, Stored] | None = None,
  repeats: float = 1.0,
) -> Priced:
  """Prices a workload in closed form, in float64: exact counts up to 2^53.

  Raises:
    ValueError: As `cost.evaluate`.
  """
  stored = dict(stored or {})
  report = cost.exact(workload, machine, policy=policy, stored=stored, repeats=repeats)
  with jax.enable_x64(True):
    wide = (machine, policy, stored)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), wide)
    array = cost.folded(workload, wide[0], policy=wide[1], stored=wide[2])
    array = jax.tree.map(np.asarray, array)
  edges = array.edges
  reads = edges.ifmap_reads + edges.weight_reads + edges.ofmap_reads
  layers = []
  for i, (g, kind) in enumerate(zip(workload.gemms, kinds(workload))):
    layers.append(
      LayerCost(
        g.name, g.batch * g.count, g.m, g.k, g.n, int(array.folds[i]),
        float(array.cycles[i]), float(report.product_cycles[i]),
        float(report.product_utilization[i]), float(reads[i]),
        float(edges.ofmap_writes[i]), float(report.product_dram_bytes[i]),
        float(report.product_time_s[i]), float(report.product_energy_j[i]),
        kind, g.macs, float(array.columns[i]),
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
    "kinds": [row._asdict() for row in by_kind(priced)],
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
  lines = [(priced.name, *layer) for priced in many for layer in priced.layers]
  return _csv(("array", *LayerCost._fields), lines)


class KindCost(NamedTuple):
  """All products of a kind on a machine.

  Attributes:
    kind: As `kinds` says.
    layers: So many products of the program.
    macs: Multiplications.
    macs_share: Of those of all products.
    cycles: With stalls on DRAM.
    cycles_share: Of those of all products.
    utilization: Cell cycles that multiplied over those that passed.
    energy_j: Joules, leakage included.
  """

  kind: Kind
  layers: int
  macs: int
  macs_share: float
  cycles: float
  cycles_share: float
  utilization: float
  energy_j: float


def by_kind(priced: Priced) -> tuple[KindCost, ...]:
  """Sums of a priced workload by kind of product, in the order they first occur."""
  whole = priced.layers
  macs, cycles = sum(x.macs for x in whole), sum(x.cycles for x in whole)
  rows = []
  order: list[Kind] = [x.kind for x in whole]
  for kind in sorted(set(order), key=order.index):
    some = [x for x in whole if x.kind == kind]
    mine, taken = sum(x.macs for x in some), sum(x.cycles for x in some)
    used = sum(x.utilization * x.cycles for x in some) / taken
    joules = sum(x.energy_j for x in some)
    rows.append(
      KindCost(kind, len(some), mine, mine / macs, taken, taken / cycles, used, joules)
    )
  return tuple(rows)


class Saved(NamedTuple):
  """What a network saves against another on the same array; below 1 it needs more.

  Attributes:
    array: As `Priced.name`.
    macs: Multiplications of the other over its own; likewise the next three.
    cycles: Totals, the vector unit and I/O included.
    time: Seconds.
    energy: Joules.
    utilization: Of its own.
    other_utilization: Of the other.
  """

  array: str
  macs: float
  cycles: float
  time: float
  energy: float
  utilization: float
  other_utilization: float


def saved(own: Priced, other: Priced) -> Saved:
  """Compares two networks on one machine.

  Raises:
    ValueError: If the machines differ.
  """
  if own.machine != other.machine:
    raise ValueError(f"{own.name} and {other.name}: price both on the same machine")
  macs = [sum(x.macs for x in priced.layers) for priced in (other, own)]
  mine, its = own.report, other.report
  return Saved(
    own.name,
    macs[0] / macs[1],
    float(its.cycles / mine.cycles),
    float(its.time_s / mine.time_s),
    float(its.energy_j / mine.energy_j),
    float(mine.utilization),
    float(its.utilization),
  )


class Compared(NamedTuple):
  """A product, or all of them, with its weights stored in one way.

  Attributes:
    title: Of the way.
    name: Of the product, or "total", the vector unit and I/O included.
    outputs: Rows of the weights, n; None in a total.
    columns: Of the contraction as it is executed; None in a total.
    tiles: Parts of the stored weights as large as the array, ceil(columns / R)
      ceil(outputs / C); one run of ws has as many folds.
    folds: Of the array, of all runs.
    cycles: Of all runs, with stalls.
    utilization: Cell cycles that multiplied by a weight that is not zero over those
      that passed.
    time_s: Seconds.
    energy_j: Joules.
    edp_js: Their product.
    area_mm2: Of the machine.
  """

  title: str
  name: str
  outputs: int | None
  columns: float | None
  tiles: int
  folds: int
  cycles: float
  utilization: float
  time_s: float
  energy_j: float
  edp_js: float
  area_mm2: float


Case = tuple[str, Accelerator, Mapping[str, Stored]]


def compare(
  workload: Workload,
  cases: Sequence[Case],
  *,
  policy: precision.Policy = (),
  repeats: float = 1.0,
) -> tuple[Compared, ...]:
  """One workload with its weights stored in several ways, side by side.

  Args:
    workload: From `trace`.
    cases: (title, machine, stored weights by `Gemm.rhs`) of each way; {} is dense.
    policy: As for `cost.evaluate`.
    repeats: As for `cost.evaluate`.

  Returns:
    The products of the first case, in order, then its total; then the next case.

  Raises:
    ValueError: As `cost.evaluate`, or if two cases have one title.
  """
  titles = [title for title, _, _ in cases]
  for title in titles:
    if titles.count(title) > 1:
      raise ValueError(f"title {title!r} is there twice: rows are told apart by it")
  found = []
  for title, machine, stored in cases:
    priced = price(workload, machine, policy=policy, stored=stored, repeats=repeats)
    area, r = float(np.asarray(machine.area_mm2())), priced.report
    tiles = [_tiles(x, machine) for x in priced.layers]
    for x, each in zip(priced.layers, tiles):
      edp = x.energy_j * x.time_s
      spent = x.cycles, x.utilization, x.time_s, x.energy_j, edp, area
      found.append(Compared(title, x.name, x.n, x.columns, each, x.folds, *spent))
    folds = sum(x.folds for x in priced.layers)
    spent = map(float, (r.cycles, r.utilization, r.time_s, r.energy_j, r.edp_js, area))
    found.append(Compared(title, "total", None, None, sum(tiles), folds, *spent))
  return tuple(found)


def _tiles(x: LayerCost, machine: Accelerator) -> int:
  rows, cols = (float(np.asarray(size)) for size in (machine.rows, machine.cols))
  return math.ceil(x.columns / rows) * math.ceil(x.n / cols)


def compared_csv(rows: Sequence[Compared]) -> str:
  """The rows of `compare` as CSV."""
  return _csv(Compared._fields, rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  writer.writerows([header, *rows])
  return file.getvalue()
