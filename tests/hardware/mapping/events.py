"""The memory system as a queue of events, in whole numbers of plain Python."""

from collections import deque
import dataclasses
from fractions import Fraction
import heapq
import itertools
import math

import jax
import numpy as np

from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.mapping.loops import BUFFERS
from jaxcodesign.hardware.simulators import systolic

CLOCK = 2.0**29  # with powers of two for the bandwidth, every time is exact
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
