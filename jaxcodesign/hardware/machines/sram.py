"""On-chip memories by capacity and node, as CACTI 7 has them.

Costs between two tabulated capacities follow a power law, see `interpolation`. Leaving
out each inner capacity and predicting it from its neighbours misses by 3 to 6 % in the
median and 22 % at most. Between nodes there is no such law: it would miss leakage by
half. So capacities are interpolated, nodes and port widths are those of the table.
"""

import functools
from typing import Any, Literal, get_args

import numpy as np

from jaxcodesign.hardware.machines import energy
from jaxcodesign.numerics import interpolation

Quantity = Literal["read_j", "write_j", "leakage_w", "area_mm2", "access_s"]

NODES_NM = (90, 65, 45, 32, 22)
_FILE = "cacti_sram.csv"
# Column and what turns it into SI units; energies of a 64-bit access into those a byte.
_COLUMNS: dict[Quantity, tuple[str, float]] = {
  "read_j": ("read_pJ", 1e-12 / 8),
  "write_j": ("write_pJ", 1e-12 / 8),
  "leakage_w": ("leak_mW", 1e-3),
  "area_mm2": ("area_mm2", 1.0),
  "access_s": ("access_ns", 1e-9),
}


def curve(
  quantity: Quantity, node_nm: int, width_bits: int = 64
) -> tuple[np.ndarray, np.ndarray]:
  """The tabulated capacities in bytes, ascending, and the quantity at each.

  Energies are joules a byte, of accesses that use the whole width of the port.

  Raises:
    ValueError: If the quantity, the node or the width is not in the table.
  """
  if quantity not in get_args(Quantity):
    names = ", ".join(get_args(Quantity))
    raise ValueError(f"quantity={quantity!r} is none of {names}")
  check_kind(node_nm, width_bits)
  return _curve(quantity, node_nm, width_bits)


@functools.cache
def _curve(
  quantity: Quantity, node_nm: int, width_bits: int
) -> tuple[np.ndarray, np.ndarray]:
  column, unit = _COLUMNS[quantity]
  kind = {"tech_nm": node_nm, "width_bits": width_bits}
  rows = [r for r in energy.table(_FILE) if all(r[k] == v for k, v in kind.items())]
  rows = sorted(rows, key=lambda r: r["size_kb"])
  at = np.array([r["size_kb"] * 1024 for r in rows])
  return at, np.array([r[column] * unit for r in rows])


def cost(
  quantity: Quantity, capacity_bytes: Any, *, node_nm: int, width_bits: int = 64
) -> Any:
  """A quantity at any capacity between 1 KiB and 4 MiB.

  Args:
    quantity: "read_j" and "write_j" a byte, "leakage_w" and "area_mm2" of the whole,
      "access_s" of one random access.
    capacity_bytes: [...]; where traced and out of range the result is NaN.
    node_nm: 90, 65, 45, 32 or 22.
    width_bits: 64, the one width tabulated.

  Raises:
    ValueError: If the node or width is not tabulated.
  """
  return interpolation.power_laws(capacity_bytes, *curve(quantity, node_nm, width_bits))


def smallest(quantity: Quantity, node_nm: int, width_bits: int = 64) -> float:
  """The quantity of the smallest memory tabulated, 1 KiB."""
  return float(curve(quantity, node_nm, width_bits)[1][0])


def check_kind(node_nm: int, width_bits: int) -> None:
  """Raises a ValueError unless the table has the node and the width."""
  for what, column, found in (
    ("node_nm", "tech_nm", node_nm),
    ("width_bits", "width_bits", width_bits),
  ):
    known = sorted({int(r[column]) for r in energy.table(_FILE)})
    if found not in known:
      said = ", ".join(str(x) for x in known)
      raise ValueError(
        f"{what}={found} is not tabulated; use one of {said}, or give read_j, write_j, "
        "leakage_w and area_mm2 of your own at one of them"
      )


def check_capacity(what: str, bank_bytes: Any, node_nm: int, width_bits: int) -> None:
  """Raises a ValueError if a known capacity lies outside the table."""
  at, _ = _curve("read_j", node_nm, width_bits)
  way_out = "build a larger memory of several banks, or round a smaller one up"
  interpolation.check_inside(what, bank_bytes, at, way_out)
