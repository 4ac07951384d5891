"""The picture of time to accuracy draws what the rows say, and every name apart."""

import io

import numpy as np
from PIL import Image
import pytest

from jaxcodesign.experiments import to_accuracy
from jaxcodesign.experiments.to_accuracy import Price
from jaxcodesign.figures import canvas

NAMES = (
  "FP32",
  "bfloat16",
  "INT8",
  "HFP8",
  "MSFP-12",
  "LowBFP",
  "MidBFP",
  "$4",
  "FAST",
)
TARGET = 0.88
PRICES = {
  name: Price(0.01 * (i + 1) ** 0.8, 0.1 * (i + 1)) for i, name in enumerate(NAMES)
}


def learn(best, seed):
  """A curve that closes in on `best`."""
  noise = np.random.default_rng(seed).normal(size=30) * 0.002
  return [(100 * i, best - 0.4 * 0.8**i + x) for i, x in enumerate(noise, start=1)]


CURVES = {
  name: {
    seed: learn(0.84 if name == "LowBFP" else 0.9, 10 * i + seed) for seed in range(3)
  }
  for i, name in enumerate(NAMES)
}


def test_marks_and_curves_are_the_runs():
  picture = to_accuracy.draw(CURVES, PRICES, TARGET)
  rows = to_accuracy.to_accuracy(CURVES, PRICES, TARGET)
  for column, key in enumerate(("time_s", "energy_j")):
    above, below = picture.axes[column], picture.axes[2 + column]
    assert above.get_xscale() == below.get_xscale() == "log"
    for index, (name, line) in enumerate(zip(NAMES, below.lines)):
      wanted = [getattr(r, key) for r in rows if r.system == name]
      np.testing.assert_allclose(line.get_xdata(), [x for x in wanted if x is not None])
      assert set(line.get_ydata()) <= {index}
    # The target, then for each system three seeds and their mean.
    target, *lines = above.lines
    assert set(target.get_ydata()) == {TARGET} and len(lines) == 4 * len(NAMES)
    seeds, mean = np.array([x.get_ydata() for x in lines[:3]]), lines[3]
    np.testing.assert_allclose(mean.get_ydata(), seeds.mean(0))
    each = getattr(PRICES["FP32"], key)
    np.testing.assert_allclose(mean.get_xdata(), each * 100 * np.arange(1, 31))
  said = [text.get_text() for text in picture.axes[2].texts]
  assert "0 of 3 seeds reach it" in said and len(said) == len(NAMES)
  with Image.open(io.BytesIO(canvas.png(picture))) as image:
    assert image.size[0] > 1500


def test_names_do_not_overlap_and_stay_inside():
  picture = to_accuracy.draw(CURVES, PRICES, TARGET)
  picture.draw_without_rendering()
  for ax in picture.axes[:2]:
    texts = ax.texts
    assert {t.get_text() for t in texts} >= {n.replace("$", r"\$") for n in NAMES}
    boxes, inside = [t.get_window_extent() for t in texts], ax.get_window_extent()
    for i, box in enumerate(boxes):
      assert not any(box.overlaps(other) for other in boxes[:i])
      assert inside.x0 <= box.x0 and box.x1 <= inside.x1
      assert inside.y0 <= box.y0 and box.y1 <= inside.y1


def test_a_price_that_moves_and_seeds_that_stop_early_are_drawn():
  curves = {"FAST": {0: CURVES["FAST"][0], 1: CURVES["FAST"][1][:20]}}
  moving = {0: Price([1.0, 3.0], [2.0, 4.0], [1000, 3000]), 1: Price(2.0, 2.0)}
  ax = to_accuracy.draw(curves, {"FAST": moving}, 0.99, metric="score").axes[0]
  mean = ax.lines[-1]
  assert len(mean.get_xdata()) == 20  # what both seeds have
  np.testing.assert_allclose(mean.get_xdata()[-1], (1000 + 3000 + 4000) / 2)
  assert any(t.get_text() == "target 0.99" for t in ax.texts)


def test_too_many_systems_are_refused():
  many = {str(i): CURVES["FAST"] for i in range(11)}
  prices = {name: Price(1.0, 1.0) for name in many}
  with pytest.raises(ValueError, match="11 systems: 1 to 10 can be told apart"):
    to_accuracy.draw(many, prices, TARGET)
