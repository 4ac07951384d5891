"""The memory simulator against events in fractions, closed forms, and its own laws."""

from collections import deque
import dataclasses
from fractions import Fraction
import heapq
import itertools
import math

import chex
from hypothesis import example, given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.mapping import loops, memory
from jaxcodesign.hardware.mapping.loops import BUFFERS, ORDERS, Mapping
from jaxcodesign.hardware.simulators import systolic

CLOCK = 2.0**29  # with powers of two for the bandwidth, every time is exact
DATAFLOWS = ("os", "ws", "is")
BYTES = {"ifmap": 1, "weight": 1, "ofmap": 4}
AXES = {"ifmap": "mk", "weight": "nk", "ofmap": "mn"}


def machine(capacities, *, rate=1.0, dataflow="os", accounting="rtl", array=(4, 3)):
  """An array with buffers of `capacities` bytes and `rate` bytes a cycle from DRAM."""
  a = presets.int8_45nm(*array, dataflow=dataflow)
  grown = {
    name: dataclasses.replace(getattr(a, name), capacity_bytes=float(size))
    for name, size in zip(BUFFERS, capacities)
  }
  dram = dataclasses.replace(a.dram, bandwidth_bytes_s=rate * CLOCK)
  return dataclasses.replace(
    a, clock_hz=CLOCK, dram=dram, accounting=accounting, **grown
  )


def tiles_in_order(size, mapping):
  """Start and length of every tile in each dimension, loop by loop."""
  cut = dict(zip("mkn", jax.tree.leaves(mapping)))
  spans = {
    d: [(s, min(cut[d], size[d] - s)) for s in range(0, size[d], cut[d])] for d in "mkn"
  }
  return [
    dict(zip(mapping.order, spans_))
    for spans_ in itertools.product(*(spans[d] for d in mapping.order))
  ]


