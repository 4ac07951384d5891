"""Shares of kinds are drawn as they are priced."""

import pytest

from jaxcodesign.figures import canvas, kinds
from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.pricing import layers
from jaxcodesign.programs.workload import Gemm, Workload

WORK = Workload(
  (
    Gemm("", "deep", 32, 64, 9, 1, kind="conv", window=9),
    Gemm("", "point", 1, 64, 32, 64, kind="conv"),
  )
)


def test_bars_are_the_shares():
  many = [
    layers.price(WORK, presets.int8_45nm(16, 16, dataflow=flow))
    for flow in ("os", "ws")
  ]
  drawn = kinds.figure(many, "all of $5")
  (axes,) = drawn.axes
  widths = [bar.get_width() for bar in axes.patches]
  rows = [layers.by_kind(priced) for priced in many]
  wanted = [x.macs_share for x in rows[0]] + [x.cycles_share for r in rows for x in r]
  assert widths == pytest.approx(wanted)
  assert [x.get_text() for x in axes.get_yticklabels()] == ["depthwise", "pointwise"]
  used = f"{rows[0][0].utilization:.1%} used"
  assert any(used in text.get_text() for text in axes.texts)
  assert canvas.png(drawn).startswith(b"\x89PNG")
  with pytest.raises(ValueError, match="6 arrays: 1 to 5 can be told apart"):
    kinds.figure(many * 3)
