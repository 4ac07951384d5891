"""The benchmark of column combining compares what the report compares."""

import dataclasses
import pathlib

import pytest

from jaxcodesign.runs import command_line
from launch.benchmark_combining import CONFIG, combining
from tests.few import Few


def test_ratios_of_a_small_network(tmp_path):
  config = command_line.load(CONFIG).smoke()
  config = dataclasses.replace(config, data=Few(config.data, 2000, 500))
  rows = {row.name: row for row in combining(seeds=1, out=tmp_path, config=config)}
  for title in ("combined int8", "combined, distilled int8"):
    drop = rows[f"drop, {title}"].value
    left = rows["accuracy, int8"].value - rows[f"accuracy, {title}"].value
    assert drop == pytest.approx(left)
    assert 0 < rows[f"not zero, {title}"].value < 40
    for key in ("tiles", "cycles"):
      assert rows[f"{key} fewer than dense, {title}"].value > 1.2  # most is dense
    assert rows[f"utilization over unstructured, {title}"].value > 1.5
  assert pathlib.Path(tmp_path / "benchmark_combining_0" / "checkpoint").is_dir()
