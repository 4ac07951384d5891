"""What a machine is: an accelerator as a pytree of physical numbers.

Every number is a leaf (swept by vmap, differentiated by grad), in SI units with the
unit in its name; `_j` of a memory is per byte. What must be an integer in silicon
(rows, bits) is a float here; kinds and dataflows are static.
"""

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.hardware.machines import energy, sram

Leaf = jax.typing.ArrayLike
Dataflow = Literal["os", "ws", "is"]
Accounting = Literal["scalesim", "rtl"]
MacKind = Literal[
  "parallel", "fusible", "bit_serial", "term_serial", "chunk_serial", "floating"
]


@tree.pytree
class Mac:
  """One cell of the array; `cells` makes those with a source.

  Attributes:
    kind: How many cycles a step of `lanes` multiply-accumulates takes.
      "parallel": one, times the passes that operands wider than the cell need; narrower
      operands switch fewer bits, see `synthesis.share`.
      "fusible": likewise, but a cell of W x A bits is floor(W / w) floor(A / a) cells
      of w x a bits, of 2 bits at least (Bit Fusion).
      "bit_serial": one per bit of the activation, times the passes over the weight.
      "term_serial": one per pair of terms, k * s for a group of `group` weights with
      k terms against activations with s (the tMAC).
      "chunk_serial": one per pair of chunks of mantissa bits (the fMAC): widths are
      those of a sign and a chunk.
      "floating": as parallel, but its energy does not follow the operands' width.
    weight_bits: Width of the weight side, the sign included.
    activation_bits: Width of the activation side; bits are streamed in bit_serial.
    accumulator_bytes: Width of a partial sum.
    energy_j: Of one cell in one active cycle, operands as wide as the cell.
    leakage_w: Of one cell.
    area_mm2: Of one cell.
    idle_j: Of one cell in one cycle that clocks it without multiplying; 0 is gated.
    group_j: Once for each step: what a group of products needs however wide they are.
    output_j: Of one result on its way out: encoders, comparators, converters.
    output_mm2: Of these, once for each column.
    inputs: Activations that a cell sees at once and selects one of, by an index beside
      the weight (MX cells, see `cells.mx`); 1 selects nothing. The numbers above hold
      with all of them moving.
    lanes: Products that a cell sums in one step, neighbours along the contraction.
  """

  kind: MacKind = tree.static()
  weight_bits: Leaf
  activation_bits: Leaf
  accumulator_bytes: Leaf
  energy_j: Leaf
  leakage_w: Leaf
  area_mm2: Leaf
  idle_j: Leaf = 0.0
  group_j: Leaf = 0.0
  output_j: Leaf = 0.0
  output_mm2: Leaf = 0.0
  inputs: Leaf = 1.0
  lanes: int = tree.static(default=1)

  def __post_init__(self):
    _choice(self.kind, MacKind, "Mac.kind")
    _positive(self)
    if self.lanes < 1:
      raise ValueError(f"Mac.lanes={self.lanes} must be at least 1")
    if tree.is_concrete(self.inputs) and np.any(np.asarray(self.inputs) < 1):
      raise ValueError(f"Mac.inputs={self.inputs}: a cell sees at least 1 activation")
    known = tree.is_concrete(self.idle_j) and tree.is_concrete(self.energy_j)
    if known and np.any(np.asarray(self.idle_j) > np.asarray(self.energy_j)):
      raise ValueError(
        f"Mac.idle_j={self.idle_j} exceeds energy_j={self.energy_j}, which includes it:"
        " give both for the same cell, node and voltage"
      )

  def flips(self, dataflow: Dataflow = "os", accounting: Accounting = "rtl") -> Any:
    """Register bits of a cell that flip in an active cycle on random integers.

    os   half of both operands, W and A bits, and as many of the sum below its sign
    ws   half of A; the weight stays; half of the sum, an unrelated one every cycle,
         in each register it passes: two in "rtl" accounting, one in "scalesim"
    is   half of W, and the sum as for ws

    Each further input of an MX cell flips half of A more in os and ws. The index that
    moves with a weight in os is not counted, here and by the simulators.
    """
    w, a = _real(self.weight_bits), _real(self.activation_bits)
    inputs = _real(self.inputs)
    if dataflow == "os":
      return w + a * (1 + inputs) / 2
    registers = 2 if accounting == "rtl" else 1
    moving = a * inputs if dataflow == "ws" else w
    return moving / 2 + registers * 4 * _real(self.accumulator_bytes)

  def toggle_j(self, dataflow: Dataflow = "os", accounting: Accounting = "rtl") -> Any:
    """Joules a register bit that flips, the logic it drives included.

    So that the `flips` of random operands cost what an active cycle costs beyond an
    idle one, in any dataflow.
    """
    return self.dynamic_j() / self.flips(dataflow, accounting)

  def dynamic_j(self) -> Any:
    """Joules of an active cycle beyond those of an idle one."""
    return _real(self.energy_j) - _real(self.idle_j)


