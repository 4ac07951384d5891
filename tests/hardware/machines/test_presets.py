"""Constants are those of their sources; the twins have equal area."""

import csv
import dataclasses
import pathlib
import re
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import tree
from jaxcodesign.hardware.machines import energy, presets, spec, sram
from jaxcodesign.hardware.mapping.fold_cycles import fold_cycles
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.programs.workload import Gemm, VectorOp, Workload

REFERENCE = pathlib.Path(__file__).parents[2] / "reference"


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


def test_memory_constants_are_the_smallest_of_cacti():
  for name, quantity in (
    ("sram_read_j", "read_j"),
    ("sram_write_j", "write_j"),
    ("sram_mm2", "area_mm2"),
    ("sram_leakage_w", "leakage_w"),
  ):
    wanted = energy.value(name)
    assert sram.smallest(quantity, 45) == pytest.approx(wanted, rel=1e-12)
    assert getattr(spec.Sram(65536.0), quantity) == pytest.approx(wanted, rel=1e-12)


def test_every_constant_says_where_it_comes_from():
  for name, constant in energy.TABLE.items():
    assert constant.source and constant.unit, name
    assert constant.node_nm in (40, 45) or "ratio" in constant.unit, name
    assert constant.value > 0 or name == "logic_w_exponent", name


def test_every_table_has_a_source_and_is_the_reference():
  tables = pathlib.Path(energy.__file__).parent / "tables"
  assert {file.name for file in tables.iterdir()} == set(energy.FILES)
  for file, source in energy.FILES.items():
    assert source
    assert (tables / file).read_bytes() == (REFERENCE / file).read_bytes()
    rows = csv.DictReader((REFERENCE / file).read_text().splitlines())
    assert energy.table(file) == tuple(
      {name: float(x) for name, x in row.items()} for row in rows
    )
  with pytest.raises(ValueError, match=r"'pe\.csv' has no source in FILES"):
    energy.table("pe.csv")


def test_leakage_of_memories_has_no_trend_in_the_node():
  """What the exponent of 0 for logic is taken from: a factor of 2.2 at 64 KiB."""
  at_64_kib = [float(sram.cost("leakage_w", 65536.0, node_nm=n)) for n in sram.NODES_NM]
  assert max(at_64_kib) / min(at_64_kib) < 2.2
  assert at_64_kib != sorted(at_64_kib) and at_64_kib != sorted(at_64_kib)[::-1]


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


@pytest.mark.parametrize(
  ("make", "joules", "um2", "size"),
  [
    (presets.int8_45nm, 0.5938e-12, 1347, (20, 21)),
    (presets.bit_serial_45nm, 0.1020e-12, 245.0, (48, 49)),
  ],
)
def test_machines_with_mx_cells_are_those_of_the_docstring(make, joules, um2, size):
  plain = make()
  grown = presets.mx(plain)
  assert grown.name == f"{plain.name} MX8" and grown.mac.inputs == 8
  assert (grown.rows, grown.cols) == (plain.rows, plain.cols)
  assert grown.mac.energy_j == pytest.approx(joules, rel=1e-3)
  assert grown.mac.area_mm2 == pytest.approx(um2 * 1e-6, rel=1e-3)
  room = float(presets.int8_45nm().array_mm2())
  fitted = presets.mx(plain, array_mm2=room)
  assert (fitted.rows, fitted.cols) == size
  assert room * 0.95 < fitted.array_mm2() <= room
  assert dataclasses.replace(fitted, rows=plain.rows, cols=plain.cols) == grown
  with pytest.raises(ValueError, match=r"holds no .* MX8 cell of"):
    presets.mx(plain, array_mm2=1e-4)


def test_mx_cells_are_priced_at_the_node_of_the_machine():
  small, large = presets.tpu_like(), presets.int8_45nm()
  more = [presets.mx(m, 4).mac.area_mm2 - m.mac.area_mm2 for m in (small, large)]
  assert more[0] / more[1] == pytest.approx((32 / 45) ** 2)


