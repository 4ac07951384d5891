"""The search against exhaustive Python, SCALE-Sim's mapping, and laws of its own."""

import csv
import dataclasses
import functools
from functools import partial
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.mapping import memory, tilings
from jaxcodesign.hardware.mapping.loops import BUFFERS, ORDERS, Mapping
from tests.hardware.mapping.events import CLOCK, Events, machine, tiles_in_order, walk
from tests.hardware.mapping.test_memory import LAYER, MAPPINGS, SMALL

TABLE = Path(__file__).parents[2] / "reference/scalesim.csv"
ROWS = list(csv.DictReader(TABLE.read_text().splitlines()))
OBJECTIVES = ("time", "energy", "edp", "dram")


def of_row(row):
  """Sizes and accelerator of a SCALE-Sim run: its array, dataflow and buffers."""
  a = presets.int8_45nm(int(row["rows"]), int(row["cols"]), dataflow=row["dataflow"])
  buffers = {}
  for name, theirs in zip(BUFFERS, ("ifmap", "filter", "ofmap")):
    kib = int(row[f"{theirs}_sram_kb"])
    buffers[name] = presets.Sram(1024.0 * kib)
  sizes = tuple(int(row[name]) for name in "MKN")
  # Of one bank each: banks decide an energy alone, and every number of them compiles.
  return sizes, dataclasses.replace(a, accounting="scalesim", **buffers)


def joules_of_bytes(a):
  """Joules a byte read from and written to each buffer, and watts that leak."""
  read_j = {b: float(getattr(a, b).read_energy_j()) for b in BUFFERS}
  write_j = {b: float(getattr(a, b).write_energy_j()) for b in BUFFERS}
  return read_j, write_j, float(a.leakage_w())


def by_hand(sizes, a, tiling, latency, joules_of):
  """Seconds, joules and DRAM bytes by the event simulator and a walk over folds."""
  events = Events(sizes, a, tiling, latency)
  seconds, dram = float(events.time) / CLOCK, sum(events.dram.values())
  ifmap, weight, read, written = walk(sizes, a, tiling)
  (m, k, n), moved = sizes, events.dram
  read_j, write_j, leakage_w = joules_of
  macs, idle = m * k * n, a.rows * a.cols * float(events.time) - m * k * n
  joules = (
    macs * a.mac.energy_j
    + idle * a.mac.idle_j
    + ifmap * read_j["ifmap"]
    + weight * read_j["weight"]
    + (4 * (read + m * n) + moved["sums_out"]) * read_j["ofmap"]
    + moved["ifmap"] * write_j["ifmap"]
    + moved["weight"] * write_j["weight"]
    + (4 * written + moved["sums_in"]) * write_j["ofmap"]
    + dram * a.dram.access_j
    + seconds * leakage_w
  )
  return {
    "time": (seconds, dram),
    "energy": (joules, seconds),
    "edp": (joules * seconds, seconds),
    "dram": (dram, seconds),
  }


def ladder(size, unit):
  return sorted({min(size, unit * 2**j) for j in range(12)})


