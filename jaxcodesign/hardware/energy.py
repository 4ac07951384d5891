"""What operations and bytes cost: numbers with their source and technology node.

A number is `Sourced`: it knows where it was read. `recalled=True` marks what was not
re-read in the source and is therefore only a default, to be replaced by whoever knows
better. Nothing is scaled to another node silently.
"""

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
_CACTI = "power law through CACTI 7 runs, 64-bit port, 1 KB to 4 MB"
_HOROWITZ = "Horowitz, ISSCC 2014, 0.9 V"
_DRAFT = "plot scripts of a 2019 draft of the term quantization paper (its repository)"

TABLE: dict[str, Sourced] = {
  "int8_mac_j": Sourced(0.222545e-12, "J a cycle", 45, _SYNTHESIS),
  "int8_mac_mm2": Sourced(567.747813e-6, "mm2", 45, _SYNTHESIS),
  "int8_mac_leakage_w": Sourced(17.267625e-6, "W", 45, _SYNTHESIS),
  "sram_read_j": Sourced(1.835e-12 / 8, "J a byte at 1 KiB", 45, _CACTI),
  "sram_read_exponent": Sourced(0.570, "power of the capacity", 45, _CACTI),
  "sram_write_j": Sourced(3.02e-12 / 8, "J a byte at 1 KiB", 45, _CACTI),
  "sram_write_exponent": Sourced(0.458, "power of the capacity", 45, _CACTI),
  "sram_mm2": Sourced(0.004, "mm2 at 1 KiB", 45, _CACTI),
  "sram_area_exponent": Sourced(0.985, "power of the capacity", 45, _CACTI),
  "sram_leakage_w": Sourced(1.93e-8, "W a KiB", 45, _CACTI),
  "dram_j": Sourced(1.3e-9 / 8, "J a byte, low end", 45, _HOROWITZ, recalled=True),
  "int32_add_j": Sourced(0.1e-12, "J", 45, _HOROWITZ),
  # Efficiency relative to a bit-serial MAC of the same draft, group of 8 with 10 terms.
  "parallel_area_efficiency": Sourced(1.8, "MAC/s/mm2, ratio", 0, _DRAFT),
  "parallel_energy_efficiency": Sourced(2.0, "MAC/J, ratio", 0, _DRAFT),
  "tmac_area_efficiency": Sourced(2.4, "MAC/s/mm2, ratio", 0, _DRAFT),
  "tmac_energy_efficiency": Sourced(3.0, "MAC/J, ratio", 0, _DRAFT),
}


def value(name: str) -> float:
  """The number called `name` in TABLE."""
  return TABLE[name].value
