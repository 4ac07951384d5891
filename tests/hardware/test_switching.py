"""A trace is priced by what it did, term by term, and near the closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware import cost, presets, switching, systolic
from jaxcodesign.programs.workload import Gemm, Workload

SIZES = (32, 48, 24)


def run(flow, density=1.0, toggles=True):
  m, k, n = SIZES
  rng = np.random.default_rng(0)
  operands = [
    jnp.asarray(
      rng.integers(-128, 128, shape) * (rng.random(shape) < density), jnp.int8
    )
    for shape in ((m, k), (n, k))
  ]
  _, trace = systolic.simulate(
    *operands, rows=8, cols=8, dataflow=flow, toggles=toggles
  )
  return trace


@pytest.mark.parametrize("flow", ["os", "ws", "is"])
def test_parts_are_counts_times_constants(flow):
  trace, a = run(flow), presets.int8_45nm(8, 8, dataflow=flow)
  found = switching.energy_j(trace, a)
  sums = {k: int(np.sum(getattr(trace, k))) for k in trace._fields if k != "toggles"}
  flips = sum(int(np.sum(x)) for x in trace.toggles)
  assert found["toggles"] == pytest.approx(flips * 0.8 * 0.222545e-12 / 16, rel=1e-5)
  assert found["idle"] == pytest.approx(
    trace.cycles * 64 * 0.2 * 0.222545e-12, rel=1e-5
  )
  sram = (
    sums["left_reads"] * a.ifmap.read_energy_j()
    + sums["right_reads"] * a.weight.read_energy_j()
    + sums["result_writes"] * 4 * a.ofmap.write_energy_j()
    + sums["result_reads"] * 4 * a.ofmap.read_energy_j()
  )
  assert found["sram"] == pytest.approx(sram, rel=1e-5)
  assert found["leakage"] == pytest.approx(trace.cycles / 500e6 * a.leakage_w())


def test_random_operands_cost_what_the_closed_form_says():
  """Flips of random operands are what a toggle was divided by: within a fifth."""
  a = presets.int8_45nm(8, 8)
  fast = dataclasses.replace(a.dram, bandwidth_bytes_s=1e30)
  report = cost.exact(
    Workload((Gemm("", "w", 1, *SIZES),)), dataclasses.replace(a, dram=fast)
  )
  trace = run("os")
  assert trace.cycles == report.cycles
  found = switching.energy_j(trace, a)
  cells = float(found["toggles"] + found["idle"])
  assert cells == pytest.approx(report.parts_j["mac"], rel=0.2)
  assert found["leakage"] == pytest.approx(report.parts_j["leakage"])
  sparse = switching.energy_j(run("os", 0.25), a)
  assert sparse["toggles"] < 0.6 * found["toggles"]
  assert sparse["idle"] == found["idle"]


def test_leaves_have_slopes():
  trace, a = run("os"), presets.int8_45nm(8, 8)
  total = lambda x: sum(switching.energy_j(trace, x).values())
  slopes = jax.grad(lambda x: sum(switching.energy_j(trace, x).values()))(a)
  more = dataclasses.replace(
    a, mac=dataclasses.replace(a.mac, energy_j=1.01 * a.mac.energy_j)
  )
  wanted = float(total(more) - total(a)) / (0.01 * a.mac.energy_j)
  assert float(slopes.mac.energy_j) == pytest.approx(wanted, rel=1e-3)


def test_a_trace_without_toggles_is_refused():
  with pytest.raises(ValueError, match="simulate with toggles=True"):
    switching.energy_j(run("os", toggles=False), presets.int8_45nm(8, 8))
