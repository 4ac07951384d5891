"""Pictures of a run show all of it, and nothing that was not."""

import numpy as np

from jaxcodesign.figures import training

ROWS = [
  {"step": 10, "loss": 2.0, "accuracy": 0.3, "gradient": 1.0, "learning_rate": 1e-3},
  {"step": 20, "loss": None, "accuracy": 0.5, "gradient": 2.0, "learning_rate": 5e-4},
  {"step": 20, "test_loss": 1.5, "test_accuracy": 0.4},
]


def test_curves_have_every_number_and_leave_out_what_is_none():
  figure = training.curves(ROWS, target=0.45)
  lines = {
    line.get_label(): line.get_xydata().tolist()
    for ax in figure.axes
    for line in ax.get_lines()
  }
  assert lines["training"] == [[10, 2.0]]
  assert lines["training, a batch"] == [[10, 0.3], [20, 0.5]]
  assert lines["learning rate"] == [[10, 1e-3], [20, 5e-4]]
  assert [p[1] for p in lines["target"]] == [0.45, 0.45]


def test_a_short_run_fills_its_precision_map():
  bits = np.full((100, 3, 3), np.nan)
  bits[:20] = np.linspace(2, 4, 20)[:, None, None]
  figure = training.precision_map(bits, ["a", "b", "c" * 40], 20)
  images = [image for ax in figure.axes[:3] for image in ax.get_images()]
  assert [image.get_array().shape for image in images] == [(3, 20)] * 3
  assert all(np.isfinite(image.get_array()).all() for image in images)
  assert images[0].get_extent()[1] == 20
  assert figure.axes[0].get_title("left") == "weight, mean 3.00 bits"


def test_scores_show_every_seed_and_the_mean():
  figure = training.scores({"FP32": [0.8, 0.9], "FAST": [0.85, 0.87]})
  (ax,) = figure.axes
  assert [t.get_text() for t in ax.texts] == ["85.00%", "86.00%"]
  dots = [line.get_xdata() for line in ax.get_lines() if line.get_marker() == "o"]
  assert [list(x) for x in dots] == [[0.8, 0.9], [0.85, 0.87]]
