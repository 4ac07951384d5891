"""Rows of tables: kinds of layers, ways to store weights, networks against another."""

import csv
import dataclasses
import math

import numpy as np
import pytest

from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.mapping import stored
from jaxcodesign.hardware.pricing import layers
from jaxcodesign.numerics.sparsity import column_combining
from jaxcodesign.programs.workload import Gemm, VectorOp, Workload


def gemm(rhs, *sizes, kind="dot", window=1, count=1):
  return Gemm("", rhs, *sizes, kind=kind, window=window, count=count)


NET = Workload(
  (
    gemm("stem", 1, 64, 27, 24, kind="conv", window=9),
    gemm("full", 1, 16, 216, 30, kind="conv", window=9),
    gemm("deep", 30, 16, 9, 1, kind="conv", window=9),
    gemm("groups", 2, 16, 135, 15, kind="conv", window=9),
    gemm("point", 1, 16, 30, 94, kind="conv", count=2),
    gemm("", 4, 6, 8, 6),
    gemm("head", 1, 1, 94, 96),
  ),
  (VectorOp("max", 1000, 8000),),
)


def test_kinds_are_told_by_what_is_multiplied():
  assert layers.kinds(NET) == [
    "stem", "convolution", "depthwise", "grouped", "pointwise", "activations", "dense"
  ]  # fmt: skip
  later = layers.kinds(Workload(NET.gemms[1::-1]))
  assert later == ["stem", "convolution"]  # the first one, whatever its name


def test_sums_by_kind_are_the_whole():
  twice = Workload((*NET.gemms, dataclasses.replace(NET.gemms[4], rhs="point2")))
  priced = layers.price(twice, presets.int8_45nm(8, 8, dataflow="ws"))
  rows = layers.by_kind(priced)
  assert [row.layers for row in rows] == [1, 1, 1, 1, 2, 1, 1]
  assert sum(row.macs for row in rows) == twice.macs
  for total in ("macs_share", "cycles_share"):
    assert sum(getattr(row, total) for row in rows) == pytest.approx(1)
  used = sum(row.utilization * row.cycles for row in rows)
  assert used / sum(row.cycles for row in rows) == pytest.approx(
    float(priced.report.utilization)
  )
  joules = float(np.sum(priced.report.product_energy_j))
  assert sum(row.energy_j for row in rows) == pytest.approx(joules)


def test_ways_to_store_weights_stand_side_by_side():
  """Dense, unstructured, which gains nothing, and combined."""
  rng = np.random.default_rng(0)
  full = rng.integers(1, 9, (96, 94))
  few = full * (rng.random((96, 94)) < 0.16)
  groups = column_combining.group_columns(few, alpha=8, gamma=0.5)
  packed = column_combining.pack(column_combining.prune_conflicts(few, groups), groups)
  work = Workload((gemm("head", 1, 40, 94, 96), gemm("tail", 1, 40, 96, 10)))
  plain = presets.int8_45nm(32, 32, dataflow="ws")
  cases = [
    ("dense", plain, {}),
    ("unstructured", plain, {"head": stored.dense(few)}),
    ("combined", presets.mx(plain), {"head": stored.packed(packed)}),
  ]
  rows = layers.compare(work, cases)
  at = {(row.title, row.name): row for row in rows}
  assert len(at) == 9
  for title, _, _ in cases:
    two = at[title, "head"], at[title, "tail"]
    total = at[title, "total"]
    assert total.cycles == sum(row.cycles for row in two)
    assert total.tiles == sum(row.tiles for row in two)
    assert total.edp_js == pytest.approx(total.energy_j * total.time_s)
    for row in two:
      assert row.columns and row.outputs
      tiles = math.ceil(row.outputs / 32) * math.ceil(row.columns / 32)
      assert row.tiles == row.folds == tiles
  dense, few_row, combined = (at[title, "head"] for title, _, _ in cases)
  assert (dense.tiles, few_row.tiles, combined.tiles) == (9, 9, 3)
  assert combined.columns == groups.count <= 20
  assert few_row.cycles == dense.cycles and few_row.area_mm2 == dense.area_mm2
  assert combined.cycles < dense.cycles / 2.5 and combined.area_mm2 > dense.area_mm2
  kept = np.count_nonzero(np.asarray(packed.values)) / np.count_nonzero(few)
  gain = kept * few_row.cycles / combined.cycles
  assert combined.utilization == pytest.approx(gain * few_row.utilization)
  table = list(csv.DictReader(layers.compared_csv(rows).splitlines()))
  assert [row["name"] for row in table] == ["head", "tail", "total"] * 3
  assert float(table[6]["cycles"]) == combined.cycles and table[8]["columns"] == ""
  with pytest.raises(ValueError, match="title 'dense' is there twice"):
    layers.compare(work, [cases[0], cases[0]])


def test_two_of_four_halves_the_tiles():
  full = np.ones((64, 128), int)
  full[:, 2::4] = full[:, 3::4] = 0
  work = Workload((gemm("w", 1, 40, 128, 64),))
  plain = presets.int8_45nm(32, 32, dataflow="ws")
  rows = layers.compare(
    work,
    [
      ("dense", plain, {}),
      ("2:4", presets.mx(plain, 4), {"w": stored.n_of_m(full, 2, 4)}),
    ],
  )
  assert [row.tiles for row in rows] == [8, 8, 4, 4]
  assert rows[2].columns == 64 and rows[2].cycles * 2 == rows[0].cycles


def test_savings_are_ratios_of_totals():
  machine = presets.int8_45nm(8, 8)
  own, other = (
    layers.price(Workload(gemms), machine) for gemms in (NET.gemms[2:3], NET.gemms)
  )
  found = layers.saved(own, other)
  assert found.macs == NET.macs / NET.gemms[2].macs
  assert found.cycles == pytest.approx(float(other.report.cycles / own.report.cycles))
  assert found.utilization == pytest.approx(own.layers[0].utilization)
  with pytest.raises(ValueError, match="on the same machine"):
    layers.saved(own, layers.price(NET, presets.int8_45nm(4, 4)))
