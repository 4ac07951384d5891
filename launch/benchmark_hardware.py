"""Speed of the simulators and of the cost model.

A cell-cycle is one cell of an array in one clock cycle. The floor of an array is a scan
of as many steps over registers of the same types that multiplies and adds in place.
"""

from collections.abc import Callable, Iterator
import csv
import dataclasses
from pathlib import Path
import statistics
import time
from typing import Any, get_args

import chex
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.machines.spec import Accelerator, Dataflow, Sram
from jaxcodesign.hardware.mapping import tilings
from jaxcodesign.hardware.pricing import cost, topology, verify
from jaxcodesign.hardware.simulators import bitserial, systolic
from jaxcodesign.models import published
from jaxcodesign.programs.workload import Workload, trace
from launch.timing import Measurement, ratio, seconds

SCALE_SIM = Path(__file__).parents[1] / "tests/reference/scalesim.csv"
RESNET18 = Path(__file__).parents[1] / "configs/topologies/resnet18.csv"
CELL_CYCLES = 4e8
DATAFLOWS: tuple[Dataflow, ...] = ("os", "ws")  # is is ws, exchanged


def hardware(
  sizes: tuple[int, ...] = (16, 32, 64, 128),
  cell_cycles: float = CELL_CYCLES,
  layers: int | None = None,
  designs: int = 100_000,
) -> Iterator[Measurement]:
  """Simulators against their floor and SCALE-Sim's first layers, then the prices."""
  for size in sizes:
    for dataflow in DATAFLOWS:
      yield from _array(size, dataflow, cell_cycles)
  if layers != 0:
    yield from _against_scale_sim(layers)
  yield _verified(None if layers is None else 1)
  yield from _mapped(None if layers is None else 2)
  for size in sizes:
    yield _bit_serial(size, cell_cycles)
  yield from _designs(designs)


def _array(size: int, dataflow: Dataflow, cell_cycles: float) -> Iterator[Measurement]:
  time_steps = int(cell_cycles / size**2)
  shape = {"os": (size, time_steps), "ws": (time_steps, size)}[dataflow]
  rng = np.random.default_rng(0)
  a = jnp.asarray(rng.integers(-128, 128, shape), jnp.int8)
  b = jnp.asarray(rng.integers(-128, 128, (size, shape[1])), jnp.int8)
  options = {"rows": size, "cols": size, "dataflow": dataflow, "toggles": False}
  run = lambda: systolic.simulate(a, b, **options)
  floor = _floor(size, dataflow, time_steps)
  name = f"{dataflow} array, {size}^2"
  value, taken = ratio(run, floor, 5)
  yield Measurement(f"{name}, time", value, "x", "its registers", "<= 3 x", taken)
  m, k, n = a.shape[0], a.shape[1], size
  work = systolic.cycles(m, k, n, size, size, dataflow) * size**2
  least = ">= 1 G/s" if size >= 32 else ""
  yield Measurement(f"{name}, cell-cycles", work / taken / 1e9, "G/s", "", least, taken)


def _floor(size: int, dataflow: str, steps: int) -> Callable[[], Any]:
  """As many steps that multiply and add the same registers, and move nothing."""
  small = jnp.ones((size, size), jnp.int8)
  wide = jnp.ones((size, size), jnp.int32)
  edges = jnp.ones(steps, jnp.int8)
  int32 = lambda x: x.astype(jnp.int32)

  def moving(registers: Any, edge: jax.Array) -> Any:
    left, right, sums = registers
    left, right = left + edge, right - edge
    return (left, right, sums + int32(left) * int32(right)), None

  def staying(registers: Any, edge: jax.Array) -> Any:
    left, made, held = registers
    left = left + edge
    return (left, held + int32(left) * wide, made + int32(edge)), None

  cycle, state = (
    (moving, (small, small, wide))
    if dataflow == "os"
    else (staying, (small, wide, wide))
  )
  run = jax.jit(lambda state, edges: lax.scan(cycle, state, edges)[0])
  return lambda: run(state, edges)


