"""Pictures of an array hold what its cells do, cycle by cycle."""

import base64
import hashlib
import io
import json
import re

import matplotlib.colors
import numpy as np
from PIL import Image
import pytest

from jaxcodesign.figures import array, array_page, canvas
from jaxcodesign.hardware.simulators import activity


def fold(dataflow, m=5, k=7, n=4, rows=6, cols=5):
  return activity.first_fold(m, k, n, rows=rows, cols=cols, dataflow=dataflow)


FOLDS = {f"{flow}:6x5": fold(flow) for flow in ("os", "ws", "is")}


def test_moments_are_in_order_distinct_and_denser_where_cells_change():
  long = fold("os", k=1000, rows=8, cols=8)
  found = array.moments([long], 40)
  assert found == sorted(set(found)) and len(found) == 40
  assert found[0] >= 0 and found[-1] < long.cycles
  # Filling and draining are 3 % of the cycles and take about half of the pictures.
  busy = sum(24 < cycle < 980 for cycle in found)
  assert 15 < busy < 25
  short = FOLDS["os:6x5"]
  assert array.moments([short], 100) == list(range(short.cycles))
  for count in range(1, short.cycles + 1):
    some = array.moments([short], count)
    assert len(set(some)) == count and some[-1] < short.cycles


def test_a_strip_shows_the_cells_of_its_moments():
  figure = array.strip(FOLDS, "a layer", count=5)
  images = [ax for ax in figure.axes if ax.images]
  assert len(images) == 5 * len(FOLDS)
  for i, one in enumerate(FOLDS.values()):
    for ax, cycle in zip(images[5 * i :], array.moments([one], 5)):
      np.testing.assert_array_equal(ax.images[0].get_array(), one.states(cycle))
      assert ax.get_title() == f"cycle {cycle}"
      busy = (one.states(cycle) == activity.MULTIPLYING).mean()
      assert ax.get_xlabel() == f"{busy:.0%} busy"
  curves = [ax for ax in figure.axes if not ax.images]
  assert all(ax.get_xlabel() and ax.get_ylabel() for ax in curves)
  image = Image.open(io.BytesIO(canvas.png(figure)))
  assert image.size[0] > 1000
  drawn = {tuple(pixel) for pixel in np.asarray(image.convert("RGB")).reshape(-1, 3)}
  for colour in array.STATES:
    rgb = np.rint(255 * np.array(matplotlib.colors.to_rgb(colour))).astype(int)
    assert tuple(rgb) in drawn


def test_a_strip_of_fewer_cycles_than_pictures():
  short = {"os:1x1": fold("os", 1, 1, 1, 1, 1)}
  images = [ax for ax in array.strip(short).axes if ax.images]
  assert len(images) == short["os:1x1"].cycles < 8


@pytest.mark.parametrize("frames", [4, 100])
def test_an_animation_has_a_frame_for_each_moment(frames):
  some = {name: FOLDS[name] for name in ("os:6x5", "ws:6x5")}
  image = Image.open(io.BytesIO(array.animation(some, "layer", frames=frames)))
  longest = max(one.cycles for one in some.values())
  assert image.format == "GIF" and image.n_frames == min(frames, longest)
  pictures = []
  for i in range(image.n_frames):
    image.seek(i)
    pictures.append(image.convert("RGB").tobytes())
  assert len(set(pictures)) == image.n_frames  # every one shows another cycle
  assert image.info["loop"] == 0


def test_the_page_holds_every_cell_and_loads_nothing():
  page = array_page.render(FOLDS, "</script> & layer")
  (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  assert f"sha256-{digest}" in page and "default-src 'none'" in page
  assert "&lt;/script&gt; &amp; layer" in page
  assert not re.search(r"https?:|src=|@import", page)
  data = json.loads(re.search(r"const data = (.*);\n", script)[1])
  for told, (name, one) in zip(data["folds"], FOLDS.items(), strict=True):
    assert (told["name"], told["rows"], told["cols"]) == (name, 6, 5)
    assert told["cycles"] == one.cycles
    np.testing.assert_array_equal(told["cells"], one.cells())
    for cycle in range(one.cycles):
      states = np.zeros(30, int)
      for state, (first, end) in enumerate(told["spans"], start=1):
        states[(np.array(first) <= cycle) & (cycle < np.array(end))] = state
      np.testing.assert_array_equal(states.reshape(6, 5), one.states(cycle))
