"""Costs of layers as tables for a terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from jaxcodesign.figures.findings import quantity
from jaxcodesign.hardware.mapping.schedule import Scheduled
from jaxcodesign.hardware.pricing.layers import (
  Compared,
  LayerCost,
  Priced,
  Saved,
  by_kind,
)
from jaxcodesign.hardware.pricing.verify import Checked


def one(priced: Priced) -> Table:
  """All numbers of a machine, a layer a line, and their totals."""
  layers, report = priced.layers, priced.report
  several = any(x.runs > 1 for x in layers)
  runs = ["runs"] if several else []
  table = _table(
    f"{priced.machine.name} {priced.name}, {priced.machine.accounting} cycles",
    "M", "K", "N", *runs, "folds", "cycles", "of these\nstalled", "utili-\nzation",
    "SRAM\nreads", "SRAM\nwrites", "DRAM", "time", "energy",
  )  # fmt: skip
  for x in layers:
    table.add_row(
      x.name,
      *(f"{size:,}" for size in (x.m, x.k, x.n)),
      *([f"{x.runs:,}"] if several else []),
      *_measures(x.folds, x.cycles, x.array_cycles, x.utilization),
      *_moved(x.sram_reads, x.sram_writes, x.dram_bytes),
      *_spent(x.time_s, x.energy_j),
    )
  empty = [""] * (3 + len(runs))
  table.add_section()
  total = lambda key: sum(getattr(x, key) for x in layers)
  cycles = float(report.cycles)
  if float(report.other_time_s):
    other = _spent(float(report.other_time_s), float(report.other_energy_j))
    rest = f"{cycles - total('cycles'):,.0f}"
    table.add_row("vector unit, I/O", *empty, "", rest, *[""] * 5, *other)
  never_idle = total("array_cycles") + cycles - total("cycles")
  table.add_row(
    "total",
    *empty,
    *_measures(total("folds"), cycles, never_idle, float(report.utilization)),
    *_moved(total("sram_reads"), total("sram_writes"), float(report.traffic_bytes)),
    *_spent(float(report.time_s), float(report.energy_j)),
    style="bold",
  )
  return table


def beside(many: Sequence[Priced]) -> Table:
  """Cycles, utilization and energy of machines side by side; the best is bold."""
  table = _table(many[0].machine.name, "M", "K", "N")
  table.caption = "folds in one fixed order each; --map searches tiles and orders"
  table.caption_justify = "left"
  for priced in many:
    for what in ("cycles", "used", "energy"):
      table.add_column(f"{priced.name}\n{what}", justify="right")
  for layers in zip(*(priced.layers for priced in many)):
    best = min(range(len(layers)), key=lambda i: layers[i].energy_j * layers[i].time_s)
    cells = [_short(x, i == best) for i, x in enumerate(layers)]
    x = layers[0]
    sizes = (f"{size:,}" for size in (x.m, x.k, x.n))
    table.add_row(x.name, *sizes, *(c for three in cells for c in three))
  table.add_section()
  reports = [priced.report for priced in many]
  totals = (
    (f"{float(r.cycles):,.0f}", percent(float(r.utilization)),
     quantity(float(r.energy_j), "J")) for r in reports
  )  # fmt: skip
  table.add_row("total", "", "", "", *(c for t in totals for c in t), style="bold")
  for name, key, unit in (
    ("time", "time_s", "s"),
    ("DRAM", "traffic_bytes", "B"),
    ("energy x delay", "edp_js", "Js"),
  ):
    values = (quantity(float(getattr(r, key)), unit) for r in reports)
    table.add_row(name, "", "", "", *(c for v in values for c in ("", "", v)))
  return table


def kinds(many: Sequence[Priced]) -> Table:
  """Shares of multiplications and of cycles of each kind of layer, on each array."""
  table = _table("by kind of layer", "layers", "MACs", "of all")
  table.columns[0].header = "kind"
  for priced in many:
    for what in ("cycles", "of all", "used"):
      table.add_column(f"{priced.name}\n{what}", justify="right")
  for rows in zip(*map(by_kind, many)):
    x = rows[0]
    cells = (
      (f"{r.cycles:,.0f}", percent(r.cycles_share), percent(r.utilization))
      for r in rows
    )
    table.add_row(
      x.kind, f"{x.layers:,}", f"{x.macs:,}", percent(x.macs_share),
      *(c for three in cells for c in three),
    )  # fmt: skip
  return table


def saved(rows: Sequence[Saved], title: str) -> Table:
  """What a network saves against another, and what is left of it on each array."""
  table = _table(title, "MACs", "cycles", "time", "energy", "used", "by the\nother")
  table.caption = "of the other over its own: below 1x nothing is saved"
  table.caption_justify = "left"
  table.columns[0].header = "array"
  for x in rows:
    ratios = (f"{ratio:.2f}x" for ratio in (x.macs, x.cycles, x.time, x.energy))
    table.add_row(
      x.array, *ratios, percent(x.utilization), percent(x.other_utilization)
    )
  return table


def compared(rows: Sequence[Compared], title: str) -> Table:
  """Ways to store the weights of each layer, one under the other; totals last."""
  table = _table(
    title, "weights", "outputs\nx columns", "tiles", "folds", "cycles", "used",
    "time", "energy", "energy\nx delay", "area",
  )  # fmt: skip
  table.columns[1].justify = "left"
  each = len(rows) // len({x.title for x in rows})
  for i in range(each):
    for x in rows[i::each]:
      size = "" if x.columns is None else f"{x.outputs:,} x {x.columns:,.0f}"
      table.add_row(
        x.name if x is rows[i] else "", x.title, size, f"{x.tiles:,}", f"{x.folds:,}",
        f"{x.cycles:,.0f}", percent(x.utilization), *_spent(x.time_s, x.energy_j),
        quantity(x.edp_js, "Js"), f"{x.area_mm2:.3g} mm2",
        style="bold" if x.columns is None else None,
      )  # fmt: skip
    table.add_section()
  return table


def verified(checked: Sequence[Checked], title: str) -> Table:
  """What was simulated of each layer, beside its closed form."""
  table = _table(
    title, "simulated", "tiles", "cycles", "utilization,\nsimulated",
    "utilization,\nclosed form", "reads", "writes", "read back",
  )  # fmt: skip
  for x in checked:
    c = x.counted
    table.add_row(
      x.name,
      x.tiles,
      f"{x.simulated:,} of {x.of:,}",
      f"{c.cycles:,}",
      f"{x.utilization:.3%}",
      f"{x.closed_utilization:.3%}",
      f"{c.left_reads + c.right_reads:,}",
      f"{c.result_writes:,}",
      f"{c.result_reads:,}",
    )
  return table


def mapped(rows: Sequence[Scheduled], title: str) -> Table:
  """The best mapping of each layer, and what it gains over SCALE-Sim's."""
  table = _table(
    title, "dataflow", "order", "tile M", "tile K", "tile N", "cycles", "stalled",
    "DRAM", "time", "energy", "faster\nthan fixed", "less DRAM\nthan fixed",
  )  # fmt: skip
  for x in rows:
    cost, cut = x.found.cost, x.found.mapping
    fixed = ["", ""]
    if x.fixed is not None:
      gains = (x.fixed.time_s / cost.time_s,
               x.fixed.moved.dram_bytes / cost.moved.dram_bytes)  # fmt: skip
      fixed = [f"{float(gain):.2f}x" for gain in gains]
    table.add_row(
      x.name,
      x.found.dataflow,
      cut.order,
      *(f"{tile:,}" for tile in (cut.tile_m, cut.tile_k, cut.tile_n)),
      f"{x.runs * float(cost.cycles):,.0f}",
      f"{1 - float(cost.compute_cycles / cost.cycles):.0%}",
      quantity(x.runs * float(cost.moved.dram_bytes), "B"),
      quantity(x.runs * float(cost.time_s), "s"),
      quantity(x.runs * float(cost.energy_j), "J"),
      *fixed,
    )
  table.add_section()
  total = lambda key: sum(x.runs * float(key(x.found.cost)) for x in rows)
  table.add_row(
    "total", *[""] * 5, f"{total(lambda c: c.cycles):,.0f}", "",
    quantity(total(lambda c: c.moved.dram_bytes), "B"),
    quantity(total(lambda c: c.time_s), "s"),
    quantity(total(lambda c: c.energy_j), "J"), "", "", style="bold",
  )  # fmt: skip
  return table


