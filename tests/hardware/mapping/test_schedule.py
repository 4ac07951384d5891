"""Mapped workloads: the search's optimum, SCALE-Sim's mapping beside it."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.machines.spec import Sram
from jaxcodesign.hardware.mapping import memory, schedule, tilings
from jaxcodesign.programs.workload import Gemm, Workload

SMALL = dataclasses.replace(
  presets.int8_45nm(4, 4), ifmap=Sram(1024.0), weight=Sram(1024.0), ofmap=Sram(1024.0)
)
WORK = Workload(
  (Gemm("", "a", 1, 90, 40, 50), Gemm("", "b", 3, 20, 60, 8, count=2),
   Gemm("", "again", 1, 90, 40, 50))
)  # fmt: skip


def test_every_product_has_the_mapping_that_a_search_finds():
  rows = list(schedule.schedule(WORK, SMALL, objective="dram"))
  assert [(x.name, x.runs) for x in rows] == [("a", 1), ("b", 6), ("again", 1)]
  assert rows[2].found is rows[0].found
  for row, g in zip(rows, WORK.gemms):
    best = tilings.search(g.m, g.k, g.n, SMALL, objective="dram")
    assert row.found.mapping == best.mapping
    assert row.found.cost.moved.dram_bytes == best.cost.moved.dram_bytes
    assert row.fixed is not None
    assert row.fixed.moved.dram_bytes >= row.found.cost.moved.dram_bytes


@pytest.mark.parametrize("tiles", [(90, 40, 50), (16, 8, 12), (90, 4, 4)])
def test_a_mapping_costs_what_the_simulator_finds(tiles):
  room = dataclasses.replace(SMALL, ifmap=Sram(8192.0), weight=Sram(8192.0),
                             ofmap=Sram(65536.0))  # fmt: skip
  cut = tilings.Mapping(*tiles, "nkm")
  cost = tilings.simulate(90, 40, 50, room, cut)
  with jax.enable_x64(True):
    seconds, timeline = memory.simulate(90, 40, 50, room, cut)
    priced = tilings.evaluate(90, 40, 50, room, cut)
  assert cost.time_s == float(seconds) and cost.cycles == float(timeline.cycles)
  assert cost.moved.dram_bytes == float(timeline.moved.dram_bytes)
  # The closed form has the same bytes, and waits no longer.
  assert cost.moved == jax.tree.map(float, priced.moved)
  assert cost.time_s >= float(priced.time_s)
  watts = room.leakage_w() + 16 * room.mac.idle_j * room.clock_hz
  more = (cost.time_s - float(priced.time_s)) * watts
  np.testing.assert_allclose(cost.energy_j, float(priced.energy_j) + more, rtol=1e-9)


def test_what_nobody_would_wait_for_is_refused():
  cut = tilings.Mapping(1, 1, 1)
  for run in (tilings.simulate, memory.simulate):
    with pytest.raises(ValueError, match=r"68,719,476,736 tiles are too many"):
      run(4096, 4096, 4096, SMALL, cut)
  with pytest.raises(ValueError, match="k=0: a size is at least 1"):
    tilings.evaluate(3, 0, 3, SMALL, cut)


def test_a_product_that_fits_nowhere_is_named():
  wide = dataclasses.replace(SMALL, rows=256.0, cols=256.0)
  big = Workload((Gemm("", "w", 1, 5000, 5000, 5000),))
  with pytest.raises(ValueError, match=r"^w: .*bytes"):
    list(schedule.schedule(big, wide))
