"""The best mapping of every product of a workload, beside SCALE-Sim's built-in one.

Both are run by the memory simulator, product after product: nothing stays on chip from
one to the next, and equal products are searched once.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from jaxcodesign.hardware.machines.spec import Accelerator, Dataflow
from jaxcodesign.hardware.mapping import tilings
from jaxcodesign.hardware.mapping.tilings import Cost, Found, Objective
from jaxcodesign.programs.workload import Workload


class Scheduled(NamedTuple):
  """A product of a workload with its mapping.

  Attributes:
    name: Of the product.
    runs: Products [m, k] x [n, k], one after the other; costs are of one.
    found: The best mapping.
    fixed: Cost of SCALE-Sim's mapping, None where its tile fits no buffer.
  """

  name: str
  runs: int
  found: Found
  fixed: Cost | None


def schedule(
  workload: Workload,
  machine: Accelerator,
  *,
  objective: Objective = "time",
  dataflows: tuple[Dataflow, ...] = (),
) -> Iterator[Scheduled]:
  """Searches the mapping of one product after the other.

  Args:
    workload: From `trace` or `topology.read`.
    machine: Of parallel cells; leaves are known.
    objective: As for `mapping.search`.
    dataflows: To choose from for each product; that of the machine if empty.

  Raises:
    ValueError: As `mapping.search`, naming the product.
  """
  seen: dict[tuple[int, int, int], tuple[Found, Cost | None]] = {}
  for g in workload.gemms:
    size = (g.m, g.k, g.n)
    if size not in seen:
      try:
        found = tilings.search(*size, machine, objective=objective, dataflows=dataflows)
      except ValueError as error:
        raise ValueError(f"{g.name}: {error}") from error
      seen[size] = (found, _fixed(size, machine))
    yield Scheduled(g.name, g.batch * g.count, *seen[size])


def _fixed(size: tuple[int, int, int], machine: Accelerator) -> Cost | None:
  try:
    return tilings.simulate(*size, machine, tilings.one_fold(*size, machine))
  except ValueError:  # a fold of it fits no buffer
    return None


def record(row: Scheduled) -> dict[str, Any]:
  """A mapped layer as JSON can hold it; costs are of one of its runs."""
  cost, cut = row.found.cost, row.found.mapping
  return {
    "name": row.name,
    "runs": row.runs,
    "dataflow": row.found.dataflow,
    "order": cut.order,
    "tile": [int(x) for x in jax.tree.leaves(cut)],
    "cycles": float(cost.cycles),
    "time_s": float(cost.time_s),
    "energy_j": float(cost.energy_j),
    "dram_bytes": float(cost.moved.dram_bytes),
    "fixed_time_s": None if row.fixed is None else float(row.fixed.time_s),
  }