def _against_scale_sim(layers: int | None) -> Iterator[Measurement]:
  """CPU seconds of SCALE-Sim 3.0.0 over those of the cycle-level array, same layers."""
  rng = np.random.default_rng(0)
  faster: list[tuple[float, str, float]] = []
  largest = 0
  table = csv.DictReader(SCALE_SIM.read_text().splitlines())
  square = [x for x in table if x["rows"] == x["cols"] in ("16", "32", "128")]
  for row in [x for x in square if x["scalesim_cpu_s"]][:layers]:
    m, k, n, size = (int(row[x]) for x in ("M", "K", "N", "rows"))
    a = jnp.asarray(rng.integers(-128, 128, (m, k)), jnp.int8)
    b = jnp.asarray(rng.integers(-128, 128, (n, k)), jnp.int8)
    options = {"rows": size, "cols": size, "dataflow": row["dataflow"]}
    run = systolic.simulate.lower(a, b, **options, toggles=False).compile()
    taken = []
    for _ in range(2):
      began = time.process_time()
      jax.block_until_ready(run(a, b))
      taken.append(time.process_time() - began)
    where = f"{row['network']} {row['layer']} {row['dataflow']} {size}^2"
    faster.append((float(row["scalesim_cpu_s"]) / min(taken), where, min(taken)))
    used: Any = run.memory_analysis()
    largest = max(largest, used.temp_size_in_bytes + used.output_size_in_bytes)
  faster.sort()
  name = f"SCALE-Sim's CPU time, {len(faster)} layers at 16, 32, 128"
  mean = statistics.geometric_mean(x for x, _, _ in faster)
  slowest = max(seconds for _, _, seconds in faster)
  yield Measurement(f"{name}, mean", mean, "x", "os, ws, is", ">= 100 x", slowest)
  for which, (value, where, took) in zip(("least", "second least"), faster):
    yield Measurement(f"{name}, {which}", value, "x", where, ">= 25 x", took)
  yield Measurement("memory of these arrays", largest / 1e9, "GB", "", "< 0.5 GB", 0.0)


def _verified(layers: int | None) -> Measurement:
  """ResNet-18's convolutions on 32 x 32, every tile simulated and compared."""
  work = topology.read(RESNET18)
  machine = presets.int8_45nm(32, 32)
  convolutions = [g for g in work.gemms if g.name != "FC"][:layers]
  began = time.perf_counter()
  tiles = sum(verify.product(g, machine, cut="all").simulated for g in convolutions)
  took = time.perf_counter() - began
  name = f"verify ResNet-18 on 32^2, {tiles:,} tiles, compilation included"
  return Measurement(name, took, "s", "", "< 120 s", took)


def _mapped(layers: int | None) -> Iterator[Measurement]:
  """SCALE-Sim's order of folds over the searched mapping, both in our simulator."""
  faster, lighter, taken = [], [], []
  for row in list(csv.DictReader(SCALE_SIM.read_text().splitlines()))[:layers]:
    m, k, n, rows, cols = (int(row[x]) for x in ("M", "K", "N", "rows", "cols"))
    flow: Any = row["dataflow"]
    kib = [float(row[f"{name}_sram_kb"]) for name in ("ifmap", "filter", "ofmap")]
    buffers = dict(zip(("ifmap", "weight", "ofmap"), (Sram(1024 * x) for x in kib)))
    machine = dataclasses.replace(
      presets.int8_45nm(rows, cols, dataflow=flow), **buffers
    )
    fold = tilings.one_fold(m, k, n, machine)
    fixed = tilings.simulate(m, k, n, machine, fold)
    began = time.perf_counter()
    best = tilings.search(m, k, n, machine).cost
    taken.append(time.perf_counter() - began)
    least = tilings.search(m, k, n, machine, objective="dram").cost
    faster.append(float(fixed.time_s / best.time_s))
    lighter.append(float(fixed.moved.dram_bytes / least.moved.dram_bytes))
  took = statistics.median(taken)
  for what, gains in (("time", faster), ("DRAM bytes", lighter)):
    name = f"{what} of SCALE-Sim's mapping to the searched one, {len(gains)} rows"
    mean = statistics.geometric_mean(gains)
    yield Measurement(f"{name}, mean", mean, "x", "", "", took)
    yield Measurement(f"{name}, least", min(gains), "x", "", ">= 1 x", took)


