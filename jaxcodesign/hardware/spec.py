"""What a machine is: an accelerator as a pytree of physical numbers.

Every number is a leaf (swept by vmap, differentiated by grad), in SI units with the
unit in its name; `_j` of a memory is per byte. What must be an integer in silicon
(rows, bits) is a float here; kinds and dataflows are static.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax
import numpy as np

from jaxcodesign import tree
from jaxcodesign.hardware import energy

Leaf = jax.typing.ArrayLike
Dataflow = Literal["os", "ws", "is"]
Accounting = Literal["scalesim", "rtl"]
MacKind = Literal["parallel", "bit_serial", "term_serial"]


@tree.pytree
class Mac:
  """One cell of the array.

  Attributes:
    kind: How many cycles a multiply-accumulate takes.
      "parallel": one, times the passes that operands wider than the cell need.
      "bit_serial": one per bit of the activation, times the passes over the weight.
      "term_serial": one per pair of terms, k * s for a group of `group` weights with
      k terms against activations with s (the tMAC).
    weight_bits: Width of the weight side, the sign included.
    activation_bits: Width of the activation side; bits are streamed in bit_serial.
    accumulator_bytes: Width of a partial sum.
    energy_j: Of one cell in one active cycle.
    leakage_w: Of one cell.
    area_mm2: Of one cell.
  """

  kind: MacKind = tree.static()
  weight_bits: Leaf
  activation_bits: Leaf
  accumulator_bytes: Leaf
  energy_j: Leaf
  leakage_w: Leaf
  area_mm2: Leaf

  def __post_init__(self):
    _choice(self.kind, MacKind, "Mac.kind")
    _positive(self)


@tree.pytree
class Sram:
  """An on-chip buffer, double-buffered; its costs follow its capacity by power laws.

  Attributes:
    capacity_bytes: Both halves together.
    read_j: Per byte, of a memory of 1 KiB; likewise the next three.
    write_j: Per byte.
    leakage_w: Of 1 KiB; leakage is proportional to capacity.
    area_mm2: Of 1 KiB.
  """

  capacity_bytes: Leaf
  read_j: Leaf = energy.value("sram_read_j")
  write_j: Leaf = energy.value("sram_write_j")
  leakage_w: Leaf = energy.value("sram_leakage_w")
  area_mm2: Leaf = energy.value("sram_mm2")

  def __post_init__(self):
    _positive(self)

  def read_energy_j(self) -> Any:
    """Joules to read a byte at this capacity."""
    return self.read_j * self._kib() ** energy.value("sram_read_exponent")

  def write_energy_j(self) -> Any:
    """Joules to write a byte at this capacity."""
    return self.write_j * self._kib() ** energy.value("sram_write_exponent")

  def total_leakage_w(self) -> Any:
    """Watts of the whole buffer."""
    return self.leakage_w * self._kib()

  def total_area_mm2(self) -> Any:
    """Square millimetres of the whole buffer."""
    return self.area_mm2 * self._kib() ** energy.value("sram_area_exponent")

  def _kib(self) -> Any:
    return self.capacity_bytes / 1024.0


@tree.pytree
class Dram:
  """Off-chip memory: bytes a second, and joules a byte in either direction."""

  bandwidth_bytes_s: Leaf = 12.8e9
  access_j: Leaf = energy.value("dram_j")

  def __post_init__(self):
    _positive(self)


@tree.pytree
class Vector:
  """The unit that does what is no product: `lanes` elements a cycle, joules each."""

  lanes: Leaf = 32.0
  energy_j: Leaf = energy.value("int32_add_j")

  def __post_init__(self):
    _positive(self)


@tree.pytree
class Accelerator:
  """A systolic array with three buffers, a vector unit and DRAM.

  Attributes:
    name: What reports call it.
    rows: Cells a column; float, an integer in silicon.
    cols: Cells a row.
    clock_hz: Of the array and the vector unit.
    mac: The cell.
    ifmap: Buffer of the left operands (activations).
    weight: Buffer of the right operands.
    ofmap: Buffer of results and partial sums.
    dram: Off-chip memory.
    vector: Vector unit.
    temperature: 0 reports exactly: hard ceilings, hard maxima. Above 0 both are
      smooth, so that gradients see past the next tile boundary and the resource that
      is not the bottleneck. 0.05 to 0.5 is useful; see `smooth`.
    dataflow: What stays in the cells: "os" outputs, "ws" weights, "is" inputs.
    accounting: Which cycles of a fold count, see `cost.fold_cycles`.

  Raises:
    ValueError: When made with a number that is known and not positive, or a kind that
      does not exist.
  """

  name: str = tree.static()
  rows: Leaf
  cols: Leaf
  clock_hz: Leaf
  mac: Mac
  ifmap: Sram
  weight: Sram
  ofmap: Sram
  dram: Dram
  vector: Vector
  temperature: Leaf = 0.0
  dataflow: Dataflow = tree.static(default="os")
  accounting: Accounting = tree.static(default="rtl")

  def __post_init__(self):
    _choice(self.dataflow, Dataflow, "Accelerator.dataflow")
    _choice(self.accounting, Accounting, "Accelerator.accounting")
    _positive(self)

  def array_mm2(self) -> Any:
    """Area of the cells."""
    return self.rows * self.cols * self.mac.area_mm2

  def area_mm2(self) -> Any:
    """Area of cells and buffers; wiring, control and the vector unit are left out."""
    buffers = (self.ifmap, self.weight, self.ofmap)
    return self.array_mm2() + sum(b.total_area_mm2() for b in buffers)

  def leakage_w(self) -> Any:
    """Leakage of cells and buffers."""
    buffers = (self.ifmap, self.weight, self.ofmap)
    cells = self.rows * self.cols * self.mac.leakage_w
    return cells + sum(b.total_leakage_w() for b in buffers)


def _choice(value: str, kinds: Any, what: str) -> None:
  if value not in get_args(kinds):
    raise ValueError(f"{what}={value!r} is none of {', '.join(get_args(kinds))}")


def _positive(part: Any) -> None:
  """Raises a ValueError naming a number of `part` that is known and not positive."""
  for field in dataclasses.fields(part):
    leaf = getattr(part, field.name)
    if not tree.is_concrete(leaf):
      continue
    found = np.asarray(leaf)
    zero_is_fine = field.name in ("temperature", "leakage_w")
    if not np.all(np.isfinite(found) & ((found > 0) | (zero_is_fine & (found == 0)))):
      raise ValueError(
        f"{type(part).__name__}.{field.name}={leaf} must be positive and finite"
      )