@pytest.mark.parametrize(
  ("sizes", "rate", "latency"),
  [((30, 36, 44), 0.25, 0), ((51, 21, 44), 4.0, 400), ((68, 69, 20), 16.0, 150)],
)
def test_search_finds_what_exhaustive_python_finds(sizes, rate, latency, monkeypatch):
  monkeypatch.setattr(tilings, "_BATCH", 2)  # few at a time: the bound must be right
  tried, room = {}, np.array((1024, 1100, 1600))
  held = lambda m, k, n: np.array((m * k, k * n, 4 * m * n))
  for dataflow in ("os", "ws"):
    a = machine(room, rate=rate, dataflow=dataflow, array=(8, 12))
    joules_of = joules_of_bytes(a)
    # n lies along the columns of both, m and k along the rows or in time.
    for *tiles, order in itertools.product(*map(ladder, sizes, (8, 8, 12)), ORDERS):
      tiling = Mapping(*tiles, order)
      if np.all((2 * held(*tiles) <= room) | (held(*sizes) <= room)):
        tried[dataflow, *tiles, order] = by_hand(sizes, a, tiling, latency, joules_of)
  for objective in OBJECTIVES:
    found = tilings.search(
      *sizes,
      a,
      objective=objective,
      dataflows=("os", "ws"),
      latency_s=latency / CLOCK,
    )
    best = min(costs[objective] for costs in tried.values())
    cost, t = found.cost, found.mapping
    mine = {
      "time": (cost.time_s, cost.moved.dram_bytes),
      "energy": (cost.energy_j, cost.time_s),
      "edp": (cost.edp_js, cost.time_s),
      "dram": (cost.moved.dram_bytes, cost.time_s),
    }[objective]
    assert mine == pytest.approx(best, rel=1e-12)
    same = tried[found.dataflow, t.tile_m, t.tile_k, t.tile_n, t.order]
    assert same[objective] == pytest.approx(best, rel=1e-12)
    assert found.considered == len(tried) and 0 < found.simulated <= len(tried)


@pytest.mark.parametrize("row", ROWS[::43], ids=lambda r: f"{r['layer']}-{r['rows']}")
def test_search_beats_the_mapping_of_scalesim(row):
  sizes, a = of_row(row)
  fixed = Events(sizes, a, tilings.one_fold(*sizes, a))
  quickest = tilings.search(*sizes, a).cost
  leanest = tilings.search(*sizes, a, objective="dram").cost
  assert quickest.cycles <= float(fixed.time)
  (m, k, n), leanest_bytes = sizes, leanest.moved.dram_bytes
  assert m * k + n * k + m * n <= leanest_bytes <= sum(fixed.dram.values())


def test_one_fold_is_the_mapping_of_scalesim():
  """Its folds, cycles and buffer reads, given room for whole folds."""
  priced = jax.jit(tilings.evaluate)
  for row in ROWS[::4]:
    sizes, a = of_row(row)
    large = {b: dataclasses.replace(a.ifmap, capacity_bytes=2.0**40) for b in BUFFERS}
    a = dataclasses.replace(a, **large)
    tiling = tilings.one_fold(*sizes, a)
    (m, k, n), (r, c) = sizes, (int(a.rows), int(a.cols))
    high, wide = {"os": (m, n), "ws": (k, n), "is": (k, m)}[a.dataflow]
    letters = {"os": "mn", "ws": "kn", "is": "km"}[a.dataflow]
    folds = [(i, j) for j in range(0, wide, c) for i in range(0, high, r)]
    tiles = tiles_in_order(dict(zip("mkn", sizes)), tiling)
    assert folds == [tuple(tile[d][0] for d in letters) for tile in tiles]
    assert len(folds) == int(row["folds"])
    with jax.enable_x64(True):
      a, tiling = jax.tree.map(np.float64, (a, tiling))
      cost = priced(*map(np.float64, sizes), a, tiling)
    assert int(cost.compute_cycles) == int(row["demand_rows"])
    assert int(cost.moved.ifmap_read) == int(row["sram_ifmap_reads"])
    assert int(cost.moved.weight_read) == int(row["sram_filter_reads"])


def test_larger_buffers_are_never_worse():
  previous = {"dram": np.inf, "time": np.inf}
  for grown in (1, 1.5, 2, 4, 16, 64):
    a = machine(np.multiply((1024, 1100, 1600), grown), rate=2.0, array=(8, 12))
    for objective in previous:
      cost = tilings.search(100, 120, 90, a, objective=objective).cost
      now = {"dram": cost.moved.dram_bytes, "time": cost.time_s}[objective]
      assert now <= previous[objective]
      previous[objective] = now
  assert previous["dram"] == 100 * 120 + 90 * 120 + 100 * 90