def test_leaves_carry_their_unit():
  machine = presets.int8_45nm()
  units = ("_s", "_j", "_bytes", "_bytes_s", "_hz", "_mm2", "_w", "_bits")
  plain = {"rows", "cols", "temperature", "vector/lanes", "mac/inputs"}
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


def test_areas_of_small_integers_are_those_of_floats():
  for kind in (np.uint8, np.int8, np.int16, jnp.uint8, jnp.bfloat16):
    count, width = (100, 120) if kind is np.int8 else (200, 200)
    machine = presets.fast_256x64()
    wanted = dataclasses.replace(machine, rows=float(count), cols=float(width))
    found = dataclasses.replace(machine, rows=kind(count), cols=kind(width))
    for quantity in ("array_mm2", "area_mm2", "leakage_w"):
      price = float(getattr(wanted, quantity)())
      assert float(getattr(found, quantity)()) == pytest.approx(price), quantity
    cycles = fold_cycles(found, 500.0, 64.0, 500.0, 1.0)
    assert float(cycles) == float(fold_cycles(wanted, 500.0, 64.0, 500.0, 1.0))
  square = dataclasses.replace(presets.int8_45nm(), rows=np.uint8(200))
  square = dataclasses.replace(square, cols=np.uint8(200))
  assert square.array_mm2() == pytest.approx(40_000 * energy.value("int8_mac_mm2"))


def test_an_idle_cycle_costs_at_most_an_active_one():
  mac = presets.int8_45nm().mac
  for kind in (float, np.float32, jnp.float32):
    with pytest.raises(ValueError, match=r"Mac\.idle_j=\S+ exceeds energy_j="):
      dataclasses.replace(mac, idle_j=kind(0.23e-12))
  assert dataclasses.replace(mac, idle_j=mac.energy_j).toggle_j() == 0
  # Not known: a tracer.
  jax.eval_shape(lambda x: dataclasses.replace(mac, idle_j=x).toggle_j(), 1.0)


def test_impossible_parts_are_refused():
  with pytest.raises(ValueError, match=r"Mac\.kind='term-serial' is none of par"):
    dataclasses.replace(presets.tmac_45nm().mac, kind="term-serial")
  with pytest.raises(ValueError, match=r"Sram\.capacity_bytes=0"):
    spec.Sram(0)


def test_an_area_too_small_is_refused():
  with pytest.raises(ValueError, match="holds no tMAC cell"):
    presets.tmac_45nm(1e-9)


PUBLISHED = {
  "eyeriss": presets.eyeriss_like,
  "tpu_128": lambda **options: presets.tpu_like(128, **options),
  "tpu_256": lambda **options: presets.tpu_like(256, **options),
  "fast": presets.fast_256x64,
  "camel": presets.camel_6x6,
}
WORK = Workload(
  (Gemm("", "conv", 1, 196, 288, 64), Gemm("", "head", 1, 1, 512, 100)),
  (VectorOp("max", 12_544, 100_352),),
  io_elements=2000,
)


@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
@pytest.mark.parametrize("make", PUBLISHED.values(), ids=PUBLISHED)
def test_published_machines_are_built_priced_and_printed(make, dataflow):
  machine = make(dataflow=dataflow)
  report = cost.exact(WORK, machine)
  assert 1e-6 < report.time_s < 1e-2 and 1e-6 < report.energy_j < 1e-2
  assert all(part > 0 for part in report.parts_j.values())
  assert 0 < report.utilization <= 1
  assert 0.1 < machine.area_mm2() < 200
  text = report.table()
  assert "conv" in text and "head" in text and f"{report.time_s * 1e6:,.2f} us" in text
  assert "conv" in report._repr_html_()
  for name in tree.names(machine):
    plain = {"rows", "cols", "temperature", "vector/lanes", "mac/inputs"}
    assert name in plain or "_" in name, name


