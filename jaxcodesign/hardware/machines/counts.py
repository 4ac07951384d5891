"""Circuits as counts of full adders, register bits and two-input gates.

Each part has an area, and an energy for a cycle in which it works, in `energy.TABLE`.
"""

from typing import Any, NamedTuple

from jaxcodesign.hardware.machines import energy


class Count(NamedTuple):
  """Parts of a circuit; those that work in a cycle, or those that take area."""

  full_adders: Any = 0.0
  registers: Any = 0.0
  gates: Any = 0.0

  def plus(self, *others: "Count") -> "Count":
    """All together."""
    return Count(*(sum(column) for column in zip(self, *others)))

  def times(self, number: Any) -> "Count":
    """So many of them."""
    return Count(*(number * part for part in self))

  def area_mm2(self, node_nm: int) -> Any:
    """Square millimetres at a node."""
    return self._sum("mm2", node_nm)

  def energy_j(self, node_nm: int) -> Any:
    """Joules of a cycle in which every part works."""
    return self._sum("j", node_nm)

  def _sum(self, unit: str, node_nm: int) -> Any:
    each = [
      energy.logic(f"{part}_{unit}", node_nm)
      for part in ("full_adder", "register", "gate")
    ]
    return sum(number * cost for number, cost in zip(self, each))