def percent(share: float) -> str:
  """A share; small ones in two digits: an array hardly used is not an idle one."""
  return f"{share:.1%}" if share >= 0.01 else f"{100 * share:.2g}%"


def _table(title: str, *columns: str) -> Table:
  table = Table(
    "layer",
    title=title,
    title_justify="left",
    box=box.SIMPLE_HEAD,
    pad_edge=False,
    collapse_padding=True,
  )
  for column in columns:
    table.add_column(column, justify="right")
  return table


def _short(x: LayerCost, best: bool) -> list[str]:
  cells = [f"{x.cycles:,.0f}", percent(x.utilization), quantity(x.energy_j, "J")]
  return [f"[bold]{cell}[/]" for cell in cells] if best else cells


def _measures(
  folds: float, cycles: float, array_cycles: float, used: float
) -> list[str]:
  waited = max(0.0, 1 - array_cycles / cycles)
  return [f"{folds:,}", f"{cycles:,.0f}", f"{waited:.0%}", percent(used)]


def _moved(reads: float, writes: float, dram_bytes: float) -> list[str]:
  return [quantity(reads, ""), quantity(writes, ""), quantity(dram_bytes, "B")]


def _spent(time_s: float, energy_j: float) -> list[str]:
  return [quantity(time_s, "s"), quantity(energy_j, "J")]