@tree.pytree
class Sram:
  """An on-chip buffer, double-buffered; its costs follow its capacity as in CACTI.

  A quantity at the capacity of a bank is its leaf times CACTI's ratio between that
  capacity and 1 KiB at this node, see `sram`. An access costs that of one bank; leakage
  and area are those of all; wires between banks are left out.

  Attributes:
    capacity_bytes: Both halves together.
    read_j: Per byte, of a memory of 1 KiB; likewise the next three. CACTI's by default.
    write_j: Per byte.
    leakage_w: Of 1 KiB.
    area_mm2: Of 1 KiB.
    node_nm: 90, 65, 45, 32 or 22. Change it with `at_node`.
    width_bits: Of the port; 64 is tabulated.
    banks: Memories of equal size that hold the capacity together.

  Raises:
    ValueError: When made with an untabulated node or width; when priced with a known
      capacity of a bank outside 1 KiB to 4 MiB. Traced, such a capacity costs NaN.
  """

  capacity_bytes: Leaf
  read_j: Any = None
  write_j: Any = None
  leakage_w: Any = None
  area_mm2: Any = None
  node_nm: int = tree.static(default=45)
  width_bits: int = tree.static(default=64)
  banks: int = tree.static(default=1)

  def __post_init__(self):
    sram.check_kind(self.node_nm, self.width_bits)
    if self.banks < 1:
      raise ValueError(f"Sram.banks={self.banks} must be at least 1")
    for name in _ANCHORS:
      own = sram.smallest(name, self.node_nm, self.width_bits)
      found = getattr(self, name)
      if found is None:
        object.__setattr__(self, name, own)
      elif isinstance(found, float) and found != own and found in _anchors(name):
        raise ValueError(
          f"Sram.{name}={found} is CACTI's at another node than node_nm={self.node_nm}:"
          " change the node with at_node"
        )
    _positive(self)

  def at_node(self, node_nm: int) -> "Sram":
    """The same memory at another node, with CACTI's costs there."""
    anchors = dict.fromkeys(_ANCHORS)
    return dataclasses.replace(self, node_nm=node_nm, **anchors)

  def read_energy_j(self) -> Any:
    """Joules to read a byte at this capacity."""
    return self.read_j * self._ratio("read_j")

  def write_energy_j(self) -> Any:
    """Joules to write a byte at this capacity."""
    return self.write_j * self._ratio("write_j")

  def total_leakage_w(self) -> Any:
    """Watts of the whole buffer."""
    return self.banks * self.leakage_w * self._ratio("leakage_w")

  def total_area_mm2(self) -> Any:
    """Square millimetres of the whole buffer."""
    return self.banks * self.area_mm2 * self._ratio("area_mm2")

  def access_s(self) -> Any:
    """Seconds of one random access to a bank."""
    return self._cost("access_s")

  def check(self, name: str = "Sram") -> None:
    """Raises a ValueError if the capacity of a bank is known and outside the table."""
    if tree.is_concrete(self.capacity_bytes):
      bank = np.asarray(self.capacity_bytes) / self.banks
      what = f"{name}.capacity_bytes / banks"
      sram.check_capacity(what, bank, self.node_nm, self.width_bits)

  def _ratio(self, quantity: sram.Quantity) -> Any:
    return self._cost(quantity) / sram.smallest(quantity, self.node_nm, self.width_bits)

  def _cost(self, quantity: sram.Quantity) -> Any:
    self.check()
    bank = self.capacity_bytes / self.banks
    return sram.cost(quantity, bank, node_nm=self.node_nm, width_bits=self.width_bits)


_ANCHORS: tuple[sram.Quantity, ...] = ("read_j", "write_j", "leakage_w", "area_mm2")


@functools.cache
def _anchors(quantity: sram.Quantity) -> frozenset[float]:
  return frozenset(sram.smallest(quantity, node) for node in sram.NODES_NM)


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
    accounting: Which cycles of a fold count, see `fold_cycles`.

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
    return _real(self.rows) * _real(self.cols) * _real(self.mac.area_mm2)

  def area_mm2(self) -> Any:
    """Area of cells, of what stands at the foot of their columns, and of buffers.

    Wiring, control and the vector unit are left out.
    """
    buffers = (self.ifmap, self.weight, self.ofmap)
    foot = _real(self.cols) * _real(self.mac.output_mm2)
    return self.array_mm2() + foot + sum(b.total_area_mm2() for b in buffers)

  def leakage_w(self) -> Any:
    """Leakage of cells and buffers."""
    buffers = (self.ifmap, self.weight, self.ofmap)
    cells = _real(self.rows) * _real(self.cols) * _real(self.mac.leakage_w)
    return cells + sum(b.total_leakage_w() for b in buffers)


_MAY_BE_ZERO = (
  "temperature", "leakage_w", "idle_j", "group_j", "output_j", "output_mm2"
)  # fmt: skip


def _real(x: Any) -> Any:
  """`x` in wide floating point: products of small integers overflow."""
  if isinstance(x, jax.Array):
    return x.astype(jnp.result_type(float))
  return float(x) if np.ndim(x) == 0 else np.asarray(x, float)


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
    zero_is_fine = field.name in _MAY_BE_ZERO
    if not np.all(np.isfinite(found) & ((found > 0) | (zero_is_fine & (found == 0)))):
      raise ValueError(
        f"{type(part).__name__}.{field.name}={leaf} must be positive and finite"
      )
