"""Topologies and lists of products: SCALE-Sim's own numbers, round trips, refusals."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.pricing import layers as layer_costs
from jaxcodesign.hardware.pricing import topology
from jaxcodesign.hardware.simulators import systolic
from jaxcodesign.models import published
from jaxcodesign.programs.workload import Gemm, Workload, trace

ROOT = Path(__file__).parents[3]
TOPOLOGIES = ROOT / "configs/topologies"
TABLE = (ROOT / "tests/reference/scalesim.csv").read_text()
ROWS = list(csv.DictReader(TABLE.splitlines()))
HEADER = (
  "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, "
  "Num Filter, Strides,\n"
)


def written(folder, text, name="topology.csv"):
  file = folder / name
  file.write_text(text)
  return file


@pytest.mark.parametrize("name", ["alexnet", "resnet18"])
def test_scale_sim_is_reproduced_from_its_topology(name):
  work = topology.read(TOPOLOGIES / f"{name}.csv")
  rows = [row for row in ROWS if row["network"] == name]
  assert len(rows) > 50
  priced = {}
  for row in rows:
    g = work.gemms[int(row["layer_id"])]
    assert g.name == row["layer"]
    assert [g.m, g.n, g.k, g.macs] == [int(row[x]) for x in ("M", "N", "K", "macs")]
    key = int(row["rows"]), int(row["cols"]), row["dataflow"]
    found = systolic.cycles(g.m, g.k, g.n, *key, "scalesim")
    assert found == int(row["demand_rows"])
    if key not in priced:
      machine = presets.int8_45nm(*key[:2], dataflow=key[2])
      priced[key] = layer_costs.price(work, machine).layers
    layer = priced[key][int(row["layer_id"])]
    assert layer.folds == int(row["folds"])
    # SCALE-Sim never reads partial sums back, and counts R + C writes more in os.
    read_back = layer.sram_writes - g.m * g.n
    reads = int(row["sram_ifmap_reads"]) + int(row["sram_filter_reads"])
    assert reads == layer.sram_reads - read_back
    more = layer.folds * (key[0] + key[1]) if key[2] == "os" else 0
    assert int(row["sram_ofmap_writes"]) == layer.sram_writes + more


def test_convolutions_by_hand(tmp_path):
  text = (
    "layer NAME,IFMAP  height,ifmapwidth,Filter Height,Filter Width,Channels,"
    "Num Filters,Stride,\n\nfirst, 7, 9, 3, 2, 4, 5, 2,\n,,\nDP1,6,6,3,3,8,1,1\n"
  )
  first, depthwise = topology.read(written(tmp_path, "\ufeff" + text)).gemms
  assert (first.m, first.k, first.n) == (3 * 5, 3 * 2 * 4, 5)  # ceil((9 - 2 + 2) / 2)
  assert (first.kind, first.window, first.batch) == ("conv", 6, 1)
  assert (first.lhs_elements, first.rhs_elements) == (7 * 9 * 4, 24 * 5)
  assert first.source == "topology.csv:3"
  # As SCALE-Sim expands it: a layer for each channel.
  assert (depthwise.batch, depthwise.m, depthwise.k, depthwise.n) == (8, 16, 9, 1)
  assert depthwise.lhs_elements == 6 * 6 * 8 and depthwise.source == "topology.csv:5"


def test_sizes_are_those_of_the_traced_network():
  # SCALE-Sim's file leaves padding out; every k and n is that of the real network.
  fn, params, x = published.resnet(18)
  traced = trace(fn)(params, x).gemms
  read = topology.read(TOPOLOGIES / "resnet18.csv").gemms
  sizes = lambda gemms: sorted((g.k, g.n) for g in gemms)
  assert sizes(read) == sizes(traced)


def test_a_list_of_products(tmp_path):
  work = topology.read(written(tmp_path, "k,n,m\n3,4,5\n1,2,3\n"))
  assert [(g.name, g.m, g.k, g.n) for g in work.gemms] == [
    ("gemm1", 5, 3, 4),
    ("gemm2", 3, 1, 2),
  ]
  assert work.parameters == 3 * 4 + 2
  qkv = topology.read(TOPOLOGIES / "gemms.csv").gemms[0]
  assert (qkv.name, qkv.m, qkv.n, qkv.k) == ("qkv", 1024, 2304, 768)


def test_a_written_workload_reads_back(tmp_path):
  fn, params, x = published.gpt2(tokens=32)
  work = trace(fn)(params, x)
  again = topology.read(written(tmp_path, topology.text(work)))
  sizes = lambda g: (g.batch, g.m, g.k, g.n, g.count)
  assert [sizes(g) for g in again.gemms] == [sizes(g) for g in work.gemms]
  assert again.macs == work.macs and again.gemms[0].name == "blocks/qkv/kernel"
  assert topology.read(written(tmp_path, topology.text(again))) == again
  odd = topology.read(written(tmp_path, 'Layer,M,N,K\n"a, ""b""",1,2,3\na,1,2,3\n'))
  assert odd.gemms[0].name == 'a, "b"'
  assert topology.read(written(tmp_path, topology.text(odd))).gemms[0].name == 'a, "b"'


