"""The memory simulator against events in fractions, closed forms, and its own laws."""

import dataclasses
import itertools
import math

import chex
from hypothesis import example, given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.mapping import loops, memory
from jaxcodesign.hardware.mapping.loops import BUFFERS, ORDERS, Mapping
from jaxcodesign.hardware.simulators import systolic
from tests.hardware.mapping.events import (
  AXES,
  BYTES,
  CLOCK,
  Events,
  machine,
  tiles_in_order,
  walk,
)

DATAFLOWS = ("os", "ws", "is")


@st.composite
def cases(draw, count=12):
  """A product of `count` tiles, and buffers from just enough to everything."""
  counts = draw(st.sampled_from([
    c for c in itertools.product(range(1, count + 1), repeat=3) if math.prod(c) == count
  ]))  # fmt: skip
  tiles = draw(st.tuples(*[st.integers(1, 9)] * 3))
  sizes = tuple((c - 1) * t + draw(st.integers(1, t)) for c, t in zip(counts, tiles))
  size, cut = dict(zip("mkn", sizes)), dict(zip("mkn", tiles))
  capacities, generous = [], draw(st.booleans())  # both operands stay
  for b in BUFFERS:
    half = BYTES[b] * math.prod(min(cut[d], size[d]) for d in AXES[b])
    whole = BYTES[b] * math.prod(size[d] for d in AXES[b])
    some = [whole] if generous and b != "ofmap" else [2 * half, 2 * whole // 3, whole]
    capacities.append(max(2 * half, draw(st.sampled_from(some))))
  a = machine(
    capacities,
    rate=2.0 ** draw(st.integers(-3, 6)),
    dataflow=draw(st.sampled_from(DATAFLOWS)),
  )
  return sizes, a, Mapping(*tiles, draw(st.sampled_from(ORDERS)))


@jax.jit
def closed_form(nest, a, latency_s):
  a = dataclasses.replace(a, temperature=0.0)
  compute, moved = loops.totals(nest, a, 1.0)
  return (
    compute,
    moved,
    loops.bound_cycles(nest, a, 1.0, latency_s, compute, moved),
  )


@settings(max_examples=80)
@given(cases(), st.sampled_from([0, 1, 7, 40]))
# Operands stay and results are slow: only the result buffer holds the array up.
@example(((9, 6, 12), machine((60, 72, 72), rate=1 / 8), Mapping(3, 6, 3, "mnk")), 0)
def test_events_say_the_same(case, latency):
  sizes, a, mapping = case
  oracle = Events(sizes, a, mapping, latency)
  with jax.enable_x64(True):
    time_s, timeline = memory.simulate(*sizes, a, mapping, latency_s=latency / CLOCK)
    compute, moved, bounds = closed_form(
      loops.nest(*sizes, mapping), loops.numbers(a), latency / CLOCK
    )
    times, held = timeline.occupancy()
  t = jax.tree.map(np.asarray, timeline)
  assert t.cycles == oracle.time and float(time_s) == float(oracle.time) / CLOCK
  spans = [*oracle.cycles(oracle.computes).values()]
  assert [*zip(t.compute_start, t.compute_end)] == spans
  for (i, b), span in oracle.cycles(oracle.loads).items():
    j = BUFFERS.index(b)
    assert (t.load_start[i, j], t.load_end[i, j]) == span
  for (i, _), span in oracle.cycles(oracle.writes).items():
    assert (t.write_start[i], t.write_end[i]) == span
  assert [float(x) for x in t.moved[:5]] == [*oracle.dram.values()]
  assert [float(x) for x in t.moved] == [float(x) for x in moved]
  busy = sum(t.compute_end - t.compute_start)
  assert float(compute) == busy and busy + t.stalls.sum() + t.drain == t.cycles
  assert np.all(np.asarray(bounds) <= t.cycles)
  # Buffers: never more than they hold, and as much as the events say.
  assert np.all(np.diff(np.asarray(times), axis=0) >= 0)
  assert [*np.asarray(held).max(0)] == [*oracle.peak.values()]
  assert np.all(
    np.asarray(held).max(0) <= [getattr(a, b).capacity_bytes for b in BUFFERS]
  )
  ifmap, weight, read, written = walk(sizes, a, mapping)
  out = oracle.dram["sums_out"]
  assert (t.moved.ifmap_read, t.moved.weight_read) == (ifmap, weight)
  assert t.moved.ofmap_read == 4 * (read + sizes[0] * sizes[2]) + out
  assert t.moved.ofmap_written == 4 * written + oracle.dram["sums_in"]


@pytest.mark.parametrize("tiles", [(9, 7, 8), (5, 7, 8), (9, 7, 3)])
def test_one_and_two_tiles(tiles):
  a, mapping = (
    machine((400, 400, 800), rate=0.5, accounting="scalesim"),
    Mapping(*tiles),
  )
  with jax.enable_x64(True):
    _, timeline = memory.simulate(9, 7, 8, a, mapping)
  oracle = Events((9, 7, 8), a, mapping)
  assert float(timeline.cycles) == oracle.time
  steps = len(oracle.tiles)
  assert timeline.write_end.shape == (steps,) and timeline.load_start.shape == (
    steps,
    3,
  )


LAYER = (50, 70, 40)
MAPPINGS = [Mapping(16, 24, 9, order) for order in ORDERS]
SMALL = (1000, 800, 1400)  # no operand stays


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_bandwidth_decides_between_array_and_channel(dataflow):
  a = machine(SMALL, dataflow=dataflow)

  def run(rate):
    dram = dataclasses.replace(a.dram, bandwidth_bytes_s=rate * CLOCK)
    fed = dataclasses.replace(a, dram=dram)
    return memory.simulate(*LAYER, fed, MAPPINGS[5])[1].cycles

  with jax.enable_x64(True):
    rates = jnp.array([1e-6, *(2.0 ** np.arange(-4, 8, 0.5)), 1e30])
    cycles = jax.jit(jax.vmap(run))(rates).tolist()
    nest = loops.nest(*LAYER, MAPPINGS[5])
    closed, moved, _ = closed_form(nest, loops.numbers(a), 0.0)
  spans = tiles_in_order(dict(zip("mkn", LAYER)), MAPPINGS[5])
  compute = sum(
    systolic.cycles(*(s[d][1] for d in "mkn"), 4, 3, dataflow) for s in spans
  )
  assert cycles[-1] == compute == float(closed)
  assert cycles[0] == pytest.approx(float(moved.dram_bytes) / 1e-6, rel=1e-4)
  assert cycles == sorted(cycles, reverse=True) and len({*cycles}) > 10


def scaled(a, latency, knob, step):
  """Clock, bandwidth or latency longer by a share `step`."""
  by = [1 + step * (i == knob) for i in range(3)]
  rate = a.dram.bandwidth_bytes_s * by[1]
  dram = dataclasses.replace(a.dram, bandwidth_bytes_s=rate)
  faster = dataclasses.replace(a, clock_hz=a.clock_hz * by[0], dram=dram)
  return faster, latency * by[2]


def test_gradients_are_finite_differences_and_nothing_recompiles():
  """Bandwidth, clock, latency; capacities change without a new trace."""

  @jax.jit
  @chex.assert_max_traces(n=1)
  def log_time(a, latency_s):
    return jnp.log(memory.simulate(*LAYER, a, MAPPINGS[3], latency_s=latency_s)[0])

  with jax.enable_x64(True):
    slope = jax.jit(jax.grad(log_time, argnums=(0, 1)))
    for rate in (0.05, 1.03, 5.7, 900.0):
      a = jax.tree.map(jnp.float64, machine(np.multiply(SMALL, 1 + rate), rate=rate))
      latency = jnp.float64(13.7 / CLOCK)
      da, dlatency = slope(a, latency)
      slopes = (
        da.clock_hz * a.clock_hz,
        da.dram.bandwidth_bytes_s * a.dram.bandwidth_bytes_s,
        dlatency * latency,
      )
      for knob, found in enumerate(slopes):
        more, less = (log_time(*scaled(a, latency, knob, h)) for h in (1e-7, -1e-7))
        wanted = float(more - less) / 2e-7
        assert float(found) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
      assert float(da.clock_hz) < 0 or rate < 0.1
      assert float(da.ifmap.capacity_bytes) == 0  # large enough or not: no slope


@pytest.mark.parametrize("latency", [0, 500])
@pytest.mark.parametrize("rate", [0.25, 4.0, 64.0])
@pytest.mark.parametrize(
  ("order", "sizes", "tiles"),
  [
    ("mkn", (24, 24, 480), (8, 8, 6)),
    ("knm", (640, 24, 18), (8, 8, 6)),
    ("nmk", (48, 1920, 27), (16, 24, 9)),
  ],
)
def test_steady_state_is_the_mean_cycle_of_the_recurrence(
  order, sizes, tiles, rate, latency
):
  """Two tiles far into the innermost loop of the middle turns, against the formula."""
  a, mapping = machine((1000, 800, 1300), rate=rate), Mapping(*tiles, order)
  options = {"latency_s": latency / CLOCK}
  with jax.enable_x64(True):
    _, timeline = memory.simulate(*sizes, a, mapping, **options)
    steady = float(memory.steady_cycles(*sizes, a, mapping, **options))
  counts = {d: -(-s // t) for d, s, t in zip("mkn", sizes, tiles)}
  inner = counts[order[2]]
  assert inner == 80
  outer = counts[order[0]] // 2 * counts[order[1]] + counts[order[1]] // 2
  at = outer * inner + inner - 4
  start = np.asarray(timeline.compute_start)
  assert (start[at + 2] - start[at]) / 2 == steady
