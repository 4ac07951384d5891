"""Constants are those of their sources; the twins have equal area."""

import csv
import dataclasses
import pathlib
import statistics

import jax
import pytest

from jaxcodesign import tree
from jaxcodesign.hardware import energy, presets, spec

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"


def test_cell_constants_are_the_published_synthesis():
  rows = csv.DictReader((REFERENCE / "pe_synthesis_45nm.csv").read_text().splitlines())
  cells = [
    r
    for r in rows
    if r["max_bits"] == r["min_bits"] == "8"
    and int(r["array_n"]) * int(r["array_m"]) >= 16
  ]
  mean = lambda column: statistics.mean(float(r[column]) for r in cells)
  assert energy.value("int8_mac_mm2") == pytest.approx(mean("area_um2_per_pe") * 1e-6)
  assert energy.value("int8_mac_j") == pytest.approx(
    mean("dyn_pJ_per_pe_cycle") * 1e-12
  )
  assert energy.value("int8_mac_leakage_w") == pytest.approx(
    mean("leak_nW_per_pe") * 1e-9
  )


def test_sram_law_follows_cacti():
  rows = csv.DictReader((REFERENCE / "cacti_sram.csv").read_text().splitlines())
  rows = [r for r in rows if r["tech_nm"] == "45" and r["width_bits"] == "64"]
  assert len(rows) == 13
  for r in rows:
    memory = spec.Sram(float(r["size_kb"]) * 1024)
    # The law is one for all nodes; its error at 45 nm is largest at 64 KB reads.
    assert memory.read_energy_j() * 8e12 == pytest.approx(float(r["read_pJ"]), rel=0.25)
    assert memory.write_energy_j() * 8e12 == pytest.approx(
      float(r["write_pJ"]), rel=0.15
    )
    # CACTI has a dip at 32 KB, 28 % below the law.
    assert memory.total_area_mm2() == pytest.approx(float(r["area_mm2"]), rel=0.29)
    assert memory.total_leakage_w() * 1e3 == pytest.approx(
      float(r["leak_mW"]), rel=0.22
    )


def test_every_constant_says_where_it_comes_from():
  for name, constant in energy.TABLE.items():
    assert constant.source and constant.unit, name
    assert constant.node_nm == 45 or "ratio" in constant.unit, name


@pytest.mark.parametrize("make", [presets.bit_serial_45nm, presets.tmac_45nm])
@pytest.mark.parametrize("cells", [64, 256, 1024])
def test_twins_fill_the_area_of_the_int8_array(make, cells):
  budget = presets.int8_45nm(cells // 8, 8).array_mm2()
  twin = make(budget)
  assert 0.9 * budget < twin.array_mm2() <= budget
  assert 0.8 <= twin.rows / twin.cols <= 1
  assert twin.rows == int(twin.rows) and twin.cols == int(twin.cols)


def test_serial_cells_have_the_published_efficiency():
  # Work per area and per joule against the parallel cell, at the quoted setting.
  parallel, serial = presets.int8_45nm().mac, presets.bit_serial_45nm().mac
  tmac = presets.tmac_45nm().mac
  rate = lambda cell, cycles: 1 / (cycles * cell.area_mm2)
  work = lambda cell, cycles: 1 / (cycles * cell.energy_j)
  assert rate(parallel, 1) / rate(serial, 8) == pytest.approx(1.8)
  assert rate(tmac, 3.75) / rate(serial, 8) == pytest.approx(2.4)
  assert work(parallel, 1) / work(serial, 8) == pytest.approx(2.0)
  assert work(tmac, 3.75) / work(serial, 8) == pytest.approx(3.0)


def test_leaves_carry_their_unit():
  machine = presets.int8_45nm()
  units = ("_s", "_j", "_bytes", "_bytes_s", "_hz", "_mm2", "_w", "_bits")
  plain = {"rows", "cols", "temperature", "vector/lanes"}
  for name in tree.names(machine):
    assert name in plain or name.endswith(units), name
  assert all(isinstance(leaf, float) for leaf in jax.tree.leaves(machine))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"rows": -4.0}, "Accelerator.rows=-4.0"),
    ({"clock_hz": float("nan")}, "Accelerator.clock_hz=nan"),
    ({"temperature": -1.0}, "Accelerator.temperature=-1.0"),
    ({"dataflow": "OS"}, "Accelerator.dataflow='OS' is none of os, ws, is"),
    ({"accounting": "scale-sim"}, "Accelerator.accounting='scale-sim'"),
  ],
)
def test_impossible_machines_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(presets.int8_45nm(), **change)


def test_impossible_parts_are_refused():
  with pytest.raises(ValueError, match=r"Mac\.kind='term-serial' is none of par"):
    dataclasses.replace(presets.tmac_45nm().mac, kind="term-serial")
  with pytest.raises(ValueError, match=r"Sram\.capacity_bytes=0"):
    spec.Sram(0)


def test_an_area_too_small_is_refused():
  with pytest.raises(ValueError, match="holds no tMAC cell"):
    presets.tmac_45nm(1e-9)
