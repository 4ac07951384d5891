"""What operations and bytes cost: numbers with their source and technology node.

A number is `Sourced`: it knows where it was read. `recalled=True` marks what was not
re-read in the source and is therefore only a default, to be replaced by whoever knows
better. Measured tables lie in `tables/`, each with its source in FILES.

Nothing is scaled to another node silently: a Sourced says its node, a memory is only
priced at the nodes of its table, and `logic` scales by the exponents in TABLE.
"""

import csv
import functools
import importlib.resources
from typing import NamedTuple


class Sourced(NamedTuple):
  """A physical constant.

  Attributes:
    value: In the unit given.
    unit: SI, per what.
    node_nm: Technology node, 0 where none applies.
    source: Publication, table or program it comes from.
    recalled: Not re-read in the source.
  """

  value: float
  unit: str
  node_nm: int
  source: str
  recalled: bool = False


_SYNTHESIS = "Bit Fusion, published synthesis at 500 MHz, mean of arrays of >= 16 cells"
_CACTI = "CACTI 7 run, 64-bit port, 1 KiB"
_HOROWITZ = "Horowitz, ISSCC 2014, 0.9 V"
_JOUPPI = "Jouppi et al., ISCA 2021, table 2, at 7 nm"
_ALADDIN = "Aladdin's 40 nm tables in an Accelergy plug-in, 1 ns"
_DRAFT = "plot scripts of a 2019 draft of the term quantization paper (its repository)"

_TABLES = importlib.resources.files("jaxcodesign.hardware.machines") / "tables"

# Measured tables: what made them, and what no column of theirs says.
FILES = {
  "cacti_sram.csv": "CACTI 7, run for this table: one 64-bit port, energies per access",
  "pe_synthesis_45nm.csv": "Bit Fusion, published synthesis: 45 nm, 500 MHz, per cell",
}

TABLE: dict[str, Sourced] = {
  "int8_mac_j": Sourced(0.222545e-12, "J a cycle", 45, _SYNTHESIS),
  "int8_mac_mm2": Sourced(567.747813e-6, "mm2", 45, _SYNTHESIS),
  "int8_mac_leakage_w": Sourced(17.267625e-6, "W", 45, _SYNTHESIS),
  "sram_read_j": Sourced(1.66966e-12 / 8, "J a byte at 1 KiB", 45, _CACTI),
  "sram_write_j": Sourced(3.49161e-12 / 8, "J a byte at 1 KiB", 45, _CACTI),
  "sram_mm2": Sourced(0.003599315325, "mm2 at 1 KiB", 45, _CACTI),
  "sram_leakage_w": Sourced(2.08939e-8, "W a KiB", 45, _CACTI),
  "dram_j": Sourced(1.3e-9 / 8, "J a byte, low end", 45, _HOROWITZ, recalled=True),
  "int32_add_j": Sourced(0.1e-12, "J", 45, _HOROWITZ),
  "int32_add_mm2": Sourced(137e-6, "mm2", 45, _HOROWITZ),
  "fp16_add_j": Sourced(0.4e-12, "J", 45, _HOROWITZ, recalled=True),
  "fp16_add_mm2": Sourced(1360e-6, "mm2", 45, _HOROWITZ, recalled=True),
  "fp16_mul_j": Sourced(1.1e-12, "J", 45, _HOROWITZ, recalled=True),
  "fp16_mul_mm2": Sourced(1640e-6, "mm2", 45, _HOROWITZ, recalled=True),
  "fp32_add_j": Sourced(0.9e-12, "J", 45, _HOROWITZ),
  "fp32_add_mm2": Sourced(4184e-6, "mm2", 45, _HOROWITZ),
  "fp32_mul_j": Sourced(3.7e-12, "J", 45, _HOROWITZ),
  "fp32_mul_mm2": Sourced(7700e-6, "mm2", 45, _HOROWITZ),
  # bfloat16 has no row at 45 nm: float16 of the same node times these.
  "bf16_add_of_fp16": Sourced(0.11 / 0.16, "J, ratio", 0, _JOUPPI, recalled=True),
  "bf16_mul_of_fp16": Sourced(0.21 / 0.34, "J, ratio", 0, _JOUPPI, recalled=True),
  # An int32 adder is 32 full adders.
  "full_adder_j": Sourced(0.1e-12 / 32, "J", 45, _HOROWITZ),
  "full_adder_mm2": Sourced(137e-6 / 32, "mm2", 45, _HOROWITZ),
  "register_j": Sourced(0.009e-12, "J a bit", 40, _ALADDIN),
  "register_mm2": Sourced(5.98e-6, "mm2 a bit", 40, _ALADDIN),
  # That the table's bitwise operator is 32 bits wide is recalled.
  "gate_j": Sourced(0.018e-12 / 32, "J", 40, _ALADDIN, recalled=True),
  "gate_mm2": Sourced(50e-6 / 32, "mm2", 40, _ALADDIN, recalled=True),
  "idle_share": Sourced(
    0.2,
    "energy of a clocked cell that does not multiply to one that does, ratio",
    0,
    "estimate: 48 flip-flops of an 8-bit cell at about 1 fJ a clock edge, of 223 fJ",
    recalled=True,
  ),
  "logic_j_exponent": Sourced(
    1.83, "power of the node, ratio", 0, "CACTI's SRAM reads, 90 to 22 nm", True
  ),
  "logic_mm2_exponent": Sourced(
    2.0, "power of the node, ratio", 0, "ideal shrink in both directions", True
  ),
  "logic_w_exponent": Sourced(
    0.0, "power of the node, ratio", 0, "CACTI's SRAM leakage has no trend", True
  ),
  # Efficiency relative to a bit-serial MAC of the same draft, group of 8 with 10 terms.
  "parallel_area_efficiency": Sourced(1.8, "MAC/s/mm2, ratio", 0, _DRAFT),
  "parallel_energy_efficiency": Sourced(2.0, "MAC/J, ratio", 0, _DRAFT),
  "tmac_area_efficiency": Sourced(2.4, "MAC/s/mm2, ratio", 0, _DRAFT),
  "tmac_energy_efficiency": Sourced(3.0, "MAC/J, ratio", 0, _DRAFT),
}

