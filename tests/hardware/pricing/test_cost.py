"""The closed form: SCALE-Sim's numbers, finite differences, and laws of its own."""

import csv
import dataclasses
import functools
import itertools
import math
import pathlib

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcodesign
from jaxcodesign import tree
from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.mapping import dataflow
from jaxcodesign.hardware.mapping.fold_cycles import fold_cycles
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.numerics import formats
from jaxcodesign.programs.precision import Rule
from jaxcodesign.programs.workload import Gemm, VectorOp, Workload

REFERENCE = pathlib.Path(__file__).parents[2] / "reference"
MACHINES = [presets.int8_45nm(), presets.bit_serial_45nm(), presets.tmac_45nm()]
TQ = (Rule("*", formats.Terms(12.0), formats.Terms(3.0, group=1)),)


def gemm(m, k, n, batch=1, count=1, name="w"):
  return Gemm("", name, batch, m, k, n, count=count)


LAYERS = Workload(
  gemms=(gemm(196, 72, 32, count=2), gemm(49, 8, 1, 32)),
  vector_ops=(VectorOp("max", 12_544, 100_352),),
)


def test_cycles_and_reads_are_those_of_scalesim():
  rows = list(csv.DictReader((REFERENCE / "scalesim.csv").read_text().splitlines()))
  assert len(rows) == 303
  for row in rows:
    r, c = int(row["rows"]), int(row["cols"])
    machine = presets.int8_45nm(r, c, dataflow=row["dataflow"])
    machine = dataclasses.replace(machine, accounting="scalesim")
    with jax.enable_x64(True):
      m, k, n = (np.float64(row[name]) for name in ("M", "K", "N"))
      cycles = float(fold_cycles(machine, m, k, n, 1.0))
      one = Workload((gemm(int(m), int(k), int(n)),))
      moved = dataflow.traffic(machine, dataflow.sizes(one))
      moved = jax.tree.map(lambda x: float(x[0]), moved)
    assert cycles == int(row["demand_rows"])
    assert moved.ifmap_reads == int(row["sram_ifmap_reads"])
    assert moved.weight_reads == int(row["sram_filter_reads"])
    # SCALE-Sim writes R + C values too many per fold of an output-stationary array.
    bug = int(row["folds"]) * (r + c) if row["dataflow"] == "os" else 0
    assert moved.ofmap_writes == int(row["sram_ofmap_writes"]) - bug


def test_rtl_accounting_is_that_of_the_verilog_array():
  # K + 2R + C - 1 and 3R + C + T - 2, as simulated by Verilator.
  for r, wanted in ((8, 535), (16, 559), (32, 607)):
    machine = presets.int8_45nm(r, r)
    assert fold_cycles(machine, 8.0, 512.0, 8.0, 1.0) == wanted
  for r, c, wanted in ((8, 8, 130), (8, 16, 138)):
    machine = presets.int8_45nm(r, c, dataflow="ws")
    assert fold_cycles(machine, 100.0, 8.0, 8.0, 1.0) == wanted


def loop(g, machine, step):
  """Cycles and reads of one product by walking its folds, in Python integers."""
  r, c = int(machine.rows), int(machine.cols)
  m, k, n = g.m, g.k, g.n
  rows, cols, time = {"os": (m, n, k), "ws": (k, n, m), "is": (k, m, n)}[
    machine.dataflow
  ]
  fill = 2 * r + c - 1 if machine.dataflow == "os" else 3 * r + c - 2
  cycles = busy = 0
  for top, left in itertools.product(range(0, rows, r), range(0, cols, c)):
    cycles += time * step + fill
    busy += min(r, rows - top) * min(c, cols - left) * time * step
  return cycles * g.batch * g.count, busy * g.batch * g.count


@given(
  sizes=st.tuples(*[st.integers(1, 200)] * 3),
  array=st.tuples(st.integers(1, 40), st.integers(1, 40)),
  repeat=st.tuples(st.integers(1, 5), st.integers(1, 3)),
  dataflow=st.sampled_from(["os", "ws", "is"]),
)
def test_closed_form_is_the_walk_over_folds(sizes, array, repeat, dataflow):
  g = gemm(*sizes, *repeat)
  machine = presets.int8_45nm(*array, dataflow=dataflow)
  machine = dataclasses.replace(
    machine, dram=dataclasses.replace(machine.dram, bandwidth_bytes_s=1e30)
  )
  report = cost.exact(Workload((g,)), machine)
  cycles, busy = loop(g, machine, 1)
  assert busy == g.macs  # every multiplication happens once
  assert report.product_cycles[0] == cycles
  assert report.utilization == pytest.approx(busy / (cycles * math.prod(array)))


