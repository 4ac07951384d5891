"""How far the hardware models are from published tools: mismatches, errors, no times.

Cycles and SRAM accesses beside SCALE-Sim 3.0.0, compute cycles beside the Toronto
DNNsim on real operands, the cycle-level array beside numpy on random products, the
bit-serial MAC on every weight and datum, memories and cells beside their tables.
"""

from collections.abc import Iterator
import csv
import math
from pathlib import Path
import time
from typing import Any, get_args

import jax
import numpy as np

from jaxcodesign.hardware.machines import energy, presets, sram, synthesis
from jaxcodesign.hardware.machines.spec import Dataflow
from jaxcodesign.hardware.mapping import dataflow
from jaxcodesign.hardware.simulators import bitserial, peers, systolic
from jaxcodesign.hardware.simulators.folding import along
from jaxcodesign.programs.workload import Gemm, Workload
from launch.timing import Measurement

REFERENCE = Path(__file__).parents[1] / "tests/reference"
DNNSIM = {
  "dadiannao": "DaDianNao",
  "stripes": "Stripes",
  "pragmatic": "BitPragmatic",
  "laconic": "Laconic",
}


def exactness(shapes: int = 100) -> Iterator[Measurement]:
  """Mismatches and errors, beside what should be.

  Args:
    shapes: Random products and arrays up to 40 that the cycle-level array runs; each
      compiles anew, 2,000 take a quarter of an hour.
  """
  for name, check, floor, target in (
    ("cycles, reads, efficiency", _scale_sim, "SCALE-Sim, 303 layers", "0"),
    ("compute cycles", _dnnsim, "DNNsim, 3 layers x 4 designs", "0"),
    ("bit-serial MAC", _mac, "numpy, 2 x 65,536 pairs, random sums", "0"),
    ("cycle-level array", lambda: _arrays(shapes), f"numpy, {shapes:,} shapes", "0"),
  ):
    began = time.perf_counter()
    wrong = check()
    took = time.perf_counter() - began
    yield Measurement(f"mismatches, {name}", wrong, "", floor, target, took)
  for name, errors, target in (
    ("CACTI, a capacity left out", _memories(), 25.0),
    ("synthesized cells", _cells(), 15.0),
  ):
    middle, most = 100 * float(np.median(errors)), 100 * float(np.max(errors))
    floor = f"{len(errors)} numbers"
    yield Measurement(f"median error, {name}", middle, "%", floor, "<= 10 %", 0.0)
    yield Measurement(f"largest error, {name}", most, "%", floor, f"<= {target} %", 0.0)


def _rows(file: str) -> list[dict[str, str]]:
  return list(csv.DictReader((REFERENCE / file).read_text().splitlines()))


def _scale_sim() -> int:
  """Rows of which a number differs; os writes are those without a known surplus."""
  wrong = 0
  for row in _rows("scalesim.csv"):
    m, k, n, r, c = (int(row[x]) for x in ("M", "K", "N", "rows", "cols"))
    flow: Any = row["dataflow"]
    machine = presets.int8_45nm(r, c, dataflow=flow)
    one = Workload((Gemm("", "", 1, m, k, n),))
    with jax.enable_x64(True):
      moved = dataflow.traffic(machine, dataflow.sizes(one))
    surplus = int(row["folds"]) * (r + c) if flow == "os" else 0
    high, wide, _ = along(flow, m, k, n)
    used = high / (-(-high // r) * r) * wide / (-(-wide // c) * c) * 100
    wrong += (
      systolic.cycles(m, k, n, r, c, flow, "scalesim") != int(row["demand_rows"])
      or float(moved.ifmap_reads[0]) != int(row["sram_ifmap_reads"])
      or float(moved.weight_reads[0]) != int(row["sram_filter_reads"])
      or float(moved.ofmap_writes[0]) + surplus != int(row["sram_ofmap_writes"])
      or not math.isclose(used, float(row["mapping_eff_pct"]), rel_tol=1e-9)
    )
  return wrong


def _dnnsim() -> int:
  wrong = 0
  with np.load(REFERENCE / "dnnsim_operands.npz") as file:
    for row in [x for x in _rows("dnnsim.csv") if x["type"] == "conv"]:
      x, w = file[f"{row['layer']}/activations"][0], file[f"{row['layer']}/weights"]
      cut = peers.bricks(x, w, stride=int(row["stride"]), padding=int(row["pad"]))
      for name, column in DNNSIM.items():
        wrong += peers.cycles(name, cut) != int(row[f"{column}_compute_cycles"])
  return wrong


def _mac() -> int:
  """Every weight -255 .. 255 by every datum, and sums of 64 of them modulo 2^L."""
  data = np.arange(256, dtype=np.uint8)[:, None]
  weights = np.arange(-255, 256, dtype=np.int16)[:, None]
  rng = np.random.default_rng(0)
  more = rng.integers(0, 256, (64, 64)).astype(np.uint8)
  matrix = rng.integers(-255, 256, (32, 64)).astype(np.int16)
  wrong = 0
  for bits in bitserial.ACCUMULATOR_BITS:
    half = 1 << (bits - 1)
    for x, w, cols in ((data, weights, 1), (more, matrix, 16)):
      options = {"rows": 32, "cols": cols, "accumulator_bits": bits, "toggles": False}
      found, _ = bitserial.simulate(x, w, **options)
      product = x.astype(np.int64) @ w.astype(np.int64).T
      wrong += int(np.sum(np.asarray(found) != (product + half) % (2 * half) - half))
  return wrong


def _arrays(shapes: int) -> int:
  rng = np.random.default_rng(0)
  wrong = 0
  for i in range(shapes):
    if i % 100 == 99:
      jax.clear_caches()  # every shape is a program of its own: memory maps run out
    m, k, n, rows, cols = (int(x) for x in rng.integers(1, 41, 5))
    flow: Any = rng.choice(get_args(Dataflow))
    a, b = (rng.integers(-128, 128, (x, k)).astype(np.int8) for x in (m, n))
    options = {"rows": rows, "cols": cols, "dataflow": flow}
    product, trace = systolic.simulate(a, b, **options, toggles=False)
    same = np.array_equal(product, a.astype(int) @ b.astype(int).T)
    wrong += not same or trace.cycles != systolic.cycles(m, k, n, rows, cols, flow)
  return wrong


def _memories() -> np.ndarray:
  """Relative errors at inner capacities, each predicted from its neighbours."""
  errors = []
  for node in sram.NODES_NM:
    for quantity in get_args(sram.Quantity):
      at, values = sram.curve(quantity, node)
      # Capacities are powers of two: halfway in the logarithm lies the mean of those.
      guess = np.sqrt(values[:-2] * values[2:])
      errors.append(np.abs(guess / values[1:-1] - 1))
      assert np.allclose(at[1:], 2 * at[:-1])
  return np.concatenate(errors)


def _cells() -> np.ndarray:
  """Relative errors of the law at every synthesized point."""
  columns = {
    "area_mm2": ("area_um2_per_pe", 1e-6),
    "energy_j": ("dyn_pJ_per_pe_cycle", 1e-12),
    "leakage_w": ("leak_nW_per_pe", 1e-9),
  }
  errors = []
  for row in energy.table("pe_synthesis_45nm.csv"):
    array = int(row["array_n"]), int(row["array_m"])
    fusible = row["max_bits"] != row["min_bits"]
    for quantity, (column, unit) in columns.items():
      name: Any = quantity
      guess = synthesis.cost(name, row["max_bits"], fusible=fusible, array=array)
      errors.append(abs(float(guess) / (row[column] * unit) - 1))
  return np.asarray(errors)