LOGIC_NODES_NM = (90, 65, 45, 40, 32, 22)


def value(name: str) -> float:
  """The number called `name` in TABLE."""
  return TABLE[name].value


def logic(name: str, node_nm: int) -> float:
  """The number called `name` at another node, by the exponents of `logic_ratio`."""
  found = TABLE[name]
  return found.value * logic_ratio(name.rsplit("_", 1)[1], found.node_nm, node_nm)


def logic_ratio(
  unit: str, from_nm: int, to_nm: int, *, exponent: float | None = None
) -> float:
  """What a number of logic is multiplied by from one node to another.

  (to / from)^exponent, an assumption, and one for 22 to 90 nm only: below, supply
  voltages no longer fall with the node.

  Args:
    unit: Of the number: "j", "mm2" or "w".
    from_nm: One of LOGIC_NODES_NM.
    to_nm: Likewise.
    exponent: TABLE's "logic_<unit>_exponent" by default.

  Raises:
    ValueError: If a node or a unit is unknown.
  """
  for node in (from_nm, to_nm):
    if node not in LOGIC_NODES_NM:
      nodes = ", ".join(str(n) for n in LOGIC_NODES_NM)
      raise ValueError(f"node_nm={node} is none of {nodes}: logic is not scaled there")
  if f"logic_{unit}_exponent" not in TABLE:
    raise ValueError(f"unit={unit!r} is none of j, mm2, w")
  power = value(f"logic_{unit}_exponent") if exponent is None else exponent
  return (to_nm / from_nm) ** power


@functools.cache
def table(file: str) -> tuple[dict[str, float], ...]:
  """The rows of a measured table, numbers all; FILES has its source.

  Raises:
    ValueError: If FILES knows no source of `file`.
  """
  if file not in FILES:
    raise ValueError(f"{file!r} has no source in FILES: {', '.join(FILES)}")
  text = _TABLES.joinpath(file).read_text()
  rows = csv.DictReader(text.splitlines())
  return tuple({name: float(x) for name, x in row.items()} for row in rows)