@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_report_adds_up(machine, dataflow):
  machine = dataclasses.replace(machine, dataflow=dataflow)
  whole = cost.exact(LAYERS, machine)
  alone = [
    cost.exact(Workload((g,), LAYERS.vector_ops if i == 0 else ()), machine)
    for i, g in enumerate(LAYERS.gemms)
  ]
  for field in ("time_s", "energy_j", "cycles", "traffic_bytes"):
    total = sum(getattr(a, field) for a in alone)
    np.testing.assert_allclose(getattr(whole, field), total, rtol=1e-12)
  assert np.all((whole.product_utilization > 0) & (whole.product_utilization <= 1))
  np.testing.assert_allclose(
    whole.energy_j, whole.product_energy_j.sum() + whole.other_energy_j, rtol=1e-12
  )
  np.testing.assert_allclose(sum(whole.parts_j.values()), whole.energy_j, rtol=1e-12)
  np.testing.assert_allclose(
    whole.time_s, whole.product_time_s.sum() + whole.other_time_s, rtol=1e-12
  )
  np.testing.assert_allclose(whole.edp_js, whole.energy_j * whole.time_s)


@pytest.mark.parametrize(
  ("machine", "policy", "cycles"),
  [
    (MACHINES[0], (Rule("*", formats.Fixed(8), formats.Fixed(8)),), 1),
    (MACHINES[0], (Rule("*", formats.Fixed(4), formats.Fixed(4)),), 1),
    (MACHINES[0], (Rule("*", formats.Fixed(16), formats.Fixed(8)),), 2),
    (MACHINES[0], (Rule("*", formats.Fixed(16), formats.Fixed(16)),), 4),
    (MACHINES[1], (Rule("*", formats.Fixed(8), formats.Fixed(8)),), 8),
    (MACHINES[1], (Rule("*", formats.Fixed(4), formats.Fixed(6)),), 6),
    (MACHINES[2], TQ, 12 * 3 / 8),
    (MACHINES[2], (Rule("*", formats.Terms(10), formats.Terms(2, group=1)),), 2.5),
    (MACHINES[2], (), 16),
  ],
)
def test_cycles_of_a_multiply_accumulate(machine, policy, cycles):
  """Bit-parallel: passes; bit-serial: activation bits; term-serial: k s / group."""
  long = Workload((gemm(1, 10**9, 1),))
  machine = dataclasses.replace(
    machine, dram=dataclasses.replace(machine.dram, bandwidth_bytes_s=1e30)
  )
  report = cost.exact(long, machine, policy=policy)
  assert report.product_cycles[0] / 1e9 == pytest.approx(cycles, rel=1e-6)
  mac = machine.mac
  idle = report.product_cycles[0] * 1024 - 1e9 * cycles
  if machine.rows * machine.cols == 1024:
    assert report.idle_j == pytest.approx(idle * mac.idle_j, rel=1e-12)
  four = policy and policy[0].weight == formats.Fixed(4) and mac.kind == "parallel"
  # Means of the synthesized arrays of 16 cells: 4 bits against 8.
  used = mac.idle_j + mac.dynamic_j() * (91.288375 / 222.545 if four else 1)
  active = report.parts_j["mac"] - report.idle_j
  assert active == pytest.approx(1e9 * cycles * used, rel=1e-6)


@functools.cache
def logarithm(policy):
  """Of the EDP, by machine and repeats: compiled once for each kind of machine."""

  def log_edp(a, repeats):
    report = cost.evaluate(LAYERS, a, policy=policy, repeats=repeats)
    return jnp.log(report.edp_js)

  return log_edp, jax.jit(log_edp)


def wide(machine):
  return jax.tree.map(np.float64, machine)


def moved(machine, index, factor):
  leaves, structure = jax.tree.flatten(machine)
  leaves[index] = leaves[index] * factor
  return jax.tree.unflatten(structure, leaves)


@pytest.mark.parametrize("temperature", [0.05, 0.3])
@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_every_leaf_has_the_gradient_of_finite_differences(
  machine, dataflow, temperature
):
  machine = dataclasses.replace(machine, dataflow=dataflow, temperature=temperature)
  machine, repeats = wide(machine), np.float64(10)
  log_edp, price = logarithm(TQ if machine.name == "tMAC" else ())
  with jax.enable_x64(True):
    # Op by op: the compiler takes longer over a gradient than all of this test.
    slopes = jax.tree.leaves(jax.grad(log_edp)(machine, repeats))
    for i, name in enumerate(tree.names(machine)):
      slope = slopes[i] * jax.tree.leaves(machine)[i]
      up, down = (price(moved(machine, i, 1 + d), repeats) for d in (1e-5, -1e-5))
      wanted = (float(up) - float(down)) / 2e-5
      assert float(slope) == pytest.approx(wanted, rel=2e-4, abs=1e-7), name


def test_budgets_have_gradients_inside_a_policy():
  @jax.jit
  @jax.value_and_grad
  def energy(policy):
    return cost.evaluate(LAYERS, MACHINES[2], policy=policy).energy_j

  slope = float(energy(TQ)[1][0].weight.budget)
  more, less = (
    energy((dataclasses.replace(TQ[0], weight=formats.Terms(b)),))[0]
    for b in (12.5, 11.5)
  )
  assert slope > 0 and slope == pytest.approx(float(more - less), rel=0.02)


