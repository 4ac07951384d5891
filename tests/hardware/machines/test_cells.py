"""Cells are those of the published synthesis; counted ones add up; bits have slopes."""

import csv
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.machines import cells, energy, presets, synthesis
from jaxcodesign.hardware.simulators import bitserial

REFERENCE = pathlib.Path(__file__).parents[2] / "reference" / "pe_synthesis_45nm.csv"
ROWS = list(csv.DictReader(REFERENCE.read_text().splitlines()))
UNITS = {
  "area_mm2": ("area_um2_per_pe", 1e-6),
  "energy_j": ("dyn_pJ_per_pe_cycle", 1e-12),
  "leakage_w": ("leak_nW_per_pe", 1e-9),
}
MADE = {
  "parallel": cells.parallel,
  "fusible": cells.fusible,
  "fp32": lambda: cells.floating("fp32"),
  "fp16": lambda: cells.floating("fp16"),
  "bf16": lambda: cells.floating("bf16"),
  "bit_serial": cells.bit_serial,
  "tmac": cells.tmac,
  "fmac": cells.fmac,
  "shift": cells.shift,
}


def kind(row):
  return int(row["max_bits"]), row["max_bits"] != row["min_bits"]


def shape(row):
  return int(row["array_n"]), int(row["array_m"])


@pytest.mark.parametrize("quantity", UNITS)
def test_every_synthesized_point_is_met_within_15_percent(quantity):
  column, unit = UNITS[quantity]
  errors = []
  for row in ROWS:
    bits, fusible = kind(row)
    found = synthesis.cost(quantity, float(bits), fusible=fusible, array=shape(row))
    errors.append(abs(float(found) / (float(row[column]) * unit) - 1))
  assert len(errors) == 105
  assert max(errors) <= 0.15 and np.median(errors) <= 0.02  # measured: 11 % and 1.5 %


@pytest.mark.parametrize("quantity", UNITS)
def test_an_array_left_out_is_predicted_within_15_percent(quantity):
  column = UNITS[quantity][0]
  errors = []
  for one in {kind(r) for r in ROWS}:
    rows = [r for r in ROWS if kind(r) == one]
    for left_out in rows:
      rest = [r for r in rows if r is not left_out]
      values = np.log([float(r[column]) for r in rest])
      x = synthesis.features(*np.array([shape(r) for r in rest]).T)
      law = np.linalg.lstsq(x, values, rcond=None)[0]
      guess = np.exp(synthesis.features(*shape(left_out)) @ law)
      errors.append(abs(guess / float(left_out[column]) - 1))
  assert max(errors) <= 0.15 and np.median(errors) <= 0.025  # measured: 14 % and 2 %


def test_a_width_left_out_is_predicted_by_its_neighbours():
  for quantity in UNITS:
    at, values = synthesis.curve(quantity, False)
    for i in (1, 2):
      guess = np.sqrt(values[i - 1] * values[i + 1])
      assert guess / values[i] == pytest.approx(1, rel=0.16), (quantity, at[i])


def test_a_large_array_is_the_mean_of_the_largest_synthesized():
  assert energy.value("int8_mac_j") == pytest.approx(cells.parallel().energy_j)
  assert energy.value("int8_mac_mm2") == pytest.approx(cells.parallel().area_mm2)
  leakage = energy.value("int8_mac_leakage_w")
  assert leakage == pytest.approx(cells.parallel().leakage_w)


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_every_cell_has_positive_numbers_and_is_a_machine(make):
  cell = make()
  for name in ("energy_j", "area_mm2", "leakage_w", "idle_j"):
    assert 0 < getattr(cell, name) < np.inf, name
  assert cell.idle_j == pytest.approx(0.2 * cell.energy_j)
  assert 0 < cell.toggle_j() < cell.energy_j


