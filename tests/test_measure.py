"""Predicted against measured: the fit by other means, a run on tiny sizes, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.machines import chips
from jaxcodesign.hardware.pricing import roofline
from jaxcodesign.models import published
from jaxcodesign.programs.workload import trace
from launch import measure
from launch import roofline as launcher

array = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
TINY = published.Model(
  lambda params, x: jax.nn.relu(x @ params["a"]["kernel"]) @ params["b"]["kernel"],
  {"a": {"kernel": array(16, 32)}, "b": {"kernel": array(32, 8)}},
  array(4, 16),
)
GPT = published.gpt2(published.Gpt2(1, 2, 16, 32, 8), tokens=8)


def error(share, compute_s, memory_s, measured_s):
  predicted = np.maximum(compute_s / share, memory_s)
  return np.mean(np.abs(predicted / measured_s - 1))


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_is_the_best_of_all_shares(seed):
  rng = np.random.default_rng(seed)
  compute_s, memory_s = rng.uniform(0.5, 4, (2, 20))
  exact = np.maximum(compute_s / 0.6, memory_s)
  assert measure.fit(compute_s, memory_s, exact) == pytest.approx(0.6)
  noisy = exact * rng.uniform(0.7, 1.3, 20)
  found = measure.fit(compute_s, memory_s, noisy)
  tried = [error(s, compute_s, memory_s, noisy) for s in np.linspace(1e-3, 1, 4000)]
  assert 0 < found <= 1
  assert error(found, compute_s, memory_s, noisy) <= min(tried) + 1e-12
  assert measure.fit(compute_s, memory_s, exact / 9) == 1  # faster than the peak


def test_products_are_twenty_and_spread():
  shapes = measure.spread(8192)
  assert len(set(shapes)) == 20 and len(set(measure.spread(8))) >= 10
  intensity = [m * k * n / (m * k + k * n + m * n) for m, k, n in shapes]
  assert min(intensity) < 32 and max(intensity) > 2000
  with pytest.raises(ValueError, match="largest=7"):
    measure.spread(7)


@pytest.mark.parametrize("chip", [None, chips.h100_sxm()])
def test_a_network_is_timed_and_predicted(chip):
  found = measure.compare("tiny", TINY, chip=chip, format="fp32", largest=8)
  assert found.predicted_s.shape == found.measured_s.shape == (21,)
  assert np.all(found.measured_s > 0) and 0 < found.compute_share <= 1
  work = trace(TINY.fn)(TINY.params, TINY.inputs)
  options = {"weights": "fp32", "activations": "fp32"}
  whole = roofline.roofline(
    work, found.chip, **options, compute_share=found.compute_share
  )
  assert found.predicted_s[-1] == whole.time_s
  m, k, n = found.shapes[0]
  seconds = max(
    2 * m * k * n / (found.compute_share * found.chip.peak_op_s["fp32"]),
    4 * (m * k + k * n + m * n) / found.chip.bandwidth_bytes_s,
  )
  assert found.predicted_s[0] == pytest.approx(seconds)
  assert found.mean_error == pytest.approx(
    np.mean([abs(e) for e in found.errors[:-1].tolist()])
  )
  assert found.table().count("\n") == 23 and "which was not fitted" in found.table()


def test_the_launcher_measures_and_draws(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(launcher.NETWORKS, "gpt2", lambda batch, tokens: GPT)
  picture = tmp_path / "scatter.png"
  argv = ["gpt2", "--measure", "--largest", "8", "--picture", str(picture)]
  assert launcher.main(argv) == 0
  said = capsys.readouterr().out
  assert "8 x 8 x 8" in said and "mean error" in said and "in bf16" in said
  assert picture.stat().st_size > 10_000
  assert launcher.main([*argv, "--largest", "4"]) == 1
  assert "largest=4" in capsys.readouterr().err


def test_a_llama_keeps_bf16_from_end_to_end():
  llama = published.llama(published.Llama(1, 16, 2, 16, 2, 32), tokens=4)
  params, tokens = (
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), llama.params),
    llama.inputs,
  )
  assert jax.eval_shape(llama.fn, params, tokens).dtype == jnp.bfloat16


def test_what_cannot_be_timed_is_refused(monkeypatch):
  with pytest.raises(ValueError, match="'int4' cannot be timed"):
    measure.compare("tiny", TINY, format="int4")
  with pytest.raises(ValueError, match="none holds fp32"):
    measure.compare("tiny", TINY, format="fp32", chip=chips.tpu_v4(), largest=8)

  def widening(params, x):
    wide = lambda x, w: (x @ w * np.float32(2), None)
    return jax.lax.scan(wide, x, params["w"])[0]

  mixed = published.Model(widening, {"w": array(3, 16, 16)}, array(4, 16))
  with (
    jax.numpy_dtype_promotion("standard"),
    pytest.raises(ValueError, match="measure it in fp32"),
  ):
    measure.compare("mixed", mixed, largest=8)
  monkeypatch.setattr(measure, "_memory_bytes", lambda: 1000)
  with pytest.raises(ValueError, match="measure a smaller one"):
    measure.compare("tiny", TINY, largest=8)