class Events:
  """The machine as things that happen: a queue of transfers, slots, a busy array.

  Its time is whole ticks, of which a cycle has as many as the rate needs.
  """

  def __init__(self, sizes, a, mapping, latency=0):
    self.size, self.a = dict(zip("mkn", sizes)), a
    rate = Fraction(a.dram.bandwidth_bytes_s) / Fraction(a.clock_hz)
    self.cycle, self.byte = rate.numerator, rate.denominator  # ticks
    self.latency = latency * self.cycle
    self.tiles = tiles_in_order(self.size, mapping)
    self.whole = {
      b: BYTES[b] * math.prod(self.size[d] for d in AXES[b])
      <= getattr(a, b).capacity_bytes
      for b in BUFFERS
    }
    self.places = {b: math.inf if self.whole[b] else 2 for b in BUFFERS}
    self.used, self.peak = dict.fromkeys(BUFFERS, 0), dict.fromkeys(BUFFERS, 0)
    self.dram = dict.fromkeys(("ifmap", "weight", "sums_in", "sums_out", "results"), 0)
    self.loads, self.computes, self.writes = {}, {}, {}
    self.plan()
    self.run()

  @property
  def time(self):
    """Cycles until all is done."""
    return Fraction(self.now, self.cycle)

  def cycles(self, spans):
    """Starts and ends in cycles."""
    return {
      key: tuple(Fraction(x, self.cycle) for x in span) for key, span in spans.items()
    }

  def bytes_of(self, i, buffer):
    return BYTES[buffer] * math.prod(self.tiles[i][d][1] for d in AXES[buffer])

  def plan(self):
    """Which tile each step needs, who uses it last, and the queue of the channel."""
    self.stay, self.queue, self.last = {}, deque(), {}
    seen, now = {b: {} for b in BUFFERS}, dict.fromkeys(BUFFERS)
    asks = []
    for i, tile in enumerate(self.tiles):
      ask = []
      for b in BUFFERS:
        key = tuple(tile[d] for d in AXES[b])
        old = seen[b].get(key)
        if old is None or (now[b] != key and not self.whole[b]):
          seen[b][key] = i
          if b != "ofmap" or old is not None:
            ask.append(b)
        now[b] = key
        self.stay[i, b] = seen[b][key]
        self.last[b, self.stay[i, b]] = i
      asks.append(ask)
    self.asks = asks
    for i, ask in enumerate(asks):
      if i >= 2:
        self.queue.append(("write", i - 2, "ofmap"))
      self.queue += [("load", i, b) for b in ask]
    self.queue += [("write", i, "ofmap") for i in range(len(asks))[-2:]]

  def written(self, i):
    """Bytes that leave after tile i: results, or sums that must make room."""
    k = self.tiles[i]["k"]
    if sum(k) == self.size["k"]:
      return "results", self.bytes_of(i, "ofmap") // 4
    leaves = self.last["ofmap", self.stay[i, "ofmap"]] == i and not self.whole["ofmap"]
    return "sums_out", self.bytes_of(i, "ofmap") if leaves else 0

  def take(self, i, buffer, sign=1):
    self.places[buffer] -= sign
    self.used[buffer] += sign * self.bytes_of(i, buffer)
    self.peak[buffer] = max(self.peak[buffer], self.used[buffer])

  def run(self):
    self.heap, self.here, self.computed = [], set(), set()
    self.channel_idle = self.array_idle = True
    self.next, self.now = 0, 0
    while True:
      self.start_transfer()
      self.start_tile()
      if not self.heap:
        break
      self.now = self.heap[0][0]
      while self.heap and self.heap[0][0] == self.now:
        *_, what, i, b = heapq.heappop(self.heap)
        getattr(self, what)(i, b)
    assert not self.queue and self.next == len(self.tiles)

  def after(self, delay, *event):
    heapq.heappush(
      self.heap, (self.now + delay, len(self.heap) + 1000 * self.next, *event)
    )

  def start_transfer(self):
    while self.channel_idle and self.queue:
      what, i, b = self.queue[0]
      if what == "write":
        kind, size = self.written(i)
        if size and i not in self.computed:
          return
      else:
        if self.places[b] < 1:
          return
        kind, size = ("sums_in" if b == "ofmap" else b), self.bytes_of(i, b)
        self.take(i, b)
      self.queue.popleft()
      if size:
        self.dram[kind] += size
        (self.loads if what == "load" else self.writes)[i, b] = (
          self.now,
          self.now + size * self.byte,
        )
        self.channel_idle = False
        self.after(size * self.byte, f"end_{what}", i, b)

  def start_tile(self):
    i = self.next
    if not self.array_idle or i == len(self.tiles):
      return
    needs = {(self.stay[i, b], b) for b in ("ifmap", "weight")}
    needs |= {(i, "ofmap")} & {(i, b) for b in self.asks[i]}
    fresh = self.stay[i, "ofmap"] == i and "ofmap" not in self.asks[i]
    if not needs <= self.here or (fresh and self.places["ofmap"] < 1):
      return
    if fresh:
      self.take(i, "ofmap")
    m, k, n = (self.tiles[i][d][1] for d in "mkn")
    rows, cols = int(self.a.rows), int(self.a.cols)
    ticks = self.cycle * systolic.cycles(
      m, k, n, rows, cols, self.a.dataflow, self.a.accounting
    )  # fmt: skip
    self.computes[i] = (self.now, self.now + ticks)
    self.array_idle, self.next = False, i + 1
    self.after(ticks, "end_tile", i, "")

  def end_load(self, i, b):
    self.channel_idle = True
    self.after(self.latency, "arrive", i, b)

  def arrive(self, i, b):
    self.here.add((i, b))

  def end_write(self, i, b):
    self.channel_idle = True
    if not self.whole[b]:
      self.take(i, b, -1)

  def end_tile(self, i, _):
    self.array_idle = True
    self.computed.add(i)
    for b in ("ifmap", "weight"):
      if self.last[b, self.stay[i, b]] == i and not self.whole[b]:
        self.take(i, b, -1)


def walk(sizes, a, mapping):
  """Values between buffers and array, fold by fold: ifmap, weights, read, written."""
  moved, rows, cols = np.zeros(4, int), int(a.rows), int(a.cols)
  parts = lambda length, by: [min(by, length - s) for s in range(0, length, by)]
  for tile in tiles_in_order(dict(zip("mkn", sizes)), mapping):
    m, k, n = (tile[d][1] for d in "mkn")
    begun = tile["k"][0] > 0
    if a.dataflow == "os":
      for r, c in itertools.product(parts(m, rows), parts(n, cols)):
        moved += (r * k, c * k, begun * r * c, r * c)
      continue
    wide = n if a.dataflow == "ws" else m
    for c in parts(wide, cols):
      for j, r in enumerate(parts(k, rows)):
        left, right = (m * r, r * c) if a.dataflow == "ws" else (r * c, n * r)
        sums = c * (m if a.dataflow == "ws" else n)
        moved += (left, right, (begun or j > 0) * sums, sums)
  return moved


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