def test_other_sizes_and_numbers_are_not_compiled_again(monkeypatch):
  a = machine((4096, 4096, 8192), rate=2.0, array=(8, 12))
  tilings.search(100, 120, 90, a)

  def traced(*_):
    pytest.fail("traced again")

  monkeypatch.setattr(tilings, "_price", traced)
  monkeypatch.setattr(memory, "serve", traced)
  faster = machine((5000, 6000, 9000), rate=3.0, array=(16, 8))
  assert tilings.search(77, 130, 55, faster, objective="edp").simulated


WIDE, TILES = (196.0, 576.0, 100.0), (24.7, 61.3, 29.2)


def relaxed(tiles, a, order="knm"):
  """Logarithms of seconds, joules and DRAM bytes."""
  cost = tilings.evaluate(*WIDE, a, Mapping(*tiles, order))
  return jnp.log(jnp.stack([cost.time_s, cost.energy_j, cost.moved.dram_bytes]))


@functools.cache
def warm(dataflow):
  """Logarithms of the costs and their slopes along a direction, by temperature."""
  a = presets.int8_45nm(16, 16, dataflow=dataflow)

  def price(temperature, tiles, direction):
    hot = dataclasses.replace(a, temperature=temperature)
    return jax.jvp(lambda tiles: relaxed(tiles, hot), (tiles,), (direction,))

  return jax.jit(price)


@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
def test_relaxed_tiles_have_the_slopes_of_finite_differences(dataflow):
  with jax.enable_x64(True):
    price = partial(warm(dataflow), np.float64(0.2))
    slopes = np.stack([price(np.array(TILES), d)[1] for d in np.eye(3)])
    for i, step in enumerate(1e-5 * np.eye(3)):  # slopes [tiles, costs]
      up, down = (price(np.array(TILES) + s, step)[0] for s in (step, -step))
      wanted = (np.asarray(up) - np.asarray(down)) / 2e-5
      np.testing.assert_allclose(slopes[i], wanted, rtol=1e-4, atol=1e-9)
    assert np.all(np.abs(slopes).max(axis=0) > 1e-4)
    if dataflow == "os":  # and backwards
      hot = dataclasses.replace(presets.int8_45nm(16, 16), temperature=0.2)
      back = jax.jit(jax.jacrev(lambda tiles: relaxed(tiles, hot)))(np.array(TILES))
      np.testing.assert_allclose(back.T, slopes, rtol=1e-9, atol=1e-12)


def test_the_relaxed_cost_tends_to_the_exact_one():
  with jax.enable_x64(True):
    for tiles in (np.array((32.0, 100.0, 40.0)), np.array((50.0, 576.0, 16.0))):
      hot = lambda t, x=tiles: np.asarray(warm("os")(np.float64(t), x, x)[0])
      off = [np.max(np.abs(hot(t) - hot(0.0))) for t in (0.3, 1e-6, 1e-8)]
      assert off[0] < 0.3 and off[1] < 1e-2 and off[2] < 1e-3


def test_what_does_not_fit_costs_forever():
  a = presets.int8_45nm()
  cost = jax.jit(tilings.evaluate)(4096, 4096, 4096, a, Mapping(4096, 32, 32))
  assert cost.time_s == cost.energy_j == jnp.inf
  np.testing.assert_allclose(cost.fill, [4.0, 1 / 64, 16.0])