def test_smooth_model_stays_near_the_exact_one_and_tends_to_it():
  for machine in MACHINES:
    hard = float(cost.exact(LAYERS, machine).edp_js)
    errors = [
      abs(
        float(cost.exact(LAYERS, dataclasses.replace(machine, temperature=t)).edp_js)
        / hard
        - 1
      )
      for t in (0.3, 0.01, 1e-4)
    ]
    assert errors[0] < 0.25 and errors[2] < 1e-2


def test_designs_are_vmapped_and_compiled_once():
  rows = jnp.array([8.0, 16.0, 24.0, 32.0])
  price = lambda r: (
    cost.evaluate(LAYERS, dataclasses.replace(MACHINES[0], rows=r)).edp_js
  )
  many = jax.jit(jax.vmap(price))(rows)
  one = [jax.jit(price)(r) for r in rows]
  np.testing.assert_allclose(many, jnp.stack(one), rtol=1e-6)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_slopes_of_the_smooth_model_are_those_of_the_exact_one(machine):
  """Where a leaf decides nothing, a quarter more of it costs what the slope says."""
  decisive = {"rows", "cols", "mac/weight_bits", "mac/activation_bits", "temperature"}
  cold, once = wide(machine), np.float64(1)
  hot = dataclasses.replace(cold, temperature=np.float64(0.2))

  @jax.jit
  def exact(a):
    return cost.evaluate(LAYERS, dataclasses.replace(a, temperature=0.0)).edp_js

  with jax.enable_x64(True):
    slopes = jax.grad(logarithm(())[0])(hot, once)
    slopes = jax.tree.map(lambda g, x: float(g) * x, slopes, hot)
    found, wanted = float(exact(cold)), cost.exact(LAYERS, machine).edp_js
    assert found == pytest.approx(float(wanted), rel=1e-12)
    for i, name in enumerate(tree.names(machine)):
      if name in decisive:
        continue
      up, down = (float(exact(moved(cold, i, factor))) for factor in (1.25, 0.8))
      wanted = math.log(up / down) / math.log(1.25 / 0.8)
      slope = tree.named_leaves(slopes)[name]
      assert slope == pytest.approx(wanted, abs=0.05), (machine.name, name)


def test_a_workload_without_products_is_refused():
  with pytest.raises(ValueError, match="no matrix product"):
    cost.evaluate(Workload(()), MACHINES[0])
  with pytest.raises(ValueError, match="matches no name; nearest: w"):
    cost.evaluate(LAYERS, MACHINES[0], policy=(Rule("x*", formats.Fixed(8)),))
  with pytest.raises(ValueError, match="w, right operand: group=7 does not divide"):
    cost.evaluate(LAYERS, MACHINES[0], policy=(Rule("*", formats.Terms(7, group=7)),))
  with pytest.raises(ValueError, match="repeats=0"):
    cost.evaluate(LAYERS, MACHINES[0], repeats=0)


@pytest.mark.parametrize("size", [0, -3])
@pytest.mark.parametrize("field", ["batch", "m", "k", "n", "count"])
def test_sizes_below_one_are_refused(field, size):
  work = Workload(
    (LAYERS.gemms[0], dataclasses.replace(gemm(4, 5, 6), **{field: size}))
  )
  with pytest.raises(ValueError, match=f"product w: {field}={size}, a size is at"):
    cost.exact(work, MACHINES[0])


def test_a_traced_product_of_an_empty_array_is_refused():
  for shape in ((0, 3), (2, 0)):
    p = jnp.ones((shape[1], 4))
    work = jaxcodesign.trace(lambda p, x: x @ p)(p, jnp.ones(shape))
    with pytest.raises(ValueError, match=r"product .*: [mk]=0, a size is at least 1"):
      cost.evaluate(work, MACHINES[0])


def test_leaves_of_any_dtype_are_priced_alike():
  wanted = float(cost.evaluate(LAYERS, MACHINES[0]).edp_js)
  for rows in (np.int64(32), jnp.int32(32), jnp.bfloat16(32), np.float32(32)):
    machine = dataclasses.replace(MACHINES[0], rows=rows)
    assert float(cost.evaluate(LAYERS, machine).edp_js) == pytest.approx(wanted)


@pytest.mark.parametrize("bits", [8, 16])
def test_elementwise_work_reads_and_writes_values_of_the_array(bits):
  machine = presets.int8_45nm()
  mac = dataclasses.replace(machine.mac, activation_bits=bits)
  machine = dataclasses.replace(machine, mac=mac)
  access = machine.ofmap.read_energy_j() + machine.ofmap.write_energy_j()
  each = machine.vector.energy_j + access * bits / 8
  found = cost.evaluate(LAYERS, machine).parts_j["vector"]
  assert float(found) == pytest.approx(12_544 * float(each), rel=1e-6)
