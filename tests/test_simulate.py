"""launch.simulate as a user meets it: tables, files, verification, one clear error."""

import csv
import io
import json
import os
from pathlib import Path
import subprocess
import sys

from PIL import Image
import pytest

from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.pricing import layers, topology, verify
from jaxcodesign.hardware.simulators import systolic
from jaxcodesign.programs.workload import Workload
from launch import roofline, simulate

ROOT = Path(__file__).parents[1]
ALEXNET = str(ROOT / "configs/topologies/alexnet.csv")
SMALL = "Layer, M, N, K,\nfirst, 20, 9, 11,\nsecond, 3, 17, 8,\n"


@pytest.fixture
def small(tmp_path):
  file = tmp_path / "small.csv"
  file.write_text(SMALL)
  return str(file)


def run(*argv, capsys):
  """Exit code, standard output and standard error."""
  try:
    code = simulate.main(list(argv))
  except SystemExit as stop:
    code = stop.code
  said = capsys.readouterr()
  return code, said.out, said.err


def test_module_runs_and_its_help_has_examples():
  done = subprocess.run(
    [sys.executable, "-m", "launch.simulate", "--help"],
    cwd=ROOT,
    env=dict(os.environ, PYTHONPATH=str(ROOT)),
    capture_output=True,
    text=True,
    check=True,
  )
  for word in ("configs/topologies/resnet18.csv --verify", "--array", "resnet50"):
    assert word in done.stdout


def test_a_topology_is_priced_and_written(tmp_path, capsys):
  table, page = tmp_path / "layers.csv", tmp_path / "layers.json"
  code, out, err = run(
    ALEXNET, "--array", "ws:16x32", "--accounting", "scalesim",
    "--csv", str(table), "--json", str(page), capsys=capsys,
  )  # fmt: skip
  assert code == 0, err
  assert "ws:16x32, scalesim cycles" in out and f"wrote {table}" in out
  work = topology.read(ALEXNET)
  rows = list(csv.DictReader(table.read_text().splitlines()))
  found = json.loads(page.read_text())
  (array,) = found["arrays"]
  for g, row, layer in zip(work.gemms, rows, array["layers"], strict=True):
    cycles = systolic.cycles(g.m, g.k, g.n, 16, 32, "ws", "scalesim")
    assert row["name"] == g.name and g.name in out
    assert round(float(row["array_cycles"])) == cycles
    assert f"{float(row['cycles']):,.0f}" in out
    assert {key: str(value) for key, value in layer.items()} == {
      key: row[key] for key in layer
    }
  assert array["total"]["energy_j"] == pytest.approx(
    sum(x["energy_j"] for x in array["layers"])
  )
  assert found["versions"]["jax"] and "--accounting scalesim" in found["command"]
  assert {p.name for p in tmp_path.iterdir()} == {"layers.csv", "layers.json"}


def test_all_dataflows_side_by_side(small, tmp_path, capsys):
  file = tmp_path / "layers.csv"
  code, out, err = run(small, "--array", "4x5", "--csv", str(file), capsys=capsys)
  assert code == 0, err
  rows = list(csv.DictReader(file.read_text().splitlines()))
  assert [(r["array"], r["name"]) for r in rows] == [
    (f"{flow}:4x5", name) for flow in ("os", "ws", "is") for name in ("first", "second")
  ]
  for row in rows:
    assert row["array"] in out and f"{float(row['cycles']):,.0f}" in out
    sizes = (int(row[x]) for x in "mkn")
    cycles = systolic.cycles(*sizes, 4, 5, row["array"][:2])
    assert round(float(row["array_cycles"])) == cycles


def test_a_config_and_a_published_network(tmp_path, capsys):
  config = str(ROOT / "configs/fashion_codesign.py")
  code, out, err = run(config, "--smoke", capsys=capsys)
  assert code == 0 and "conv1/kernel" in out and "vector unit" in out, err
  file, moved = tmp_path / "gpt2.json", []
  for bits in ("8", "4"):
    argv = ("gpt2", "--tokens", "32", "--weight-bits", bits, "--json", str(file))
    code, out, err = run(*argv, capsys=capsys)
    assert code == 0 and "blocks/qkv/kernel" in out and "runs" in out, err
    moved.append(json.loads(file.read_text())["arrays"][0]["layers"][0]["dram_bytes"])
  # 32 tokens of 768 to 2,304 values in 12 blocks: what is fetched is mostly weights.
  weights = 12 * 768 * 2304
  assert moved[0] >= weights and moved[0] - moved[1] == pytest.approx(weights / 2)