def test_searches_that_cannot_be_are_refused():
  a = presets.int8_45nm()
  with pytest.raises(ValueError, match="objective='speed': time, energy, edp, dram"):
    tilings.search(8, 8, 8, a, objective="speed")
  with pytest.raises(ValueError, match="clock_hz is traced: a search returns static"):
    jax.grad(
      lambda hz: (
        tilings.search(8, 8, 8, dataclasses.replace(a, clock_hz=hz)).cost.time_s
      )
    )(5e8)
  with pytest.raises(ValueError, match="ofmap buffer is too small: a tile needs 4096"):
    tilings.search(64, 64, 64, dataclasses.replace(a, ofmap=presets.Sram(8191.0)))
  with pytest.raises(ValueError, match=r"Accelerator\.ifmap.*"):
    tilings.search(
      64, 64, 64, machine((512, 1e4, 1e4), array=(4, 4)), objective="energy"
    )
  with pytest.raises(ValueError, match="k=0: a size is an integer"):
    tilings.search(8, 0, 8, a)
  with pytest.raises(ValueError, match="ifmap buffer is too small"):
    tilings.one_fold(64, 64, 64, dataclasses.replace(a, ifmap=presets.Sram(2047.0)))


def test_serial_cells_take_their_cycles():
  a = machine((1e6, 1e6, 1e6), rate=1e20)
  serial = dataclasses.replace(a, mac=dataclasses.replace(a.mac, kind="bit_serial"))
  _, one = memory.simulate(8, 10, 6, a, Mapping(8, 10, 6))
  _, eight = memory.simulate(8, 10, 6, serial, Mapping(8, 10, 6), cycles_per_mac=8.0)
  assert float(eight.cycles - one.cycles) == 2 * 2 * 7 * 10  # folds, more, steps
  with pytest.raises(ValueError, match="bit_serial cell depend on its operands: pass"):
    memory.simulate(8, 10, 6, serial, Mapping(8, 10, 6))


@pytest.mark.parametrize(
  ("buffer", "capacities", "need", "tiles"),
  [
    ("ifmap", (767, 800, 1400), 384, "tile_m or tile_k"),
    ("weight", (1000, 431, 1400), 216, "tile_n or tile_k"),
    ("ofmap", (1000, 800, 1151), 576, "tile_m or tile_n"),
  ],
)
def test_a_buffer_below_one_tile_is_refused(buffer, capacities, need, tiles):
  a = machine(capacities)
  with pytest.raises(ValueError, match=f"{buffer} buffer is too small.*{need} bytes.*"):
    memory.simulate(*LAYER, a, MAPPINGS[0])
  with pytest.raises(
    ValueError, match=f"make {tiles} smaller, or Accelerator.{buffer}"
  ):
    memory.simulate(*LAYER, a, MAPPINGS[0])


def test_a_traced_capacity_that_is_too_small_takes_forever():
  run = jax.jit(lambda a: memory.simulate(*LAYER, a, MAPPINGS[0])[0])
  assert run(machine((768, 432, 1151))) == jnp.inf
  assert run(machine((768, 432, 1152))) < 1


def test_what_is_no_mapping_is_refused():
  a = machine(SMALL)
  with pytest.raises(ValueError, match="order='mmk' is none of mkn, mnk"):
    Mapping(1, 1, 1, "mmk")
  with pytest.raises(ValueError, match="tile_k=0: a tile is at least 1"):
    Mapping(1, 0, 1)
  with pytest.raises(ValueError, match=r"tile_n=2.5: a tile that is simulated is one"):
    memory.simulate(*LAYER, a, Mapping(1, 1, 2.5))
  with pytest.raises(ValueError, match=r"tile_m=.*`mapping.evaluate` prices"):
    jax.jit(lambda t: memory.simulate(*LAYER, a, Mapping(t, 1, 1))[0])(2)
  with pytest.raises(ValueError, match="k=0: a size is an integer"):
    memory.simulate(4, 0, 4, a, Mapping(1, 1, 1))
  with pytest.raises(ValueError, match=r"latency_s=-1.0 must not be negative"):
    memory.simulate(*LAYER, a, MAPPINGS[0], latency_s=-1.0)
  with pytest.raises(ValueError, match="cycles_per_mac=0 must be positive"):
    memory.simulate(*LAYER, a, MAPPINGS[0], cycles_per_mac=0)