def test_published_sizes():
  sizes = lambda m: (m.rows, m.cols, m.clock_hz, m.mac.lanes)
  assert sizes(presets.eyeriss_like()) == (12, 14, 200e6, 1)
  assert sizes(presets.tpu_like()) == (256, 256, 700e6, 1)
  assert sizes(presets.tpu_like(128)) == (128, 128, 700e6, 1)
  assert sizes(presets.fast_256x64()) == (256, 64, 500e6, 16)
  assert sizes(presets.camel_6x6()) == (6, 6, 500e6, 9)
  kib = lambda m: [b.capacity_bytes / 1024 for b in (m.ifmap, m.weight, m.ofmap)]
  assert kib(presets.eyeriss_like()) == [50, 8, 50]
  assert kib(presets.tpu_like()) == [24 * 1024, 256, 4096]
  assert kib(presets.tpu_like(128)) == [12 * 1024, 64, 2048]
  assert sum(kib(presets.camel_6x6())) == 624
  # 65,536 cells at 700 MHz are 92 TOP/s; 16,384 fMACs are 262,144 products a cycle.
  tpu = presets.tpu_like()
  assert 2 * tpu.rows * tpu.cols * tpu.clock_hz == pytest.approx(92e12, rel=0.01)
  fast = presets.fast_256x64()
  assert fast.rows * fast.cols * fast.mac.lanes == 262_144
  camel = presets.camel_6x6()
  assert camel.rows * camel.cols * camel.mac.lanes == 324


DOCS = {
  "eyeriss": presets.eyeriss_like,
  "tpu_128": presets.tpu_like,
  "tpu_256": presets.tpu_like,
  "fast": presets.fast_256x64,
  "camel": presets.camel_6x6,
}


def written(leaf, value):
  """The forms in which a docstring may state the value of a leaf."""
  number = lambda scale, unit: f"{value / scale:.4g} {unit}"
  if leaf in ("rows", "cols"):
    return (f"{value:g} x", f"x {value:g}")
  if leaf.endswith("capacity_bytes"):
    # "50 each", said of KiB.
    return (
      number(2**10, "KiB"),
      number(2**20, "MiB"),
      number(2**10, "each"),
      number(2**10, "for weights"),
    )
  if leaf.startswith(("ifmap/", "weight/", "ofmap/")) and leaf.endswith("_w"):
    return (number(1e-9, "nW"),)
  units = {
    "lanes": (1, "lanes"), "_hz": (1e6, "MHz"), "_j": (1e-12, "pJ"),
    "_w": (1e-6, "uW"), "_mm2": (1e-6, "um2"), "_bits": (1, "bits"),
    "_bytes": (1 / 8, "bits"), "_bytes_s": (1e9, "GB/s"),
  }  # fmt: skip
  return (number(*next(u for end, u in units.items() if leaf.endswith(end))),)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers_stand_in_the_docstring(name):
  machine = PUBLISHED[name]()
  told = " ".join((DOCS[name].__doc__ or "").split())
  assert f"{machine.rows:.0f} x {machine.cols:.0f}" in told and "recalled" in told
  assert re.search("HPCA|ISCA|JSSC", told)
  numbers = tree.named_leaves(machine)
  assert numbers.pop("temperature") == 0  # a knob of the model
  assert numbers.pop("mac/inputs") == 1  # nothing to select
  for leaf, value in numbers.items():
    if value == 0 and leaf in ("mac/group_j", "mac/output_j", "mac/output_mm2"):
      continue  # the cell has no such part
    forms = written(leaf, value)
    assert any(re.search(rf"(?<![\d.]){re.escape(x)}\b", told) for x in forms), (
      leaf, forms
    )  # fmt: skip


def test_other_sizes_are_refused():
  with pytest.raises(ValueError, match="size=64 is neither 128 nor 256"):
    presets.tpu_like(64)