def test_mobilenet_saves_multiplications_and_leaves_the_array_idle(tmp_path, capsys):
  """The lecture's point: algorithm and hardware must be looked at together."""
  page, sheet, picture = (tmp_path / x for x in ("m.json", "m.csv", "kinds.png"))
  code, out, err = run(
    "mobilenet", "--array", "os:128x128", "ws:128x128", "--against", "full",
    "--json", str(page), "--csv", str(sheet), "--kinds", str(picture), capsys=capsys,
  )  # fmt: skip
  assert code == 0 and "by kind of layer" in out and "8.56x" in out, err
  found = json.loads(page.read_text())
  for array, against in zip(found["arrays"], found["against"], strict=True):
    kinds = {row["kind"]: row for row in array["kinds"]}
    assert list(kinds) == ["stem", "depthwise", "pointwise", "dense"]
    deep, wide = kinds["depthwise"], kinds["pointwise"]
    assert sum(row["macs"] for row in kinds.values()) == 568_740_352
    assert deep["macs"] == 17_385_984 and deep["macs_share"] < 0.04
    assert deep["cycles_share"] > 0.8 and deep["utilization"] < 3e-4
    assert wide["macs_share"] > 0.94 and wide["cycles_share"] < 0.2
    twin = against["twin"]
    assert against["macs"] == pytest.approx(8.56, abs=0.005)
    cycles = twin["total"]["cycles"] / array["total"]["cycles"]
    assert against["cycles"] == pytest.approx(cycles)
    assert against["cycles"] < 2  # of the 8.56
  rows = list(csv.DictReader(sheet.read_text().splitlines()))
  assert sum(row["kind"] == "depthwise" for row in rows) == 2 * 13
  assert Image.open(io.BytesIO(picture.read_bytes())).size[0] > 1000


@pytest.mark.parametrize("flow", ["os", "ws", "is"])
def test_a_depthwise_layer_is_simulated_on_128_x_128_cells(flow):
  """512 products of one column: the simulated utilization is the table's."""
  work = roofline.workload("mobilenet", 1, 1)
  (deep,) = [g for g in work.gemms if g.name == "block07/depthwise/kernel"]
  machine = presets.int8_45nm(128, 128, dataflow=flow)
  checked = verify.product(deep, machine)
  (layer,) = layers.price(Workload((deep,)), machine).layers
  assert layer.kind == "depthwise" and layer.runs == 512
  assert layer.array_cycles == 512 * checked.counted.cycles
  never_waiting = layer.utilization * layer.cycles / layer.array_cycles
  assert checked.utilization == pytest.approx(never_waiting, rel=1e-12)
  assert checked.utilization < 4e-4


def test_layers_are_mapped_and_their_tiles_drawn(small, tmp_path, capsys):
  page, picture = tmp_path / "layers.json", tmp_path / "tiles.png"
  code, out, err = run(
    small, "--array", "os:4x5", "--map", "dram", "--timeline", str(picture),
    "--json", str(page), capsys=capsys,
  )  # fmt: skip
  assert code == 0 and "mapped for dram on os:4x5" in out, err
  first, second = json.loads(page.read_text())["arrays"][0]["mapped"]
  # Everything fits: each operand arrives once, each result leaves once.
  assert first["dram_bytes"] == 20 * 11 + 11 * 9 + 20 * 9
  assert second["dram_bytes"] == 3 * 8 + 8 * 17 + 3 * 17
  assert picture.stat().st_size > 10_000
  code, _, err = run(small, "--timeline", str(picture), capsys=capsys)
  assert code == 2 and "--timeline does nothing without --map" in err
  code, _, err = run(small, "--map", "time", "--weight-bits", "16", capsys=capsys)
  assert code == 2 and "--map moves operands as wide as the cell" in err


@pytest.mark.parametrize("tiles", [(), ("--tiles", "all")])
def test_verification_says_what_it_simulated(small, tmp_path, tiles, capsys):
  file = tmp_path / "layers.json"
  argv = (small, "--array", "os:4x5", "--verify", *tiles, "--json", str(file))
  code, out, err = run(*argv, capsys=capsys)
  assert code == 0 and "2 layers on os:4x5: every product is a @ b.T" in out, err
  first, second = json.loads(file.read_text())["arrays"][0]["verified"]
  assert (first["simulated"], second["of"]) == ((10, 4) if tiles else (1, 1))
  assert second["counted"][0] == systolic.cycles(3, 8, 17, 4, 5, "os")


def test_a_broken_simulator_ends_with_1(small, tmp_path, monkeypatch, capsys):
  real = systolic.simulate

  def wrong(a, b, **options):
    product, trace = real(a, b, **options)
    return product.at[0, 0].add(1 if a.shape[1] == 8 else 0), trace

  monkeypatch.setattr(systolic, "simulate", wrong)
  file = tmp_path / "layers.csv"
  code, out, err = run(
    small, "--array", "os:4x5", "--verify", "--csv", str(file), capsys=capsys
  )
  assert code == 1 and "Traceback" not in out + err and not file.exists()
  assert "second, tile of rows 0..2, columns 0..16: result [0, 0] is" in err


