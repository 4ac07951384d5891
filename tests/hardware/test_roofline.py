"""Rooflines by hand, the LLaMA table, chips and what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware import chips, roofline
from jaxcodesign.programs.workload import Workload, trace
from jaxcodesign.training import published, roofline_figure
from launch import roofline as launcher


def two_products(params, x):
  return (x @ params["a"]) @ params["b"]


SHAPES = (
  {"a": jax.ShapeDtypeStruct((64, 512), jnp.float32),
   "b": jax.ShapeDtypeStruct((512, 8), jnp.float32)},
  jax.ShapeDtypeStruct((32, 64), jnp.float32),
)  # fmt: skip


def test_a_roofline_by_hand():
  work = trace(two_products)(*SHAPES)
  chip = chips.h100_sxm()
  found = roofline.roofline(
    work, chip, weights="int4", activations="fp8", compute_share=0.5
  )
  operations = np.array([2 * 32 * 64 * 512, 2 * 32 * 512 * 8])
  moved = np.array([32 * 64 + 64 * 512 / 2 + 32 * 512, 32 * 512 + 512 * 4 + 32 * 8])
  np.testing.assert_allclose(found.operations, operations)
  np.testing.assert_allclose(found.bytes_moved, moved)
  np.testing.assert_allclose(found.compute_s, operations / (0.5 * 1979e12))
  np.testing.assert_allclose(found.memory_s, moved / 3.35e12)
  slower = np.maximum(found.compute_s, found.memory_s)
  assert found.time_s == pytest.approx(slower.sum())
  assert found.bound == ["memory", "memory"]
  assert "H100 SXM" in found.table() and found.table().count("\n") == 3


def test_a_large_batch_is_bound_by_compute_at_the_peak():
  fn, params, x = published.vgg16(batch=64)
  found = roofline.roofline(trace(fn)(params, x), chips.tpu_v5e())
  longest = int(np.argmax(found.compute_s))
  assert found.bound[longest] == "compute"
  assert found.time_s >= found.operations.sum() / 197e12


@pytest.mark.parametrize(
  # Weights in GB at 16, 8 and 4 bits and the cache of 1,024 tokens, by hand from the
  # published sizes: 2 layers kv_heads head_width 2 bytes a token.
  ("size", "parameters", "a_token"),
  [
    (published.LLAMA31_8B, 8_030_261_248, 2 * 32 * 8 * 128 * 2),
    (published.LLAMA31_70B, 70_553_706_496, 2 * 80 * 8 * 128 * 2),
    (published.LLAMA31_405B, 405_853_388_800, 516_096),
  ],
)
def test_memory_of_llama(size, parameters, a_token):
  fn, params, x = published.llama(size, tokens=1024)
  work = trace(fn)(params, x)
  assert work.parameters == parameters
  for name, bits in (("fp16", 16), ("fp8", 8), ("int4", 4)):
    found = roofline.footprint(work, weights=name, cache="fp16")
    assert found.weights == parameters * bits / 8
    assert found.cache == 1024 * a_token
    assert found.total == found.weights + found.cache


def test_prefill_of_llama_counts_two_operations_a_parameter_and_token():
  fn, params, x = published.llama(tokens=64)
  work = trace(fn)(params, x)
  size = published.LLAMA31_8B
  looked_up = size.vocabulary * size.width + (2 * size.layers + 1) * size.width
  attention = 2 * size.layers * 64 * 64 * size.width
  assert work.macs == 64 * (work.parameters - looked_up) + attention


def test_a_training_run():
  found = roofline.training_cost(
    1e9, 2e10, chips.h100_sxm(), chips=8, utilization=0.5, dollars_per_hour=3.0
  )
  assert found.operations == 1.2e20
  assert found.chip_hours == pytest.approx(1.2e20 / (0.5 * 989e12) / 3600)
  assert found.days == pytest.approx(found.chip_hours / 8 / 24)
  assert found.dollars == pytest.approx(3 * found.chip_hours)
  with pytest.raises(ValueError, match=r"utilization=1.5"):
    roofline.training_cost(1e9, 1e9, chips.h100_sxm(), utilization=1.5)
  with pytest.raises(ValueError, match=r"tokens=0"):
    roofline.training_cost(1e9, 0, chips.h100_sxm())


@pytest.mark.parametrize("name", chips.CHIPS)
def test_every_chip_is_built_priced_and_printed(name):
  chip = chips.CHIPS[name]()
  assert chip.source and all(x in vars(chip) for x in chip.recalled)
  widest = max(chip.peak_op_s, key=lambda x: chips.BITS[x])
  found = roofline.roofline(
    trace(two_products)(*SHAPES), chip, weights=widest, activations=widest
  )
  assert 0 < found.time_s < 1 and chip.name in found.table()
  doubled = dataclasses.replace(chip, bandwidth_bytes_s=2 * chip.bandwidth_bytes_s)
  again = roofline.roofline(
    trace(two_products)(*SHAPES), doubled, weights=widest, activations=widest
  )
  assert again.time_s <= found.time_s
  for peak in chip.peak_op_s:
    assert chip.ridge(peak) == pytest.approx(
      chip.peak_op_s[peak] / chip.bandwidth_bytes_s
    )


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


def test_published_ridges():
  ridge = lambda name, fmt: round(chips.CHIPS[name]().ridge(fmt))
  assert ridge("h100", "bf16") == 295 and ridge("h100", "fp8") == 591
  assert ridge("b200", "fp4") == 1125 and ridge("tpu_v6e", "bf16") == 560
  assert ridge("tpu_v1", "int8") == 2706 and ridge("wse3", "fp16") == 6


def test_bad_input_is_refused():
  work = trace(two_products)(*SHAPES)
  with pytest.raises(ValueError, match="int8: none holds fp16"):
    roofline.roofline(work, chips.tpu_v1(), activations="fp16")
  with pytest.raises(ValueError, match="'fp7' is none of"):
    roofline.roofline(work, chips.h100_sxm(), weights="fp7")
  with pytest.raises(ValueError, match="compute_share=0"):
    roofline.roofline(work, chips.h100_sxm(), compute_share=0)
  with pytest.raises(ValueError, match="no matrix product"):
    roofline.roofline(Workload(()), chips.h100_sxm())
  with pytest.raises(ValueError, match="'fp7' is none of"):
    roofline.footprint(work, weights="fp7")


def test_the_picture_and_the_launcher(tmp_path, capsys):
  picture = tmp_path / "roof.png"
  options = ["--batch", "2", "--picture", str(picture), "--train", "1e9"]
  assert launcher.main(["resnet18", *options]) == 0
  assert picture.stat().st_size > 10_000
  assert "chip-hours" in capsys.readouterr().out
  assert launcher.main(["--chips"]) == 0 and "WSE-3" in capsys.readouterr().out
  for wrong in ([], ["resnet18", "--batch", "0"], ["resnet19"]):
    with pytest.raises(SystemExit) as stop:
      launcher.main(wrong)
    assert stop.value.code == 2
  assert launcher.main(["resnet18", "--chip", "tpu_v1"]) == 1
  assert "int8: none holds bf16" in capsys.readouterr().err
  found = roofline.roofline(trace(two_products)(*SHAPES), chips.b200())
  assert len(roofline_figure.figure(found).axes) == 1
