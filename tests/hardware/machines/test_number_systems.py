"""Number systems: equal areas, formats one can train in, cells with their sources."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.machines import cells, energy, number_systems, presets
from jaxcodesign.hardware.machines.spec import Dram
from jaxcodesign.programs import precision

SYSTEMS = number_systems.systems()
NAMES = [s.name for s in SYSTEMS]
by_name = dict(zip(NAMES, SYSTEMS))


def test_all_systems_of_the_table_are_there():
  told = number_systems.__doc__ or ""
  assert NAMES == [
    "FP32", "bfloat16", "INT8", "HFP8", "MSFP-12", "LowBFP", "MidBFP", "HighBFP", "FAST"
  ]  # fmt: skip
  assert all(f"\n  {name} " in told for name in NAMES)
  assert [s.name for s in SYSTEMS if s.adaptive] == ["FAST"]
  assert all(s.accelerator.name == s.name for s in SYSTEMS)


@pytest.mark.parametrize("area", [None, 2.0, 20.0])
def test_arrays_have_one_area_and_all_else_in_common(area):
  made = number_systems.systems(area)
  wanted = float(made[-1].accelerator.array_mm2())  # all others are compared with FAST
  assert 0.97 * (area or wanted) < wanted <= (area or presets.fast_256x64().array_mm2())
  for s in made:
    m = s.accelerator
    # A row more would not fit, nor would a whole group of columns.
    assert m.array_mm2() <= wanted * (1 + 1e-9), s.name
    assert m.array_mm2() > wanted - max(m.rows * m.mac.lanes, m.cols) * m.mac.area_mm2
    assert m.rows == int(m.rows) and m.cols == int(m.cols) and not m.cols % m.mac.lanes
    for part in ("ifmap", "weight", "ofmap", "dram", "vector", "clock_hz"):
      assert getattr(m, part) == getattr(made[-1].accelerator, part), (s.name, part)
  if area is None:
    assert all(s.accelerator.array_mm2() > 0.99 * wanted for s in made)
    # 256 rows of outputs, 64 columns of contraction, in this library's terms.
    assert (made[-1].accelerator.rows, made[-1].accelerator.cols) == (64, 256)


def test_sums_of_the_docstring():
  told = " ".join((number_systems.__doc__ or "").split())
  fast, msfp = cells.fmac(), by_name["MSFP-12"].accelerator
  adder = energy.value("fp32_add_mm2")
  assert f"({adder * 1e6:.0f} of {fast.area_mm2 * 1e6:.0f} um2)" in told
  assert f"{msfp.mac.area_mm2 / fast.area_mm2:.2f} times as large" in told
  share = msfp.rows * msfp.cols / (64 * 256)
  assert f"{4 * share:.1f} times the peak" in told
  assert f"and {share:.1f} of FAST at 1" in told


def test_cells_are_their_sources():
  mac = {name: s.accelerator.mac for name, s in by_name.items()}
  value = energy.value
  assert mac["FP32"].energy_j == value("fp32_mul_j") + value("fp32_add_j")
  mixed = value("fp16_mul_j") * value("bf16_mul_of_fp16") + value("fp32_add_j")
  assert mac["bfloat16"].energy_j == pytest.approx(mixed)
  assert mac["bfloat16"].accumulator_bytes == 4 and mac["bfloat16"].weight_bits == 16
  assert mac["INT8"].energy_j == pytest.approx(value("int8_mac_j"))
  assert mac["INT8"].area_mm2 == pytest.approx(value("int8_mac_mm2"))
  # 16 ands, a mux of 8 bits, a sign; 18 full adders; 18 register bits, half working.
  area = 41 * value("gate_mm2") + 18 * value("full_adder_mm2")
  node = energy.logic_ratio("mm2", 40, 45)
  area = 18 * value("full_adder_mm2") + node * (
    41 * value("gate_mm2") + 18 * value("register_mm2")
  )
  assert mac["HFP8"].area_mm2 == pytest.approx(area + value("fp16_add_mm2"))
  assert mac["HFP8"].weight_bits == 8 and mac["HFP8"].accumulator_bytes == 2
  assert mac["MSFP-12"] == cells.fmac(chunk_bits=3)
  for name in ("LowBFP", "MidBFP", "HighBFP"):
    assert mac[name] == mac["FAST"] == cells.fmac()
  own = {s.name: s.accelerator.mac for s in number_systems.systems(own_cells=True)}
  assert own["HighBFP"] == cells.fmac(chunk_bits=4) and own["FAST"] == cells.fmac()


@pytest.mark.parametrize("system", SYSTEMS, ids=NAMES)
def test_policies_train(system):
  """A step in the number system, with noise where it has some, stays near float32's."""
  rng = np.random.default_rng(0)
  params = {"w": jnp.asarray(rng.normal(size=(32, 16)), "f4")}
  x = jnp.asarray(rng.normal(size=(16, 32)), "f4")
  loss = lambda p, x: jnp.sum((x @ p["w"]) ** 2)
  key = jax.random.key(0) if system.stochastic else None
  rounded = precision.quantize(loss, system.policy, key=key)
  found = jax.jit(jax.grad(rounded))(params, x)["w"]
  exact = jax.grad(loss)(params, x)["w"]
  off = float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))
  few = {"FP32": (0, 1e-6), "bfloat16": (1e-4, 0.01), "LowBFP": (0.3, 0.6)}
  low, high = few.get(system.name, (0.01, 0.3))
  assert low <= off <= high
  assert system.stochastic == (system.name not in ("FP32", "bfloat16", "HFP8"))


def test_exponents_and_memory_are_parameters():
  made = number_systems.systems(exponent_bits=3, dram=Dram(256e9))
  bits = {s.name: s.policy[0].weight.exponent for s in made if "BFP" in s.name}
  assert bits == {"LowBFP": 3, "MidBFP": 3, "HighBFP": 3}
  assert made[4].policy[0].weight.exponent == 8  # MSFP-12's own
  assert all(s.accelerator.dram.bandwidth_bytes_s == 256e9 for s in made)


def test_areas_without_a_cell_are_refused():
  with pytest.raises(ValueError, match=r"array_mm2=0.05 holds no FAST 256x64 cell of"):
    number_systems.systems(0.05)
  with pytest.raises(ValueError, match=r"exponent=9 bits are outside 1\.\.8"):
    number_systems.systems(exponent_bits=9)
  with pytest.raises(ValueError, match=r"aspect=0\.0: rows over columns"):
    presets.with_cells(presets.int8_45nm(), cells.fmac(), name="x", aspect=0.0)
