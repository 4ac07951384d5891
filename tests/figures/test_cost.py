"""The picture shows every product's energy by cause and its time."""

import dataclasses

import numpy as np
import pytest

from jaxcodesign.figures import canvas
from jaxcodesign.figures import cost as cost_figure
from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.programs.workload import Gemm, Workload

WORK = Workload(
  tuple(Gemm("", f"layer_{i}/$kernel$", 1, 40 + i, 64, 32) for i in range(5))
)


@pytest.fixture(scope="module")
def report():
  return cost.exact(WORK, presets.int8_45nm(8, 8))


def test_bars_are_the_numbers_of_the_report(report):
  picture = cost_figure.figure(report, "five layers")
  left, right = picture.axes
  widths = np.array([bar.get_width() for bar in left.patches]).reshape(4, 5)
  for row, part in zip(widths, ("mac", "sram", "dram", "leakage")):
    np.testing.assert_allclose(row, report.product_parts_j[part])
  ends = [bar.get_x() + bar.get_width() for bar in left.patches[-5:]]
  np.testing.assert_allclose(ends, report.product_energy_j)
  times = [bar.get_width() for bar in right.patches]
  np.testing.assert_allclose(times, report.product_time_s)
  labels = [text.get_text() for text in left.get_yticklabels()]
  assert labels == [rf"layer_{i}/\$kernel\$" for i in range(5)]
  assert canvas.png(picture).startswith(b"\x89PNG")


def test_only_the_largest_are_shown_and_a_note_says_so(report):
  picture = cost_figure.figure(report, most=2)
  assert len(picture.axes[1].patches) == 2
  note = picture.get_suptitle()
  assert "the 2 of 5 products that need most energy" in note
  kept = [text.get_text() for text in picture.axes[0].get_yticklabels()]
  largest = sorted(np.argsort(-report.product_energy_j)[:2])
  assert kept == [rf"layer_{i}/\$kernel\$" for i in largest]


def test_what_is_no_single_design_is_refused(report):
  many = dataclasses.replace(report, time_s=np.ones(3))
  with pytest.raises(ValueError, match="one design"):
    cost_figure.figure(many)
  with pytest.raises(ValueError, match="most=0"):
    cost_figure.figure(report, most=0)
