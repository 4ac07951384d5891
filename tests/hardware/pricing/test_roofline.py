"""Rooflines by hand, the LLaMA table, chips and what they refuse."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.figures import roofline as roofline_figure
from jaxcodesign.hardware.machines import chips
from jaxcodesign.hardware.pricing import roofline
from jaxcodesign.models import published
from jaxcodesign.programs.workload import Workload, trace
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
    roofline.language_operations(1e9), 2e10, chips.h100_sxm(), chips=8,
    utilization=0.5, dollars_per_hour=3.0,
  )  # fmt: skip
  assert found.operations == 1.2e20
  assert found.chip_hours == pytest.approx(1.2e20 / (0.5 * 989e12) / 3600)
  assert found.days == pytest.approx(found.chip_hours / 8 / 24)
  assert found.dollars == pytest.approx(3 * found.chip_hours)
  cost = lambda each=1e9, samples=1e9, **options: roofline.training_cost(
    each, samples, chips.h100_sxm(), **options
  )
  for wrong in (
    {"utilization": 1.5}, {"samples": 0}, {"samples": np.inf}, {"chips": 0},
    {"dollars_per_hour": -1},
  ):  # fmt: skip
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
      cost(**wrong)
  with pytest.raises(ValueError, match="operations_per_sample=nan"):
    cost(each=np.nan)


@pytest.mark.parametrize(
  # Multiply-accumulates a sample by hand. ResNet-18: pixels, filters, window, channels
  # of the stem; stages of 4 convolutions of equal cost, of which the first of a stage
  # that strides costs half and its shortcut a ninth of that; the classifier. GPT-2: 12
  # width^2 a block, queries by keys and weights by values, the head.
  ("model", "samples", "macs"),
  [
    (
      published.resnet(18, batch=2),
      2,
      112**2 * 64 * 49 * 3
      + 4 * 56**2 * 64 * 9 * 64
      + 3 * (28**2 * 128 * (9 * 64 + 64) + 3 * 28**2 * 128 * 9 * 128)
      + 512 * 1000,
    ),
    (
      published.gpt2(tokens=1024),
      1024,
      12 * (12 * 768**2 + 2 * 1024 * 768) + 768 * 50257,
    ),
  ],
)
def test_training_counts_what_is_multiplied(model, samples, macs):
  work = trace(model.fn)(model.params, model.inputs)
  assert roofline.training_operations(work, samples) == 6 * macs
  if samples == 2:
    ratio = 6 * macs / roofline.language_operations(work.parameters)
    assert 155 < ratio < 156  # what a rule for language models would leave out
  with pytest.raises(ValueError, match="samples=0"):
    roofline.training_operations(work, 0)


def test_training_operations_are_those_of_the_gradient_but_for_the_first_input():
  square = lambda params, x: jnp.sum(two_products(params, x) ** 2)
  forward, both = trace(two_products)(*SHAPES), trace(jax.grad(square))(*SHAPES)
  first = 32 * 64 * 512
  assert roofline.training_operations(forward, 32) * 32 == 2 * (both.macs + first) * 1.0
  with pytest.raises(ValueError, match="forward pass alone"):
    roofline.training_operations(both, 32)
  with pytest.raises(ValueError, match="multiplies nothing"):
    roofline.training_operations(Workload(()), 32)


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


def test_bad_input_is_refused():
  work = trace(two_products)(*SHAPES)
  with pytest.raises(ValueError, match="int8: none holds both fp16 and bf16"):
    roofline.roofline(work, chips.tpu_v1(), activations="fp16")
  for rows, wide in ((0, 64), (32, 0)):
    params = {"a": jnp.zeros((wide, 512)), "b": jnp.zeros((512, 8))}
    with pytest.raises(ValueError, match="multiplies nothing"):
      roofline.roofline(
        trace(two_products)(params, jnp.zeros((rows, wide))), chips.h100_sxm()
      )
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
  said = capsys.readouterr().out
  assert "1.088e+10 operations an image (6 a multiply-accumulate" in said
  assert "1.088e+19 in all" in said and "chip-hours" in said
  assert launcher.main(["--chips"]) == 0
  said = " ".join(re.split(r"[\s│]+", capsys.readouterr().out))
  assert "WSE-3" in said and "sparse" in said and "recalled:" in said
  assert launcher.main(["resnet18", "--chip", "tpu_v1"]) == 1
  assert "int8: none holds bf16" in capsys.readouterr().err
  found = roofline.roofline(trace(two_products)(*SHAPES), chips.b200())
  assert len(roofline_figure.figure(found).axes) == 1


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    ([], "name a network"),
    (["resnet18", "--batch", "0"], "at least 1"),
    (["--memory", "--tokens", "0"], "at least 1"),
    (["resnet19"], "invalid choice"),
    (["resnet18", "--train", "0"], "--train 0.0: train on more"),
    (["resnet18", "--train", "nan"], "--train nan"),
    (["--chips", "--train", "1"], "need a network"),
    (["resnet18", "--train", "1", "--by-parameters"], "--by-parameters is for gpt2"),
    (["gpt2", "--by-parameters"], "is for --train"),
    (["gpt2", "--achievable", "--compute-share", "0.5"], "not allowed with"),
    (["gpt2", "--measure", "--compute-share", "0.5"], "fits the share"),
    (["gpt2", "--measure", "--weights", "fp8"], "one format"),
  ],
)
def test_what_the_launcher_refuses(argv, message, capsys):
  with pytest.raises(SystemExit) as stop:
    launcher.main(argv)
  assert stop.value.code == 2 and message in capsys.readouterr().err


def test_tokens_reach_the_memory_table(capsys):
  gib = lambda tokens: tokens * 2 * 32 * 8 * 128 * 2 / 2**30
  for argv, tokens in (([], 1000), (["--tokens", "128000"], 128_000)):
    assert launcher.main(["--memory", *argv]) == 0
    assert f"{gib(tokens):.3f}" in capsys.readouterr().out


def test_shares_and_training_of_the_launcher(capsys):
  def milliseconds(*argv):
    assert launcher.main(["gpt2", "--tokens", "512", *argv]) == 0
    said = capsys.readouterr().out
    return float(re.search(r"SXM: ([\d.]+) ms", said).group(1)), said

  plain, said = milliseconds("--train", "1e9", "--by-parameters")
  assert f"{6 * 124_439_808:.4g} operations a token (6 for each of" in said
  halved, _ = milliseconds("--compute-share", "0.5", "--bandwidth-share", "0.5")
  assert halved == pytest.approx(2 * plain, rel=0.01)
  reached, said = milliseconds("--achievable", "--train", "1e9")
  assert plain < reached < plain * 989 / 794 and "products reached" in said
  each = 6 * (12 * (12 * 768**2 + 2 * 512 * 768) + 768 * 50257)
  assert f"{each:.4g} operations a token" in said and "512 tokens of context" in said
  assert launcher.main(["gpt2", "--achievable", "--chip", "tpu_v4"]) == 1
  assert "TPU v4 achieves in bf16 is not known" in capsys.readouterr().err