def test_pictures_and_animations(small, tmp_path, capsys):
  names = ("fill.png", "fill.gif", "fill.html")
  picture, moving, page = (tmp_path / name for name in names)
  code, out, err = run(
    small, "--array", "os:4x5", "ws:4x5", "--picture", str(picture), "--animation",
    str(moving), str(page), "--layer", "second", capsys=capsys,
  )  # fmt: skip
  assert code == 0 and out.count("wrote ") == 3, err
  assert Image.open(io.BytesIO(picture.read_bytes())).format == "PNG"
  cycles = max(
    systolic.cycles(3, 8, 1, 4, 5, "os"), systolic.cycles(3, 1, 1, 4, 5, "ws")
  )
  assert Image.open(io.BytesIO(moving.read_bytes())).n_frames == cycles
  assert "second, 3 x 8 x 17" in page.read_text()


def test_a_dry_run_writes_nothing(small, tmp_path, capsys):
  file = tmp_path / "fill.gif"
  code, out, err = run(
    small, "--array", "8x8", "--verify", "--tiles", "distinct", "--animation",
    str(file), "--dry-run", capsys=capsys,
  )  # fmt: skip
  assert code == 0, err
  assert "is, 8 x 8 cells of int8_45nm" in out and f"would write {file}" in out
  assert "would simulate 6 tiles of 2 layers" in out and not file.exists()


@pytest.mark.parametrize("name", simulate.PRESETS)
def test_every_preset_can_be_chosen(name, small, capsys):
  code, out, err = run(small, "--preset", name, capsys=capsys)
  assert code == 0 and "second" in out, err


def test_presets_are_found():
  assert simulate.PRESETS["int8_45nm"] is presets.int8_45nm
  assert {"bit_serial_45nm", "tmac_45nm"} <= set(simulate.PRESETS)


@pytest.mark.parametrize(
  ("argv", "code", "message"),
  [
    ([], 2, "NETWORK"),
    (["resnet19"], 2, "there are vgg16, resnet18"),
    (["configs/none.py"], 2, "no config file"),
    (["none.csv"], 2, "there is no file none.csv"),
    ([ALEXNET, "--array", "rs:4x4"], 2, "'rs:4x4' is no array: write os:32x32"),
    ([ALEXNET, "--array", "0x4"], 2, "'0x4' is no array"),
    ([ALEXNET, "--batch", "2"], 2, "--batch and --tokens are for published"),
    (["resnet18", "--batch", "0"], 2, "at least 1"),
    (["resnet18", "--smoke"], 2, "--smoke does nothing without a config"),
    ([ALEXNET, "--tiles", "all"], 2, "--tiles does nothing without --verify"),
    ([ALEXNET, "--layer", "Conv1"], 2, "--layer does nothing without a picture"),
    ([ALEXNET, "--against", "full"], 2, "alexnet.csv has no twin 'full'; there is"),
    (["mobilenet", "--against", "half"], 2, "there is mobilenet --against full"),
    ([ALEXNET, "--kinds", "x.pdf"], 2, "x.pdf: write a file ending in .png"),
    ([ALEXNET, "--picture", "x.gif"], 2, "x.gif: write a file ending in .png"),
    ([ALEXNET, "--animation", "x.mp4"], 2, "ending in .gif or .html"),
    ([ALEXNET, "--csv", "none/x.csv"], 1, "cannot write none/x.csv"),
    ([ALEXNET, "--weight-bits", "0"], 1, "bits=0"),
    ([ALEXNET, "--preset", "tmac_45nm", "--verify"], 1, "more than a cycle"),
    ([ALEXNET, "--weight-bits", "16", "--verify"], 1, "more than a cycle"),
    ([ALEXNET, "--animation", "x.gif", "--layer", "Conv9"], 1, "there are Conv1"),
  ],
)
def test_bad_input_is_one_clear_error(
  argv, code, message, capsys, monkeypatch, tmp_path
):
  monkeypatch.chdir(tmp_path)
  found, out, err = run(*argv, capsys=capsys)
  assert found == code and message in err
  assert "Traceback" not in out + err and not list(tmp_path.iterdir())


def test_a_broken_topology_names_its_line(tmp_path, capsys):
  file = tmp_path / "broken.csv"
  file.write_text(SMALL + "third, 1, x, 2\n")
  code, _, err = run(str(file), capsys=capsys)
  assert code == 1 and "broken.csv:4: column 'N' holds 'x'" in err
