"""A network in many formats: the network is the published one, rows are kept."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.experiments import pretrained, sweep
from jaxcodesign.experiments.codesign import Variant
from jaxcodesign.experiments.language import Prepared
from jaxcodesign.figures import curves
from jaxcodesign.models import cifar10_cnn
from jaxcodesign.numerics.formats import E4M3, Fixed, Terms
from jaxcodesign.programs.precision import Rule
from launch import evaluate

INT8 = Variant("int8", (Rule("*", Fixed(8, "channel"), Fixed(8)),))
TQ = Variant("TQ", (Rule("conv0/*", Terms(6, 3), Terms(3, 1)), Rule("*", Terms(12), Terms(3, 1))))  # noqa: E501  # fmt: skip
CONFIG = sweep.SweepConfig(pretrained.RandomCnn(), (INT8, TQ))


def by_hand(params, image):
  """One image through the network in plain numpy, float64."""
  p = jax.tree.map(np.float64, params)
  x = np.float64(image) * 255
  for i in range(6):
    kernel, norm = p[f"conv{i}"]["kernel"], p[f"bn{i}"]
    rows, cols = x.shape[0] - 2, x.shape[1] - 2
    taps = [
      x[a : a + rows, b : b + cols] @ kernel[a, b] for a in range(3) for b in range(3)
    ]
    x = np.maximum(sum(taps) + p[f"conv{i}"]["bias"], 0)
    spread = np.sqrt(norm["moving_variance"] + 1e-3)
    x = (x - norm["moving_mean"]) / spread * norm["gamma"] + norm["beta"]
    if i in (1, 3):
      x = x[: rows // 2 * 2, : cols // 2 * 2]
      x = x.reshape(rows // 2, 2, cols // 2, 2, -1).max((1, 3))
  x = x.reshape(-1)
  for i in range(3):
    x = np.maximum(x @ p[f"dense{i}"]["kernel"] + p[f"dense{i}"]["bias"], 0)
  return x


def test_weights_that_are_no_numbers_are_refused_by_file_and_name(tmp_path):
  params = cifar10_cnn.draw(2)
  flat = {f"{a}/{b}": np.array(x) for a, v in params.items() for b, x in v.items()}
  flat["conv3/kernel"][0, 0, 0, 0] = np.nan
  np.savez(tmp_path / "weights.npz", **flat)
  with pytest.raises(ValueError, match=r"weights\.npz: conv3/kernel holds 1 of 36"):
    cifar10_cnn.read_weights(tmp_path / "weights.npz")


def test_rows_of_other_weights_or_images_are_measured_again(tmp_path):
  class Changed(pretrained.RandomCnn):
    def load(self):
      found = super().load()
      return found._replace(labels=(found.labels + changed) % 10)

    def score(self, loaded, variant):
      scored.append(variant.name)
      return 0.5

  changed, scored = 0, []
  config = sweep.SweepConfig(Changed(2, 2), (INT8,))
  told = lambda: list(sweep.measure(config, tmp_path, lambda name: None))
  told(), told()
  assert scored == ["float32", "int8"]
  changed = 1
  told()
  assert scored == 2 * ["float32", "int8"]


def test_the_network_is_the_published_one(tmp_path):
  loaded = pretrained.RandomCnn().load()
  rng = np.random.default_rng(1)
  jitter = lambda leaf: leaf + jnp.float32(rng.uniform(0.1, 0.5, leaf.shape))
  params = {k: jax.tree.map(jitter, v) if "bn" in k else v
            for k, v in loaded.params.items()}  # fmt: skip
  flat = {
    f"{a}/{b}": np.array(leaf) for a, v in params.items() for b, leaf in v.items()
  }
  np.savez(tmp_path / "weights.npz", **flat)
  read = cifar10_cnn.read_weights(tmp_path / "weights.npz")
  logits = jax.jit(cifar10_cnn.apply)(read, jnp.asarray(loaded.images[:2]))
  wanted = [by_hand(params, image) for image in loaded.images[:2]]
  np.testing.assert_allclose(logits, wanted, rtol=1e-3, atol=1e-3 * np.max(wanted))


def test_missing_damaged_and_foreign_weights(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXCODESIGN_DATA", str(tmp_path))
  with pytest.raises(FileNotFoundError, match=r"no weights .*cifar10_cnn/weights\.npz"):
    pretrained.Cifar10Cnn().load()
  path = tmp_path / "weights.npz"
  path.write_bytes(b"PK no zip")
  with pytest.raises(ValueError, match="is damaged"):
    cifar10_cnn.read_weights(path)
  np.savez(path, **{"conv0/kernel": np.ones((3, 3, 3, 4), "f4")})
  with pytest.raises(ValueError, match="holds another network"):
    cifar10_cnn.read_weights(path)


def test_rows_are_kept_and_only_what_changed_is_measured_again(tmp_path):
  started = []
  first = list(sweep.measure(CONFIG, tmp_path, started.append))
  assert [r.name for r in first] == started == ["float32", "int8", "TQ"]
  assert first[0].score == 1 and not any(r.cached for r in first)
  again = list(sweep.measure(CONFIG, tmp_path, started.append))
  assert [r._replace(cached=False) for r in again] == first and len(started) == 3
  other = Variant("int8", (Rule("*", Fixed(7, "channel"), Fixed(8)),))
  changed = sweep.SweepConfig(CONFIG.network, (other, TQ))
  list(sweep.measure(changed, tmp_path, started.append))
  assert started[3:] == ["int8"]
  for file in (tmp_path / "rows").iterdir():
    file.write_text(file.read_text()[:20])  # as if the disk had been full
  list(sweep.measure(CONFIG, tmp_path, started.append))
  assert started[4:] == ["float32", "int8", "TQ"]


def test_term_pairs_are_those_of_the_formats(tmp_path):
  loaded = CONFIG.network.load()
  work = CONFIG.network.workload(loaded)
  assert sweep.pairs(INT8, work) == 49
  share = work.gemms[0].macs / work.macs
  wanted = share * 2 * 3 + (1 - share) * 12 / 8 * 3
  np.testing.assert_allclose(sweep.pairs(TQ, work), wanted, rtol=1e-5)
  floats = Variant("E4M3", (Rule("*", E4M3, E4M3),))
  assert sweep.pairs(floats, work) is None and sweep.weight_bits(floats, work) == 8
  plain = Variant("float32", ())
  assert sweep.pairs(plain, work) is None and sweep.weight_bits(plain, work) == 32
  ready = Prepared("v", (Rule("*", None, Fixed(8)),), method="gptq", weight=Fixed(4))
  assert sweep.pairs(ready, work) == 21 and sweep.weight_bits(ready, work) == 4


def test_savings_compare_equal_accuracy_only():
  row = lambda name, score, pairs: sweep.Row(name, score, pairs, 8.0, 1.0, False)
  rows = [row("int8", 0.8, 49.0), row("int4", 0.5, 9.0), row("a", 0.79, 4.0),
          row("b", 0.81, 7.0), row("c", 0.82, 14.0), row("fp", 0.9, None)]  # fmt: skip
  found = sweep.savings(rows, ["a", "b", "c"])
  assert [(s.uniform.name, s.terms.name, s.ratio) for s in found] == [
    ("int8", "b", 7.0), ("int4", "a", 2.25),
  ]  # fmt: skip
  assert sweep.savings(rows, ["a", "b", "c"], "perplexity")[0].terms.name == "a"
  points = [(4.0, 0.7, "a"), (2.0, 0.7, "b"), (9.0, 0.9, "c"), (5.0, 0.6, "d")]
  assert [p[2] for p in curves.front(points)] == ["b", "c"]
  assert [p[2] for p in curves.front(points, more=False)] == ["b", "d"]


def test_an_idle_rule_is_refused_before_any_work(tmp_path):
  bad = Variant("bad", (Rule("conv9/*", Fixed(8)),))
  with pytest.raises(ValueError, match="'conv9/\\*' matches no name"):
    next(sweep.measure(sweep.SweepConfig(CONFIG.network, (bad,)), tmp_path))
  with pytest.raises(ValueError, match="unique names"):
    sweep.SweepConfig(CONFIG.network, (INT8, INT8))


def test_the_program_writes_table_curve_and_rows(tmp_path, capsys):
  argv = ["configs/cifar10_formats.py", "--smoke", "--out", str(tmp_path)]
  assert evaluate.main(argv) == 0
  said = capsys.readouterr().out
  assert "float32" in said and "term pairs" in said
  assert said.startswith("SMOKE") and "as good as" not in said
  folder = tmp_path / "cifar10_formats_smoke"
  assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
  found = json.loads((folder / "rows.json").read_text())
  assert len(found["rows"]) == 4 and found["versions"]["jax"] == jax.__version__
  assert evaluate.main([*argv, "--dry-run"]) == 0
  assert "4.62 term pairs" in capsys.readouterr().out
  with pytest.raises(SystemExit):
    evaluate.main(["configs/fashion_codesign.py", "--out", str(tmp_path)])
  assert "is a CodesignConfig, no SweepConfig" in capsys.readouterr().err
