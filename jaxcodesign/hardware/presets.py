"""Accelerators to start from: one 45 nm int8 array and its serial twins of equal area.

The bit-parallel cell is a published synthesis. The serial cells follow from it by the
efficiencies that a draft of the term quantization paper plotted side by side (see
`energy.TABLE`), with the cycles a MAC took there as parameters:

  area per cell   = area of the parallel cell x (efficiency ratio) / cycles per MAC
  energy a cycle  = energy of the parallel cell x (efficiency ratio) / cycles per MAC

The draft states neither its node nor all settings; treat the twins as a starting point.
"""

import math

from jaxcodesign.hardware.energy import value
from jaxcodesign.hardware.spec import (
  Accelerator,
  Dataflow,
  Dram,
  Mac,
  MacKind,
  Sram,
  Vector,
)


def int8_45nm(
  rows: int = 32, cols: int = 32, *, dataflow: Dataflow = "os"
) -> Accelerator:
  """A bit-parallel int8 array at 45 nm and 500 MHz, 32-bit accumulators.

  Buffers of 64 KiB for inputs, 128 KiB for weights, 64 KiB for results; a DRAM of
  12.8 GB/s (one 64-bit DDR3-1600 channel).
  """
  return _machine("int8", _cell("parallel", 1.0, 1.0), rows, cols, dataflow)


def bit_serial_45nm(
  array_mm2: float | None = None,
  *,
  cycles_per_mac: float = 8.0,
  dataflow: Dataflow = "os",
) -> Accelerator:
  """The bit-serial twin: as many cells as fit `array_mm2`, in a near-square array.

  Args:
    array_mm2: Area of the cells; that of `int8_45nm()` by default.
    cycles_per_mac: Cycles that the published efficiency assumes for an 8-bit MAC.
    dataflow: As in `Accelerator`.
  """
  cell = _cell(
    "bit_serial",
    value("parallel_area_efficiency") / cycles_per_mac,
    value("parallel_energy_efficiency") / cycles_per_mac,
  )
  return _fitted("bit-serial", cell, array_mm2, dataflow)


def tmac_45nm(
  array_mm2: float | None = None,
  *,
  cycles_per_mac: float = 1.25 * 3,
  dataflow: Dataflow = "os",
) -> Accelerator:
  """The term-serial twin (tMAC): k * s cycles for a group of weights.

  Args:
    array_mm2: Area of the cells; that of `int8_45nm()` by default.
    cycles_per_mac: Cycles that the published efficiency assumes: 10 terms for a group
      of 8 weights against activations of 3 terms. The 3 is an assumption.
    dataflow: As in `Accelerator`.
  """
  areas = value("parallel_area_efficiency") / value("tmac_area_efficiency")
  energies = value("parallel_energy_efficiency") / value("tmac_energy_efficiency")
  cell = _cell("term_serial", areas / cycles_per_mac, energies / cycles_per_mac)
  return _fitted("tMAC", cell, array_mm2, dataflow)


def _cell(kind: MacKind, area: float, energy: float) -> Mac:
  return Mac(
    kind,
    weight_bits=8.0,
    activation_bits=8.0,
    accumulator_bytes=4.0,
    energy_j=value("int8_mac_j") * energy,
    leakage_w=value("int8_mac_leakage_w") * area,
    area_mm2=value("int8_mac_mm2") * area,
  )


def _fitted(
  name: str, cell: Mac, array_mm2: float | None, dataflow: Dataflow
) -> Accelerator:
  if array_mm2 is None:
    array_mm2 = float(int8_45nm().array_mm2())
  cells = array_mm2 / float(cell.area_mm2)  # pyright: ignore[reportArgumentType]
  rows = math.isqrt(int(cells))
  if rows < 1:
    raise ValueError(
      f"array_mm2={array_mm2} holds no {name} cell of {cell.area_mm2:.3g} mm2"
    )
  return _machine(name, cell, rows, int(cells) // rows, dataflow)


def _machine(
  name: str, cell: Mac, rows: int, cols: int, dataflow: Dataflow
) -> Accelerator:
  return Accelerator(
    name,
    rows=float(rows),
    cols=float(cols),
    clock_hz=500e6,
    mac=cell,
    ifmap=Sram(64.0 * 1024),
    weight=Sram(128.0 * 1024),
    ofmap=Sram(64.0 * 1024),
    dram=Dram(),
    vector=Vector(),
    dataflow=dataflow,
  )
