"""Figures show every number they are given, or say in words what they leave out."""

import struct

from matplotlib.text import Text
import pytest

from jaxcodesign.experiments import report
from jaxcodesign.figures import canvas, designs, findings
from tests.experiments.results import sample


@pytest.fixture(scope="module")
def result():
  return sample()


def texts(figure):
  """Everything written into `figure`, legends included."""
  figure.draw_without_rendering()
  return [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))]


def test_every_axis_is_labelled(result):
  for name, figure in report.draw(result).items():
    for ax in figure.axes:
      assert ax.get_xlabel(), name
      named = ax.get_ylabel() or ax.get_yticklabels() or ax.get_title(loc="left")
      assert named or ax.get_shared_y_axes().get_siblings(ax) != [ax], name


def test_a_png_has_twice_the_resolution_of_the_screen(result):
  data = canvas.png(figure := designs.training(result["training"]["history"]))
  width, height = struct.unpack(">II", data[16:24])
  assert (width, height) == tuple(int(192 * inch) for inch in figure.get_size_inches())


def test_the_trade_off_names_the_front_and_what_lies_below(result):
  costs, reference = result["costs"], result["variants"][0]
  figure = designs.tradeoff(costs, reference)
  written = texts(figure)
  shown = [c for c in costs if c["accuracy"] > 0.78]
  for key in ("energy_j", "cycles"):
    for i in report.pareto([(c["accuracy"], c[key]) for c in shown]):
      assert shown[i]["variant"] in written
  assert written.count("below: int4 61%") == 2
  assert [ax.get_xscale() for ax in figure.axes] == ["linear", "log"]
  low, high = figure.axes[0].get_ylim()
  assert low < min(c["accuracy"] for c in shown) and high > reference["accuracy"]


def test_names_on_the_front_do_not_cover_each_other(result):
  figure = designs.tradeoff(result["costs"], result["variants"][0])
  figure.draw_without_rendering()
  for ax in figure.axes:
    boxes = [Text.get_window_extent(t) for t in ax.texts]
    overlap = [(a, b) for a in boxes for b in boxes if a is not b and a.overlaps(b)]
    assert len(boxes) > 3 and not overlap


def test_one_design_alone_can_be_drawn(result):
  cost = result["costs"][0]
  alone = {**result, "costs": [cost], "sensitivities": []}
  assert "int8" in texts(report.draw(alone)["tradeoff"])


def test_sensitivities_are_sorted_and_complete(result):
  given = [e for e in result["sensitivities"] if e["accelerator"] == "tMAC"][:25]
  figure = designs.sensitivities([("tMAC", given)])
  drawn = [bar.get_width() for bar in figure.axes[0].patches]
  assert (
    drawn == sorted((e["value"] for e in given), key=abs, reverse=True)[: len(drawn)]
  )
  assert f"not drawn: {25 - len(drawn)} of 25 leaves, each within ±0.01" in (
    figure.axes[0].get_xlabel()
  )
  assert min(map(abs, drawn)) >= 0.01


def test_sensitivities_say_how_large_the_left_out_leaves_are():
  entries = [{"leaf": f"leaf_{i}", "value": 0.5 - 0.01 * i} for i in range(20)]
  (ax,) = designs.sensitivities([("x", entries)], most=5).axes
  assert "not drawn: 15 of 20 leaves, each within ±0.45" in ax.get_xlabel()


def test_many_layers_keep_the_costly_ones_and_say_so():
  layers = [(f"block_{i}/kernel", "dense", 8, 8 + i, 8) for i in range(30)]
  figure = designs.layers(findings.find(sample(layers=layers)).compared, most=10)
  labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
  assert labels == [f"block_{i}/kernel" for i in range(20, 30)]
  assert "the 10 of 30 layers that need most energy" in texts(figure)


def test_energy_bars_end_at_the_total(result):
  costs = result["costs"][:3]
  figure = designs.energy(costs)
  ends = {}
  for bar in figure.axes[0].patches:
    row = round(bar.get_y() + bar.get_height() / 2)
    ends[row] = max(ends.get(row, 0), bar.get_x() + bar.get_width())
  assert [ends[i] for i in range(3)] == pytest.approx([c["energy_j"] for c in costs])


@pytest.mark.parametrize(
  ("value", "said"),
  [
    (0, "0 J"),
    (1.234e-5, "12.3 µJ"),
    (9.996e-4, "1 mJ"),
    (1e-15, "1 fJ"),
    (-2.5e3, "-2.5 kJ"),
    (1e-30, "1e-12 aJ"),
  ],
)
def test_quantities(value, said):
  assert findings.quantity(value, "J") == said