def _bit_serial(size: int, cell_cycles: float) -> Measurement:
  """Filters enough to fill a 128 x 128 array; smaller arrays run side by side."""
  rng = np.random.default_rng(0)
  pixels, filters = int(cell_cycles / 2e5), max(size, 128 * 128 // size)
  data = jnp.asarray(rng.integers(0, 256, (pixels, size)), jnp.uint8)
  weights = jnp.asarray(rng.integers(-128, 128, (filters, size)), jnp.int8)
  options = {"rows": size, "cols": size, "toggles": False}
  run = lambda: bitserial.simulate(data, weights, **options)
  taken = statistics.median(seconds(run, 5))
  macs = bitserial.ACCUMULATOR_BITS[1] // 8
  steps = filters // size * bitserial.tile_cycles(pixels, size, size)
  rate = steps * macs * size**2 / taken / 1e9
  what = f"bit-serial array, {size}^2, MAC-bit-cycles"
  return Measurement(what, rate, "G/s", "", ">= 4 G/s", taken)


def _designs(designs: int, chunk: int = 200) -> Iterator[Measurement]:
  """20 layers in 3 dataflows for every design, chunks of designs that fit the cache."""
  fn, params, *inputs = published.resnet(50)
  whole = trace(fn)(params, *inputs)
  work = dataclasses.replace(whole, gemms=whole.gemms[:20], vector_ops=())
  machine = presets.int8_45nm()
  spread = jax.random.uniform(jax.random.key(0), (designs,), minval=0.5, maxval=2.0)
  many = jax.tree.map(lambda leaf: leaf * spread, machine)

  def least_edp(a: Accelerator) -> jax.Array:
    a = dataclasses.replace(a, temperature=0.0)  # known: the smooth model drops out
    flows = [dataclasses.replace(a, dataflow=d) for d in get_args(Dataflow)]
    return jnp.min(jnp.stack([cost.evaluate(work, x).edp_js for x in flows]))

  chunked = lambda f: jax.jit(lambda many: lax.map(f, many, batch_size=chunk))
  forward, backward = chunked(least_edp), chunked(jax.value_and_grad(least_edp))
  taken = statistics.median(seconds(lambda: forward(many), 5))
  yield Measurement(
    "designs x 20 layers x 3 dataflows",
    designs / taken / 1e6,
    "M/s",
    f"{designs:,} designs",
    ">= 1 M/s",
    taken,
  )
  value, taken = ratio(lambda: backward(many), lambda: forward(many), 5)
  name = "value and gradient of these"
  yield Measurement(name, value, "x", "their forward pass", "<= 4 x", taken)
  jitted = jax.jit(lambda a: cost.evaluate(whole, a))
  taken = statistics.median(seconds(lambda: jitted(machine), 7))
  name = "all of ResNet-50, one design"
  yield Measurement(name, taken * 1e3, "ms", "", "< 50 ms", taken)
  yield _descent(whole, machine)


def _descent(work: Workload, start: Accelerator, steps: int = 1000) -> Measurement:
  """Adam on the logarithms of rows and columns; a second trace would raise."""
  adam = optax.adam(1e-2)
  logs = jax.tree.map(
    lambda x: jnp.log(jnp.float32(x)), {"rows": start.rows, "cols": start.cols}
  )

  def edp(logs: Any) -> jax.Array:
    knobs = jax.tree.map(jnp.exp, logs)
    machine = dataclasses.replace(start, **knobs, temperature=0.1)
    return jnp.log(cost.evaluate(work, machine).edp_js * machine.area_mm2())

  @jax.jit
  @chex.assert_max_traces(n=1)
  def step(logs: Any, state: Any) -> Any:
    slope = jax.grad(edp)(logs)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies its int32 counter
      updates, state = adam.update(slope, state)
    return optax.apply_updates(logs, updates), state

  state = adam.init(logs)
  logs, state = step(logs, state)
  began = time.perf_counter()
  for _ in range(steps):
    logs, state = step(logs, state)
  jax.block_until_ready(logs)
  took = time.perf_counter() - began
  found = " x ".join(f"{float(jnp.exp(x)):.0f}" for x in logs.values())
  name = f"{steps:,} hardware steps on ResNet-50, one compilation"
  return Measurement(name, took, "s", f"ends at {found} cells", "", took)