def test_equal_names_are_told_apart_when_written(tmp_path):
  fn, params, x = published.gpt2(tokens=8, scan=False)
  gemms = trace(fn)(params, x).gemms
  again = topology.read(written(tmp_path, topology.text(trace(fn)(params, x)))).gemms
  assert len({g.name for g in gemms}) < len(gemms) == len({g.name for g in again})


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "there is no layer"),
    (HEADER, "there is no layer"),
    ("1,2,3\n", r"csv:1: column 'M' is missing; .*IFMAP Height.*M, N, K"),
    ("Layer, M, N\nx, 1, 2\n", r"csv:1: column 'K' is missing"),
    (HEADER.replace("Strides,", ""), r"csv:1: column 'Strides' is missing"),
    (HEADER.replace("Layer name,", ""), r"csv:1: column 'Layer name' is missing"),
    ("M, N, K, m\n", r"csv:1: column 'm' is there twice"),
    (HEADER + "a, 9, 9, 3, 3, 1, 1,\n", r"csv:2: column 'Strides' is missing or"),
    (HEADER + "\na, 9, 9, 3, 3, 1, 1, abc,", r"csv:3: column 'Strides' holds 'abc'"),
    (HEADER + "a, 9, 9, 3, 0, 1, 1, 1,", r"csv:2: column 'Filter Width' holds '0'"),
    (HEADER + "a, 9, 9, 3, 3, -1, 1, 1,", r"csv:2: column 'Channels' holds '-1'"),
    (HEADER + "a, 9, 9, 3, 3, 1, 1.5, 1,", r"csv:2: column 'Num Filter' holds '1.5'"),
    (HEADER + "a, 9, 9, 3, 3, 1, ٣, 1,", r"csv:2: column 'Num Filter' holds '٣'"),
    (HEADER + ", 9, 9, 3, 3, 1, 1, 1,", r"csv:2: column 'Layer name' is missing or"),
    (
      HEADER + "a, 2, 9, 3, 3, 1, 1, 1,",
      r"csv:2: column 'Filter Height' holds 3, more",
    ),
    (HEADER + "a, 9, 2, 3, 3, 1, 1, 1,", r"csv:2: column 'Filter Width' holds 3, more"),
    (HEADER + "a, 9, 9, 3, 3, 1, 1, 1, 1, 2", r"csv:2: 10 cells for 8 columns"),
    ("M,N,K\n1,2,99999999999999", r"csv:2: column 'K' holds '9+': a whole number"),
    ("M,N,K,Batch size\n1,2,3,64", r"csv:2: column 'Batch size' holds '64' and is not"),
    ("M,N,K,,Dilation\n1,2,3,,2", r"csv:2: column 'Dilation' holds '2' and is not"),
    ("M,N,K,Sparsity\n1,2,3,1", r"csv:2: column 'Sparsity' holds '1': only dense"),
    (
      HEADER.replace("Strides", "Strides, Count") + "a, 9, 9, 3, 3, 1, 1, 1, 4",
      r"csv:2: column 'Count' holds '4' and is not read",
    ),
  ],
)
def test_bad_files_are_refused_with_line_and_column(text, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    topology.read(written(tmp_path, text))


def test_what_stands_beside_a_topology_is_a_note(tmp_path):
  """Words, what is right of a column without a name, and all that is empty."""
  header = HEADER.replace("Strides,", "Strides, Remark,,, Eh, Ew")
  lines = ",,,,,,,,\na, 9, 9, 3, 3, 1, 4, 1, dw,,, 7, 7,\nb, 9, 9, 3, 3, 1, 4, 1,,#x\n"
  a, b = topology.read(written(tmp_path, header + lines)).gemms
  assert (a.m, a.k, a.n, a.name) == (b.m, b.k, b.n, "a") == (49, 9, 4, "a")
  note = topology.read(written(tmp_path, HEADER + "a, 9, 9, 3, 3, 1, 4, 1,#dw\n"))
  assert note.gemms == (dataclasses.replace(a, source="topology.csv:2"),)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators(tmp_path, separator):
  text = "Layer, M, N, K, Batch,\nqkv, 5, 6, 7, 2,\nout (a, b), 1, 2, 3, 1,\n"
  text = text.replace(", ", separator).replace("a;b", "a, b").replace("a\tb", "a, b")
  first, second = topology.read(written(tmp_path, text.replace(",\n", "\n"))).gemms
  assert (first.name, first.m, first.n, first.k, first.batch) == ("qkv", 5, 6, 7, 2)
  assert (second.name, second.k) == ("out (a, b)", 3)


def test_equal_names_are_told_apart(tmp_path):
  line = "{}, 9, 9, 3, 3, 1, 1, 1,\n"
  text = HEADER + "".join(map(line.format, ("a", "b", "a", "a#2", "a")))
  names = [g.name for g in topology.read(written(tmp_path, text)).gemms]
  assert names == ["a", "b", "a#2", "a#2#2", "a#3"]


@pytest.mark.parametrize(
  ("header", "line"),
  [
    (HEADER.replace("Strides,", "Strides, Sparsity"), "a, 9, 9, 3, 3, 4, 8, 1, "),
    ("Layer, M, N, K, Sparsity,\n", "a, 9, 8, 36, "),
  ],
  ids=["convolutions", "products"],
)
def test_sparse_layers_are_refused_and_dense_ones_read(tmp_path, header, line):
  for dense in ("1:1", "4:4", ""):
    assert topology.read(written(tmp_path, header + line + dense)).gemms[0].k == 36
  for sparse in ("2:4", "0:0", "half"):
    with pytest.raises(ValueError, match=f"csv:2: column 'Sparsity' holds '{sparse}'"):
      topology.read(written(tmp_path, header + line + sparse))


def test_what_is_no_text_is_refused(tmp_path):
  file = tmp_path / "image.csv"
  file.write_bytes(bytes([0xFF, 0xFE, 0x00]))
  with pytest.raises(ValueError, match=r"image.csv: is no text in UTF-8"):
    topology.read(file)


def test_layers_add_up_to_the_report():
  work = topology.read(TOPOLOGIES / "alexnet.csv")
  for flow in ("os", "ws", "is"):
    layers, report = layer_costs.price(work, presets.int8_45nm(dataflow=flow))[1:]
    total = lambda key, layers=layers: sum(getattr(x, key) for x in layers)
    for key, whole in (
      ("cycles", report.cycles),
      ("energy_j", report.energy_j),
      ("time_s", report.time_s),
      ("dram_bytes", report.traffic_bytes),
    ):
      np.testing.assert_allclose(total(key), whole, rtol=1e-12)
    for g, x in zip(work.gemms, layers):
      assert round(x.array_cycles) == systolic.cycles(g.m, g.k, g.n, 32, 32, flow)
      assert x.array_cycles <= x.cycles * (1 + 1e-12)


def test_cells_of_several_lanes_are_as_deep_as_their_group():
  # 4,096 values are 256 groups of 16: the 256 rows of the FAST array hold them at once.
  work = Workload((Gemm("", "w", 1, 100, 4096, 64),))
  fast = presets.fast_256x64()
  quick = dataclasses.replace(fast.dram, bandwidth_bytes_s=1e15)
  (layer,), report = layer_costs.price(work, dataclasses.replace(fast, dram=quick))[1:]
  assert layer.folds == 1
  assert layer.array_cycles == layer.cycles == 100 + 3 * 256 + 64 - 2
  assert layer.sram_reads == 100 * 4096 + 4096 * 64
  assert layer.sram_writes == 100 * 64
  assert float(report.product_utilization[0]) == layer.utilization
  # 9 lanes in 6 rows: ceil(ceil(4096 / 9) / 6) folds down, ceil(64 / 6) across.
  camel = dataclasses.replace(presets.camel_6x6(), dataflow="ws")
  assert layer_costs.price(work, camel).layers[0].folds == 76 * 11