@pytest.mark.parametrize("quantity", ["energy_j", "area_mm2", "leakage_w"])
@pytest.mark.parametrize(
  "make",
  [
    lambda b: cells.parallel(b, b),
    lambda b: cells.parallel(b, 8.0),
    lambda b: cells.parallel(headroom_bits=b),
    lambda b: cells.fusible(b),
    cells.bit_serial,
    cells.shift,
    lambda b: cells.tmac(coefficient_bits=b),
    lambda b: cells.mx(cells.parallel(), b),
  ],
)
def test_wider_is_never_cheaper_and_bits_have_slopes(make, quantity):
  with jax.enable_x64(True):
    price = jax.jit(jax.value_and_grad(lambda b: getattr(make(b), quantity)))
    values, slopes = zip(*(price(jnp.float64(b)) for b in (4.5, 5.5, 7.0, 11.0, 15.5)))
    assert all(np.diff(values) > 0)
    for bits, slope in zip((4.5, 7.0, 15.5), slopes[::2]):
      moved = [float(price(jnp.float64(bits + d))[0]) for d in (1e-4, -1e-4)]
      assert float(slope) == pytest.approx((moved[0] - moved[1]) / 2e-4, rel=1e-3)


def test_a_narrow_operand_counts_in_the_geometric_mean():
  for quantity in UNITS:
    found = getattr(cells.parallel(4.0, 16.0), quantity)
    assert found == pytest.approx(getattr(cells.parallel(8.0, 8.0), quantity))


def test_counts_are_those_of_the_docstrings():
  adder = {u: energy.value(f"full_adder_{u}") for u in ("j", "mm2")}
  register = {
    "j": energy.value("register_j") * (45 / 40) ** 1.83,
    "mm2": energy.value("register_mm2") * (45 / 40) ** 2,
  }
  gate = {
    "j": energy.value("gate_j") * (45 / 40) ** 1.83,
    "mm2": energy.value("gate_mm2") * (45 / 40) ** 2,
  }
  total = lambda u, a, r, g: a * adder[u] + r * register[u] + g * gate[u]
  serial = cells.bit_serial()
  # Of each MAC 8 adders, negation and addition; product 8, carries 2, sum, control 2.
  # The cell: weight 8 and the data's bit.
  for macs in (2, 4):
    cell = cells.bit_serial(accumulator_bits=8.0 * macs)
    area = total("mm2", 10 * macs, 13 * macs + 9, 12 * macs)
    assert cell.area_mm2 == pytest.approx(area)
    assert cell.leakage_w == pytest.approx(area * cells.leakage_w_mm2())
    assert cell.energy_j == pytest.approx(total("j", 8 + 4, 6.5, 8 + 8))
    shift = cells.shift(4.0, accumulator_bits=8.0 * macs)
    taps = 7  # a delay of 0 to 7
    wanted = total("mm2", 2 * macs, (taps + 5) * macs + 5, (3 * taps + 4) * macs)
    assert shift.area_mm2 == pytest.approx(wanted)
  eight = cells.mx(serial, 8.0)
  # 7 inputs of a bit more, each with a register and a multiplexer; 3 index bits.
  assert eight.area_mm2 - serial.area_mm2 == pytest.approx(total("mm2", 0, 7 + 3, 21))
  assert eight.energy_j - serial.energy_j == pytest.approx(total("j", 0, 3.5, 10.5))
  wide = cells.parallel(headroom_bits=8.0)
  grown = wide.area_mm2 - cells.parallel().area_mm2
  assert grown == pytest.approx(total("mm2", 8, 8, 0))
  # A tMAC encodes and compares 8 bits a result, and adds up 16 coefficients of 8.
  assert cells.tmac().output_j == pytest.approx(total("j", 5 * 8 + 128, 9 * 8, 6 * 8))
  fmac = cells.fmac()
  tree = 15 * 7  # fifteen adders of 2 x 2 + 1 + 2 bits
  assert fmac.energy_j == pytest.approx(
    total("j", 16 * 2 + tree + 16, (16 * 6 + 16) / 2, 16 * 5 + 144)
  )
  assert fmac.group_j == pytest.approx(0.9e-12 + total("j", 8, 8, 0))


