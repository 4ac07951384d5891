"""Every joule and byte against a second answer in plain Python, and laws of traffic."""

import csv
import dataclasses
import math
import pathlib

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.programs.workload import Gemm, VectorOp, Workload, trace

KIB = 1024
TABLE = pathlib.Path(__file__).parents[2] / "reference" / "cacti_sram.csv"
CACTI = {
  int(r["size_kb"]): r
  for r in csv.DictReader(TABLE.read_text().splitlines())
  if r["tech_nm"] == "45"
}
up = lambda x, size: math.ceil(x / size)


def weight_product(m, k, n, *, batch=1, count=1, distinct=None):
  return Gemm(
    "", "w", batch, m, k, n, count=count, rhs_elements=distinct or batch * k * n * count
  )


def array_cycles(g, a):
  """Cycles of the array alone, drain and output registers included."""
  r, c = int(a.rows), int(a.cols)
  rows, cols, time = {"os": (g.m, g.n, g.k), "ws": (g.k, g.n, g.m)}.get(
    a.dataflow, (g.k, g.m, g.n)
  )
  fill = 2 * r + c - 1 if a.dataflow == "os" else 3 * r + c - 2
  return up(rows, r) * up(cols, c) * (time + fill)


def by_hand(g, a):
  """parts_j, SRAM bytes, DRAM bytes and cycles of one product in int8, from scratch."""
  r, c = int(a.rows), int(a.cols)
  passes = {
    "os": (up(g.n, c), up(g.m, r), 1),
    "ws": (up(g.n, c), 1, up(g.k, r)),
    "is": (1, up(g.m, c), up(g.k, r)),
  }[a.dataflow]
  over_image, over_weights, rounds = passes
  results, image = g.m * g.n, g.m * g.k
  cacti = lambda s, column: float(CACTI[int(s.capacity_bytes / KIB)][column])
  read = lambda s: cacti(s, "read_pJ") * 1e-12 / 8
  write = lambda s: cacti(s, "write_pJ") * 1e-12 / 8
  weights_fit = g.k * g.n <= a.weight.capacity_bytes
  image_fits = image <= a.ifmap.capacity_bytes / 2
  results_fit = results <= a.ofmap.capacity_bytes / 2
  # Fold after fold down the contraction, the sums of one column of folds wait.
  waiting = {"ws": g.m * min(g.n, c), "is": g.n * min(g.m, c)}.get(a.dataflow, 0)
  sums_fit = 4 * waiting <= a.ofmap.capacity_bytes / 2
  matrix_streams = g.k * g.n <= a.weight.capacity_bytes / 2
  from_dram = g.k * g.n
  again = 0 if weights_fit or matrix_streams else (over_weights - 1) * g.k * g.n
  image_again = 0 if image_fits else (over_image - 1) * image
  if a.dataflow == "os":
    again, image_again = (again, 0) if again <= image_again else (0, image_again)
  from_dram += again
  image_from_dram = 0 if image_fits else image + image_again
  spilled_sums = 0 if sums_fit else 2 * 4 * results * (rounds - 1)
  dram = from_dram + image_from_dram + spilled_sums + (0 if results_fit else results)
  sram = (
    max(image, image_from_dram) * write(a.ifmap)
    + over_image * image * read(a.ifmap)
    + from_dram * write(a.weight)
    + over_weights * g.k * g.n * read(a.weight)
    + 4 * rounds * results * write(a.ofmap)
    + 4 * (rounds - 1) * results * read(a.ofmap)
    + 4 * results * read(a.ofmap)
  )
  sram_bytes = (
    max(image, image_from_dram)
    + over_image * image
    + from_dram
    + over_weights * g.k * g.n
    + 4 * (2 * rounds) * results
  )
  compute = array_cycles(g, a)
  cycles = max(compute, dram / a.dram.bandwidth_bytes_s * a.clock_hz)
  seconds = cycles / a.clock_hz
  buffers = sum(cacti(b, "leak_mW") for b in (a.ifmap, a.weight, a.ofmap))
  watts = r * c * a.mac.leakage_w + buffers * 1e-3
  macs = g.m * g.k * g.n
  parts = {
    "mac": macs * a.mac.energy_j + (r * c * cycles - macs) * a.mac.idle_j,
    "sram": sram,
    "dram": dram * a.dram.access_j,
    "leakage": seconds * watts,
    "vector": 0.0,
  }
  return parts, sram_bytes, dram, cycles


SIZES = [
  (49, 288, 64),  # everything fits
  (1, 576, 128),  # one row
  (2000, 64, 64),  # activations spill
  (64, 600, 512),  # weights outgrow their buffer
  (4096, 1024, 1024),  # everything spills
  (3000, 40, 3),  # partial sums spill, inputs stationary: they do not
  (300, 100, 200),  # partial sums of all results would spill, of a column do not
]


@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bandwidth", [1e7, 12.8e9])
def test_report_is_the_one_by_hand(size, dataflow, bandwidth):
  machine = presets.int8_45nm(16, 24, dataflow=dataflow)
  dram = dataclasses.replace(machine.dram, bandwidth_bytes_s=bandwidth)
  machine = dataclasses.replace(machine, dram=dram)
  g = weight_product(*size)
  report = cost.exact(Workload((g,)), machine)
  parts, sram_bytes, dram_bytes, cycles = by_hand(g, machine)
  for name, joules in parts.items():
    assert report.parts_j[name] == pytest.approx(joules, rel=1e-12), name
  assert report.product_sram_bytes[0] == pytest.approx(sram_bytes)
  assert report.product_dram_bytes[0] == pytest.approx(dram_bytes)
  assert report.product_cycles[0] == pytest.approx(cycles)
  assert report.energy_j == pytest.approx(sum(parts.values()))
  assert report.time_s == pytest.approx(cycles / 500e6)


