"""The picture of tiles: what it draws is what the simulator says."""

import io

from matplotlib.collections import PolyCollection
import numpy as np
from PIL import Image
import pytest

from jaxcodesign.figures import canvas
from jaxcodesign.figures import timeline as timeline_figure
from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.mapping import memory
from jaxcodesign.hardware.mapping.loops import Mapping


@pytest.mark.parametrize("shown", [3, 100])
def test_bars_are_the_events_and_occupancy_stays_below_one(shown):
  machine = presets.int8_45nm(8, 8)
  _, timeline = memory.simulate(64, 48, 40, machine, Mapping(32, 16, 20, "mnk"))
  picture = timeline_figure.figure(timeline, machine, "a layer", tiles=shown)
  lanes, held = picture.axes
  bars = [x for x in lanes.collections if isinstance(x, PolyCollection)]
  computes = bars[-1].get_paths()
  starts = [float(path.vertices[:, 0].min()) for path in computes]
  count = min(shown, 12)
  np.testing.assert_allclose(starts, np.asarray(timeline.compute_start)[:count])
  for line in held.lines:
    assert np.nanmax(line.get_ydata()) <= 1.0
  assert "12 tiles" in lanes.get_title(loc="left")
  assert f"the first {count}" in lanes.get_title(loc="left")
  with Image.open(io.BytesIO(canvas.png(picture))) as image:
    assert image.size[0] > 1000
