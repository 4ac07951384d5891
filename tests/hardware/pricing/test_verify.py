"""Verification agrees with plain counting, and notices every kind of corruption."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.pricing import verify
from jaxcodesign.hardware.simulators import activity, systolic
from jaxcodesign.programs.workload import Gemm

# Integers, in the operations of integers.

DATAFLOWS = ("os", "ws", "is")
ACCOUNTINGS = ("rtl", "scalesim")


def machine(dataflow, rows=4, cols=3):
  return presets.int8_45nm(rows, cols, dataflow=dataflow)


def gemm(m=11, k=9, n=7):
  return Gemm("", "layer", 1, m, k, n)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("cut", ["whole", "all", "distinct"])
def test_every_cut_counts_the_whole_product(dataflow, cut):
  found = verify.product(gemm(), machine(dataflow), cut=cut)
  up = lambda x, size: -(-x // size)
  m, k, n, r, c = 11, 9, 7, 4, 3
  results = m * n
  expected = {
    "os": (up(m, r) * up(n, c) * (k + 2 * r + c - 1), m * k * up(n, c),
           n * k * up(m, r), results, 0),
    "ws": (up(k, r) * up(n, c) * (3 * r + c + m - 2), m * k * up(n, c), n * k,
           results * up(k, r), results * (up(k, r) - 1)),
    "is": (up(k, r) * up(m, c) * (3 * r + c + n - 2), m * k, n * k * up(m, c),
           results * up(k, r), results * (up(k, r) - 1)),
  }[dataflow]  # fmt: skip
  assert found.counted == (expected[0], m * k * n, *expected[1:])
  assert found.utilization == found.closed_utilization
  assert found.utilization == m * k * n / (expected[0] * r * c)
  tiles = {"os": 3 * 3, "ws": 3, "is": 4}[dataflow]
  shapes = {"os": 4, "ws": 2, "is": 2}[dataflow]
  assert (found.simulated, found.of) == {
    "whole": (1, 1),
    "all": (tiles, tiles),
    "distinct": (shapes, tiles),
  }[cut]


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_tiles_cover_every_result_once(dataflow):
  seen = np.zeros((11, 7), int)
  for t in verify.tiles(gemm(), machine(dataflow), "all"):
    seen[t.row : t.row + t.rows, t.col : t.col + t.cols] += t.times
  assert (seen == 1).all()
  areas = [
    t.rows * t.cols * t.times
    for t in verify.tiles(gemm(), machine(dataflow), "distinct")
  ]
  assert sum(areas) == 11 * 7


def test_large_products_are_cut():
  assert verify.how(gemm(), machine("os")) == "whole"
  assert verify.how(gemm(4096, 4096, 4096), machine("os", 128, 128)) == "distinct"


def corrupted(monkeypatch, change, at=0):
  """Lets `change` alter what the simulator returns from its call number `at` on."""
  real, calls = systolic.simulate, []

  def simulate(*args, **options):
    calls.append(None)
    product, trace = real(*args, **options)
    return change(product, trace) if len(calls) > at else (product, trace)

  monkeypatch.setattr(systolic, "simulate", simulate)


def one_result(product, trace):
  return product.at[1, 0].add(1), trace


def one_cycle(product, trace):
  return product, trace._replace(busy=np.pad(trace.busy, ((0, 0), (0, 1))))


def one_more(field):
  def change(product, trace):
    return product, trace._replace(**{field: getattr(trace, field).at[0, 0].add(1)})

  return change


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      one_result,
      r"layer, tile of rows 0..3, columns 3..5: result \[1, 3\] is -?\d+ in ",
    ),
    (one_result, r"the array and -?\d+ in a @ b.T; 1 of 12 differ"),
    (one_cycle, r"layer, tile of rows 0..3, columns 3..5: cycles: 20 in .*, 19 in"),
    (one_more("busy"), r"busy: 109 in the simulator, 108 in the closed form"),
    (one_more("left_reads"), r"left reads: 37 in the simulator, 36 in"),
    (one_more("right_reads"), r"right reads: 28 in the simulator, 27 in"),
    (one_more("result_writes"), r"result writes: 13 in the simulator, 12 in"),
    (one_more("result_reads"), r"result reads: 1 in the simulator, 0 in"),
  ],
)
def test_a_corrupted_simulator_is_caught(change, message, monkeypatch):
  corrupted(monkeypatch, change, at=1)
  with pytest.raises(verify.Mismatch, match=message):
    verify.product(gemm(), machine("os"), cut="all")


def test_a_machine_that_is_no_array_of_cells_is_refused():
  half = dataclasses.replace(machine("os"), cols=2.5)
  with pytest.raises(ValueError, match=r"cols=2.5 cells cannot be simulated"):
    verify.product(gemm(), half)


SHAPES = [(5, 7, 6, 4, 3), (2, 9, 2, 4, 5), (1, 1, 1, 2, 2)]


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_activity_of_cells_is_that_of_the_trace(shape, dataflow, accounting):
  m, k, n, rows, cols = shape
  options = {"rows": rows, "cols": cols, "dataflow": dataflow, "accounting": accounting}
  fold = activity.first_fold(m, k, n, **options)
  ones = lambda length: np.ones((length, k), np.int8)
  # Without the product the compiler leaves out the array.
  run = jax.jit(lambda a, b: systolic.simulate(a, b, **options, toggles=False)[1])
  trace = run(ones(m), ones(n))
  states = np.stack([fold.states(cycle) for cycle in range(fold.cycles)])
  np.testing.assert_array_equal(
    (states == activity.MULTIPLYING).sum((1, 2)), trace.busy[0]
  )
  for state, cells in enumerate(fold.cells()):
    np.testing.assert_array_equal((states == state).sum((1, 2)), cells)
  loaded = (states[:, 0] == activity.LOADING).sum(1)
  reads = {"os": 0 * loaded, "ws": trace.right_reads[0], "is": trace.left_reads[0]}
  np.testing.assert_array_equal(loaded, reads[dataflow])
  if dataflow == "os" and accounting == "rtl":
    leaving = (states[:, -1] == activity.DRAINING).sum(1)
    np.testing.assert_array_equal(leaving[:-1], trace.result_writes[0, 1:])
    assert leaving[-1] == 0
    drains = states == activity.DRAINING
    first = drains.any((1, 2)).argmax()  # every sum that was made, then a row a cycle
    np.testing.assert_array_equal(
      drains[first], (states == activity.MULTIPLYING).any(0)
    )
    np.testing.assert_array_equal(drains[first + 1 :, 1:], drains[first:-1, :-1])
    assert not drains[:first].any() and not drains[first + 1 :, 0].any()
  else:
    assert not (states == activity.DRAINING).any()


def test_activity_refuses_what_the_array_refuses():
  with pytest.raises(ValueError, match="k=0"):
    activity.first_fold(3, 0, 3, rows=2, cols=2, dataflow="os")