def test_vector_work_and_io_by_hand():
  machine = presets.int8_45nm()
  g = weight_product(8, 8, 8)
  bare = cost.exact(Workload((g,)), machine)
  ops = (VectorOp("max", 1000, 8000, 3), VectorOp("add", 500, 6000))
  full = cost.exact(Workload((g,), ops, io_elements=640), machine)
  access = machine.ofmap.read_energy_j() + machine.ofmap.write_energy_j()
  vector = 3500 * (0.1e-12 + access)
  seconds = 3500 / 32 / 500e6 + 640 / 12.8e9
  assert full.parts_j["vector"] == pytest.approx(vector)
  assert full.other_time_s == pytest.approx(seconds)
  assert full.time_s - bare.time_s == pytest.approx(seconds)
  assert full.traffic_bytes - bare.traffic_bytes == 640
  more = full.parts_j["dram"] - bare.parts_j["dram"]
  assert more == pytest.approx(640 * 1.3e-9 / 8)
  leakage = full.parts_j["leakage"] - bare.parts_j["leakage"]
  assert leakage == pytest.approx(seconds * machine.leakage_w())
  assert full.other_energy_j == pytest.approx(vector + more + leakage)


def fetched(gemms, repeats=1.0):
  return float(
    cost.exact(
      Workload(tuple(gemms)), presets.int8_45nm(), repeats=repeats
    ).traffic_bytes
  )


def test_weights_that_fit_together_are_fetched_once_for_all_repeats():
  small, big = weight_product(49, 256, 64), weight_product(49, 2048, 64)
  assert fetched([small]) == 256 * 64
  assert fetched([small], 100.0) == 256 * 64 / 100
  assert fetched([big] * 2, 100.0) == fetched([big] * 2) >= 2 * 2048 * 64


def test_a_scanned_network_is_fetched_like_an_unrolled_one():
  unrolled = [weight_product(16, 256, 128)] * 16
  scanned = [weight_product(16, 256, 128, count=16)]
  for repeats in (1.0, 1000.0):
    assert fetched(scanned, repeats) == fetched(unrolled, repeats) == 16 * 256 * 128


def test_a_weight_that_a_loop_reuses_is_fetched_once():
  recurrent = weight_product(1, 128, 128, count=100, distinct=128 * 128)
  assert fetched([recurrent]) == 128 * 128
  assert fetched([recurrent], 10.0) == 128 * 128 / 10


def test_a_weight_that_several_products_use_is_fetched_once():
  def looped(p, x):
    for _ in range(16):
      x = jnp.tanh(x @ p["w"])
    return x

  def scanned(p, x):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ p["w"]), None), x, length=16)[0]

  def sliced(p, x):
    for i in range(16):
      x = jnp.tanh(x @ p["stack"][i])
    return x

  x, w = jnp.zeros((1, 64)), jnp.zeros((64, 64))
  moved = lambda work, n: float(
    cost.exact(work, presets.int8_45nm(), repeats=n).product_dram_bytes.sum()
  )
  for n in (1.0, 100.0):
    for fn in (looped, scanned):
      assert moved(trace(fn)({"w": w}, x), n) == pytest.approx(64 * 64 / n)
    stack = {"stack": jnp.zeros((16, 64, 64))}
    assert moved(trace(sliced)(stack, x), n) == pytest.approx(16 * 64 * 64 / n)


def test_an_activation_on_the_right_leaves_the_chip_as_a_whole():
  # 8 heads of 64 x 64 fit half of 128 KiB, 32 do not: each head is read in one pass.
  assert fetched([Gemm("", "", 8, 1, 64, 64)]) == 0
  assert fetched([Gemm("", "", 32, 1, 64, 64)]) == 32 * 64 * 64


def test_products_of_activations_are_never_kept_between_repeats():
  scores = Gemm("", "", 8, 128, 64, 128)
  assert fetched([scores]) == fetched([scores], 1000.0) > 0
  small = Gemm("", "", 1, 64, 64, 64)
  assert fetched([small]) == 0  # it never left the chip


def test_a_depthwise_layer_reads_what_the_layer_before_wrote():
  tensor = 112 * 112 * 64
  pointwise = weight_product(112 * 112, 64, 64)
  depthwise = Gemm(
    "", "d", 64, 112 * 112, 9, 1, kind="conv", lhs_elements=tensor, window=9
  )
  # The weights stay, so the second pass goes over them and not over the image.
  written = fetched([pointwise]) - 64 * 64 - tensor
  assert written == tensor
  assert fetched([depthwise]) == 64 * 9 + 2 * tensor


@given(
  m=st.integers(1, 3000),
  k=st.integers(1, 3000),
  n=st.integers(1, 3000),
  dataflow=st.sampled_from(["os", "ws", "is"]),
)
def test_larger_buffers_never_move_more_bytes(m, k, n, dataflow):
  work = Workload((weight_product(m, k, n),))
  machine = presets.int8_45nm(dataflow=dataflow)
  previous = np.inf
  for factor in (1, 4, 64, 4096):
    grown = {
      name: dataclasses.replace(
        getattr(machine, name),
        capacity_bytes=getattr(machine, name).capacity_bytes * factor,
        banks=factor,
      )
      for name in ("ifmap", "weight", "ofmap")
    }
    moved = float(cost.exact(work, dataclasses.replace(machine, **grown)).traffic_bytes)
    assert k * n <= moved <= previous
    previous = moved
  assert previous == k * n  # in the end only the weights arrive
