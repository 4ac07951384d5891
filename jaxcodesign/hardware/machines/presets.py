"""Accelerators to start from: an int8 array, its serial twins, and published shapes.

The first three, at 45 nm and of equal area:

The bit-parallel cell is a published synthesis. The serial cells follow from it by the
efficiencies that a draft of the term quantization paper plotted side by side (see
`energy.TABLE`), with the cycles a MAC took there as parameters:

  area per cell   = area of the parallel cell x (efficiency ratio) / cycles per MAC
  energy a cycle  = energy of the parallel cell x (efficiency ratio) / cycles per MAC

The draft states neither its node nor all settings; treat the twins as a starting point.

Those named after published machines have the sizes their docstrings cite, the cells of
`cells`, and this library's dataflows: they are like the machines, not models of them.
Every number of theirs stands in the docstring; those marked recalled were not re-read
in their source. Cells and memories are not the machines' own: cells come from `cells`,
memories from CACTI 7 at 1 KiB and the capacity's ratio to that, see `Sram`. The vector
unit has the price of Horowitz's int32 addition, DRAM his low end, recalled.
"""

import dataclasses
import math

import numpy as np

from jaxcodesign.hardware.machines import cells
from jaxcodesign.hardware.machines.energy import value
from jaxcodesign.hardware.machines.spec import (
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


def mx(
  accelerator: Accelerator, alpha: float = 8, *, array_mm2: float | None = None
) -> Accelerator:
  """The same machine with MX cells, which execute n:m and column-combined weights.

  For alpha = 8, at 45 nm, see `cells.mx`: in a bit-parallel int8 cell 7 x 8 registers,
  7 x 8 multiplexers of 3 gates and 3 index bits make 0.2225 pJ a cycle 0.5938 pJ and
  567.7 um2 1347 um2; in the bit-serial twin, whose inputs are a bit wide, 7, 7 and 3
  make 0.05564 pJ 0.1020 pJ and 127.7 um2 245.0 um2. In the area of `int8_45nm` there is
  room for 20 x 21 and 48 x 49 of them.

  Args:
    accelerator: With cells that select nothing; its node is that of its weight buffer.
    alpha: Inputs of a cell, the most columns that a group combines.
    array_mm2: Area of the cells: as many as fit, near-square. None keeps rows and cols
      and lets the area grow.

  Raises:
    ValueError: As `cells.mx`, or if the area holds no cell.
  """
  cell = cells.mx(accelerator.mac, alpha, node_nm=accelerator.weight.node_nm)
  name = f"{accelerator.name} MX{alpha:g}"
  made = dataclasses.replace(accelerator, name=name, mac=cell)
  if array_mm2 is None:
    return made
  rows, cols = _fit(name, cell, array_mm2)
  return dataclasses.replace(made, rows=float(rows), cols=float(cols))


def with_cells(
  accelerator: Accelerator,
  cell: Mac,
  *,
  name: str,
  array_mm2: float | None = None,
  aspect: float = 1.0,
) -> Accelerator:
  """The same machine with other cells: as many whole rows as fit an area.

  Columns are a multiple of the cell's lanes, so that they hold whole groups, see
  `fmac_array`.

  Args:
    accelerator: Its buffers, DRAM, vector unit and clock are kept.
    cell: In the place of its own.
    name: Of the machine.
    array_mm2: Area of the cells, without what stands at the foot of their columns; that
      of `accelerator` by default.
    aspect: Rows over columns, nearly.

  Raises:
    ValueError: If the area holds no row of `lanes` cells, or the aspect is not
      positive.
  """
  if not aspect > 0:
    raise ValueError(f"aspect={aspect}: rows over columns must be positive")
  if array_mm2 is None:
    array_mm2 = float(np.asarray(accelerator.array_mm2()))
  rows, cols = _fit(name, cell, array_mm2, aspect)
  return dataclasses.replace(
    accelerator, name=name, mac=cell, rows=float(rows), cols=float(cols)
  )


def eyeriss_like(*, dataflow: Dataflow = "ws") -> Accelerator:
  """Eyeriss: 12 x 14 cells of 16 bits, 65 nm, 200 MHz (Chen et al., JSSC 2017).

  12 x 14 is as in nn_dataflow; recalled: the 108 KiB of buffer, here 8 for weights and
  50 each for inputs and results, 16 bits, 65 nm and 200 MHz. Its row-stationary
  dataflow and the register files of its cells (0.5 KiB each, recalled) are left out.
  The cell is the synthesized 16-bit one with sums of 32 bits, scaled from 45 to 65 nm:
  1.257 pJ a cycle, 0.2515 pJ an idle one, 57.65 uW, 3724 um2. Memories at 65 nm and 1
  KiB: 0.39 pJ a byte read, 0.8108 pJ written, 29.64 nW, 7512 um2. Assumed: DRAM of 12.8
  GB/s at 162.5 pJ a byte, a vector unit of 32 lanes at 0.1 pJ.
  """
  return Accelerator(
    "Eyeriss-like",
    rows=12.0,
    cols=14.0,
    clock_hz=200e6,
    mac=cells.parallel(16.0, 16.0, node_nm=65),
    ifmap=Sram(50.0 * 1024, node_nm=65),
    weight=Sram(8.0 * 1024, node_nm=65),
    ofmap=Sram(50.0 * 1024, node_nm=65),
    dram=Dram(),
    vector=Vector(),
    dataflow=dataflow,
  )


def tpu_like(size: int = 256, *, dataflow: Dataflow = "ws") -> Accelerator:
  """TPU v1 and its half: 256 x 256 or 128 x 128 int8 cells at 700 MHz.

  Jouppi et al., ISCA 2017: 65,536 cells of 8 bits at 700 MHz; recalled: 34 GB/s of
  DRAM, 28 nm, and memories that follow the width of the array, 96 Ki rows of inputs (24
  MiB at 256, 12 MiB at 128), 4,096 rows of sums of 32 bits (4 MiB, 2 MiB), four tiles
  of weights (256 KiB, 64 KiB). CACTI has no 28 nm: everything is priced at 32 nm.
  Memories above 4 MiB are banks of that.

  The cell is the synthesized 8-bit one, scaled from 45 nm: 0.1193 pJ a cycle, 0.02385
  pJ an idle one, 17.27 uW, 287.1 um2. Memories at 32 nm and 1 KiB: 0.1119 pJ a byte
  read, 0.2369 pJ written, 27.78 nW, 1821 um2. DRAM at 162.5 pJ a byte. Assumed: a
  vector unit of 256 lanes, or 128 lanes, at 0.1 pJ.

  Raises:
    ValueError: If the size is neither 128 nor 256.
  """
  if size not in (128, 256):
    raise ValueError(
      f"size={size} is neither 128 nor 256; replace rows and cols instead"
    )
  inputs = 96 * 1024 * size
  return Accelerator(
    f"TPU-like {size}",
    rows=float(size),
    cols=float(size),
    clock_hz=700e6,
    mac=cells.parallel(node_nm=32),
    ifmap=Sram(float(inputs), node_nm=32, banks=inputs // 2**22),
    weight=Sram(4.0 * size * size, node_nm=32),
    ofmap=Sram(4096.0 * 4 * size, node_nm=32),
    dram=Dram(bandwidth_bytes_s=34e9),
    vector=Vector(lanes=float(size)),
    dataflow=dataflow,
  )


def fast_256x64(*, dataflow: Dataflow = "ws") -> Accelerator:
  """The FAST array: fMACs of 16 pairs of 2-bit chunks (Zhang et al., HPCA 2022).

  2-bit chunks of groups of 16 as in the paper; recalled: 256 x 64 cells, 45 nm, 500
  MHz. The paper's table of areas and energies is not known here: the cell, with
  operands of 3 bits (a sign and a chunk) and sums of 32 bits, is counted in gates, see
  `cells.fmac`: 1.26 pJ a cycle, 0.2519 pJ an idle one, 1.014 pJ a group, 189.3 uW, 6224
  um2; its converter takes 0.2789 pJ a result and 332 um2 a column.

  Assumed: buffers of 1 MiB each (at 45 nm and 1 KiB 0.2087 pJ a byte read, 0.4365 pJ
  written, 20.89 nW, 3599 um2), DRAM of 12.8 GB/s at 162.5 pJ a byte, a vector unit of
  32 lanes at 0.1 pJ.
  """
  machine = _machine("FAST 256x64", cells.fmac(), 256, 64, dataflow)
  large = dict.fromkeys(("ifmap", "weight", "ofmap"), Sram(1024.0 * 1024))
  return dataclasses.replace(machine, **large)


def camel_6x6(*, dataflow: Dataflow = "os") -> Accelerator:
  """CAMEL: 6 x 6 cells of 9 pairs of 6-bit mantissas, 500 MHz (HPCA 2024, a review).

  36 cells x 9 products are 324 a cycle, if a cell takes a group a cycle (recalled).
  Activations and gradients have 12 memories of 48 KiB, here 6 as inputs and 6 as
  results; weights have 6 of 8 KiB. It is made at 16 nm, for which there is neither a
  table nor a scaling here: everything is priced at 22 nm, its eDRAM as if it were SRAM,
  without refresh. Its absolute area and energy are not published.

  The cell, with operands of 6 bits (the sign included) and sums of 32 bits, is counted
  in gates, see `cells.fmac`: 0.5111 pJ a cycle, 0.1022 pJ an idle one, 0.2738 pJ a
  group, 220.5 uW, 1733 um2; its converter takes 0.07528 pJ a result and 79.35 um2 a
  column. Memories, 288 KiB, 48 KiB and 288 KiB together, at 22 nm and 1 KiB: 0.04752 pJ
  a byte read, 0.09807 pJ written, 17.96 nW, 857.5 um2. Assumed: DRAM of 12.8 GB/s at
  162.5 pJ a byte, a vector unit of 32 lanes at 0.1 pJ.
  """
  images = Sram(6 * 48.0 * 1024, node_nm=22, banks=6)
  return Accelerator(
    "CAMEL 6x6",
    rows=6.0,
    cols=6.0,
    clock_hz=500e6,
    mac=cells.fmac(group=9, chunk_bits=5, node_nm=22),
    ifmap=images,
    weight=Sram(6 * 8.0 * 1024, node_nm=22, banks=6),
    ofmap=images,
    dram=Dram(),
    vector=Vector(),
    dataflow=dataflow,
  )


def _cell(kind: MacKind, area: float, energy: float) -> Mac:
  return Mac(
    kind,
    weight_bits=8.0,
    activation_bits=8.0,
    accumulator_bytes=4.0,
    energy_j=value("int8_mac_j") * energy,
    leakage_w=value("int8_mac_leakage_w") * area,
    area_mm2=value("int8_mac_mm2") * area,
    idle_j=value("int8_mac_j") * energy * value("idle_share"),
  )


def _fitted(
  name: str, cell: Mac, array_mm2: float | None, dataflow: Dataflow
) -> Accelerator:
  if array_mm2 is None:
    array_mm2 = float(int8_45nm().array_mm2())
  return _machine(name, cell, *_fit(name, cell, array_mm2), dataflow)


def _fit(
  name: str, cell: Mac, array_mm2: float, aspect: float = 1.0
) -> tuple[int, int]:
  """Rows and columns, a multiple of the lanes, of as many cells as fit an area."""
  area = float(np.asarray(cell.area_mm2))
  # Upward by a rounding error: the area of so many cells holds them all.
  fit = int(array_mm2 / area * (1 + 1e-12))
  rows = int(math.sqrt(fit * aspect) + 1e-9)
  if cell.lanes > 1:
    cols = max(round(math.sqrt(fit / aspect) / cell.lanes), 1) * cell.lanes
    rows = fit // cols
  if rows < 1 or fit < rows:
    raise ValueError(
      f"array_mm2={array_mm2} holds no {name} cell of {area:.3g} mm2"
      + (f", {cell.lanes} of which make a row" if cell.lanes > 1 else "")
    )
  return rows, (fit // rows) // cell.lanes * cell.lanes


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
