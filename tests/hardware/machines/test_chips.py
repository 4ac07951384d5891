"""Chips: every number with its source, units that are exact, what is refused."""

import dataclasses
import itertools

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxcodesign.hardware.machines import chips

CODES = {
  "fp16": np.arange(1 << 16, dtype=np.uint16).view(np.float16),
  "bf16": np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16),
  "fp4": np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn),
  "int8": np.arange(-128, 128, dtype=np.int8),
  "int4": np.arange(-8, 8),
}
FP8 = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
TYPES = {
  "fp32": (np.float32,), "fp16": (np.float16,), "bf16": (ml_dtypes.bfloat16,),
  "fp8": FP8, "fp4": (ml_dtypes.float4_e2m1fn,),
}  # fmt: skip


def values(fmt):
  """Finite values of a format; of fp32 the ends of its range and precision."""
  if fmt == "fp32":
    return np.array([2.0**-149, 2.0**127, 1 + 2.0**-23])
  codes = [CODES[fmt]] if fmt != "fp8" else [CODES["int8"].view(x) for x in FP8]
  with np.errstate(invalid="ignore"):
    found = np.concatenate([x.astype(np.float64) for x in codes])
  return found[np.isfinite(found)]


def is_held(fmt, unit):
  """Whether all values survive the round trip through the units' types."""
  if fmt == unit:
    return True
  x = values(fmt)
  if unit in ("int8", "int4"):
    half = 1 << (chips.BITS[unit] - 1)
    return bool(np.all((x == np.round(x)) & (x >= -half) & (x < half)))
  with np.errstate(all="ignore"):
    return all(
      bool(np.all(x.astype(kind).astype(np.float64) == x)) for kind in TYPES[unit]
    )


HELD = {pair: is_held(*pair) for pair in itertools.product(chips.BITS, repeat=2)}


def test_units_hold_what_the_table_says():
  assert {p for p, held in HELD.items() if held} == {
    (name, unit) for name, units in chips.HELD_BY.items() for unit in units
  }


@pytest.mark.parametrize("name", chips.CHIPS)
def test_units_of_every_pair_are_exact_symmetric_and_of_the_right_kind(name):
  chip = chips.CHIPS[name]()
  integer = lambda fmt: fmt in ("int8", "int4")
  for left, right in itertools.product(chips.BITS, repeat=2):
    fit = [u for u in chip.peak_op_s if HELD[left, u] and HELD[right, u]]
    if not fit:
      with pytest.raises(ValueError, match="none holds"):
        chip.peak(left, right)
      continue
    unit = chip.unit(left, right)
    assert unit in fit and unit == chip.unit(right, left)
    whole = [u for u in fit if integer(u)]
    if whole:
      assert integer(left) and integer(right) and integer(unit)
    assert chips.BITS[unit] == min(chips.BITS[u] for u in whole or fit)
    assert chip.peak(left, right) == chip.peak_op_s[unit]


@pytest.mark.parametrize(
  ("name", "left", "right", "unit", "peak"),
  [
    ("tpu_v5e", "fp8", "fp8", "bf16", 197e12),
    ("b200", "int4", "int4", "int8", 4500e12),
    ("b200", "int4", "fp4", "fp8", 4500e12),
    ("tpu_v6e", "int4", "int4", "int8", 1836e12),
    ("tpu_v6e", "fp8", "int8", "bf16", 918e12),
    ("h100", "bf16", "fp16", "fp32", 67e12),
    ("wse3", "int8", "int4", "fp16", 125e15),
  ],
)
def test_units_that_were_wrong_once(name, left, right, unit, peak):
  chip = chips.CHIPS[name]()
  assert chip.unit(left, right) == chip.unit(right, left) == unit
  assert chip.peak(left, right) == peak


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"memory_bytes": -1.0}, "Chip.memory_bytes=-1.0 must be positive"),
    ({"bandwidth_bytes_s": 0.0}, "Chip.bandwidth_bytes_s=0.0"),
    ({"bandwidth_bytes_s": np.nan}, "Chip.bandwidth_bytes_s=nan"),
    ({"area_mm2": -1.0}, "Chip.area_mm2=-1.0.*0 is unpublished"),
    ({"node_nm": np.inf}, "Chip.node_nm=inf"),
    ({"peak_op_s": {"bf16": -1.0}}, r"Chip.peak_op_s\['bf16'\]=-1.0"),
    ({"peak_op_s": {"bf17": 1.0}}, "'bf17' is none of"),
    ({"peak_op_s": {}}, "peak_op_s is empty"),
  ],
)
def test_a_chip_that_cannot_be_is_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(chips.h100_sxm(), **wrong)


def test_a_chip_may_be_traced():
  ridge = lambda chip: chip.ridge("bf16")
  got = jax.grad(ridge)(chips.h100_sxm()).bandwidth_bytes_s
  np.testing.assert_allclose(got, -989e12 / 3.35e12**2, rtol=1e-5)


def test_achievable_peaks_replace_those_that_were_measured():
  chip = chips.achievable("h100", ["bf16", "fp8"])
  assert chip.peak("bf16", "bf16") == 794.5e12 and chip.peak("fp8", "fp8") == 1403e12
  assert chip.peak("int8", "int8") == 1979e12
  with pytest.raises(ValueError, match="H100 SXM achieves in int8 is not known"):
    chips.achievable("h100", ["bf16", "int8"])
  with pytest.raises(ValueError, match="'h200' is none of"):
    chips.achievable("h200", [])


@pytest.mark.parametrize("name", chips.CHIPS)
def test_every_number_is_in_its_docstring_with_its_source(name):
  doc = " ".join(chips.CHIPS[name].__doc__.split())
  chip = chips.CHIPS[name]()
  assert "Source: " + chip.source.replace("'", '"') in doc
  for fmt, peak in chip.peak_op_s.items():
    assert f"{fmt} {peak / 1e12:g}" in doc
  gib, mib = chip.memory_bytes / 2**30, chip.on_chip_bytes / 2**20
  whole = (f"{gib:g} GiB", f"{chip.memory_bytes / 1e9:g} GB")
  assert any(f"{size}" in doc for size in whole)
  assert f"at {chip.bandwidth_bytes_s / 1e9:.12g} GB/s" in doc
  if chip.on_chip_bytes:
    assert f"{mib:g} MiB" in doc or f"{chip.on_chip_bytes / 1e6:g} MB" in doc
  for number, unit in (
    (chip.power_w, "W"),
    (chip.area_mm2, "mm2"),
    (chip.node_nm, "nm"),
  ):
    assert not number or f" {number:.12g} {unit}" in doc
  assert doc.count("recalled") == len(chip.recalled)


def test_on_chip_memory_of_the_h100_is_both_levels():
  levels = 50e6 + 132 * 256 * 1024
  assert chips.h100_sxm().on_chip_bytes == pytest.approx(levels, rel=1e-3)


def test_published_ridges():
  ridge = lambda name, fmt: round(chips.CHIPS[name]().ridge(fmt))
  assert ridge("h100", "bf16") == 295 and ridge("h100", "fp8") == 591
  assert ridge("b200", "fp4") == 1125 and ridge("tpu_v6e", "bf16") == 560
  assert ridge("tpu_v1", "int8") == 2706 and ridge("wse3", "fp16") == 6