@pytest.mark.parametrize("length", [16, 32])
def test_a_bit_serial_cell_flips_what_the_simulator_counts(length):
  """Flips a product of random int8 weights, in the MACs and in what they share."""
  rng = np.random.default_rng(0)
  data = rng.integers(0, 256, (64, 16)).astype(np.uint8)
  weights = rng.integers(-127, 128, (16, 16)).astype(np.int8)
  _, trace = bitserial.simulate(
    data, weights, rows=16, cols=16, accumulator_bits=length
  )
  in_macs = int(trace.toggles.sum()) / (64 * 16 * 16)
  # The data's bit flips in half of 8 cycles; two control bits go up and down once.
  simulated = in_macs + 8 / 2 + 2 * 2
  cell = cells.bit_serial(accumulator_bits=length)
  logic = lambda part: energy.logic(f"{part}_j", 45)
  rest = 12 * logic("full_adder") + 16 * logic("gate")
  counted = 8 * (cell.energy_j - rest) / logic("register")
  assert counted == pytest.approx(52)
  assert counted == pytest.approx(simulated, rel=0.03)
  # So many MACs keep a cell busy: 8 cycles a product, as `cost` charges.
  assert int(trace.busy.max()) == 16 * 16


def test_floating_point_is_horowitz():
  assert cells.floating("fp32").energy_j == pytest.approx(4.6e-12)
  assert cells.floating("fp16").energy_j == pytest.approx(1.5e-12)
  assert cells.floating("fp32").area_mm2 == pytest.approx(11884e-6)
  bf16 = cells.floating("bf16")
  assert bf16.energy_j == pytest.approx(1.1e-12 * 21 / 34 + 0.4e-12 * 11 / 16)


def test_counts_against_the_ratios_of_the_draft():
  """What the docstring says: a count is larger than what the draft implies."""
  ratio = lambda a, b: a.area_mm2 / b.area_mm2
  draft = presets.bit_serial_45nm().mac
  for bits, wanted in ((32, 5.7), (16, 3.1)):
    cell = cells.bit_serial(accumulator_bits=bits)
    assert ratio(cell, draft) == pytest.approx(wanted, abs=0.05)
  assert ratio(cells.tmac(), presets.tmac_45nm().mac) == pytest.approx(16, abs=0.3)


def test_nodes_scale_by_the_stated_exponents():
  small, large = cells.parallel(node_nm=22), cells.parallel(node_nm=45)
  assert small.area_mm2 / large.area_mm2 == pytest.approx((22 / 45) ** 2)
  assert small.energy_j / large.energy_j == pytest.approx((22 / 45) ** 1.83)
  assert small.leakage_w == large.leakage_w
  assert energy.logic_ratio("j", 45, 22, exponent=1.0) == pytest.approx(22 / 45)
  for make in (cells.parallel, cells.bit_serial, cells.tmac, cells.fmac, cells.shift):
    with pytest.raises(
      ValueError, match="node_nm=16 is none of 90, 65, 45, 40, 32, 22"
    ):
      make(node_nm=16)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    (lambda: cells.parallel(1.0, 1.0), r"bits=1\.0 is outside what was measured, 2 to"),
    (lambda: cells.parallel(32.0, 32.0), r"bits=32\.0 is outside .* several passes"),
    (lambda: cells.fusible(2.0), r"bits=2\.0 is outside what was measured, 4 to 16"),
    (lambda: cells.parallel(array=(8, 4)), r"array=\(8, 4\) is outside .* 1 to 16"),
    (lambda: cells.floating("fp4"), "kind='fp4' or sums='fp4' is none of fp32"),  # pyright: ignore[reportArgumentType]
    (lambda: cells.floating("fp8"), 'sums="fp8" has no adder: give sums="fp16"'),
    (lambda: cells.bit_serial(accumulator_bits=4), "accumulator_bits=4: a cell has"),
    (lambda: cells.shift(accumulator_bits=7.5), r"accumulator_bits=7\.5: a cell has"),
    (lambda: cells.mx(cells.parallel(), 0.5), r"alpha=0\.5 inputs"),
    (lambda: synthesis.cost("power", 8.0), "quantity='power' is none of"),  # pyright: ignore[reportArgumentType]
    (lambda: energy.logic_ratio("s", 45, 22), "unit='s' is none of j, mm2, w"),
  ],
)
def test_what_was_not_made_is_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    wrong()


def test_traced_bits_outside_the_table_cost_nan():
  price = jax.jit(lambda b: cells.parallel(b, b).energy_j)
  assert np.isnan(price(1.9)) and np.isnan(price(16.5)) and np.isfinite(price(16.0))


def test_a_part_that_is_impossible_is_refused():
  with pytest.raises(ValueError, match=r"Mac\.lanes=0"):
    dataclasses.replace(cells.fmac(), lanes=0)
