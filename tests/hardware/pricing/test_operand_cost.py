"""Formats decide what a product costs: bits, mantissas, budgets, and their slopes."""

import dataclasses
import math

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.machines import cells, presets
from jaxcodesign.hardware.mapping import dataflow
from jaxcodesign.hardware.mapping.fold_cycles import fold_cycles
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.hardware.simulators import folding
from jaxcodesign.numerics import formats
from jaxcodesign.programs.precision import Rule
from jaxcodesign.programs.workload import Gemm, Workload

WORK = Workload((Gemm("", "w", 1, 96, 144, 40), Gemm("", "v", 2, 33, 64, 7)))


def machine(cell, flow="os", **changes):
  whole = presets.int8_45nm(8, 8, dataflow=flow)
  return dataclasses.replace(whole, mac=cell, **changes)


MACHINES = {
  "parallel": machine(cells.parallel()),
  "fusible": machine(cells.fusible()),
  "bit_serial": machine(cells.bit_serial()),
  "tmac": machine(cells.tmac()),
  "fmac": machine(cells.fmac()),
  "shift": machine(cells.shift()),
  "floating": machine(cells.floating("fp16")),
}


def fixed(weight, activation):
  return (Rule("*", formats.Fixed(weight), formats.Fixed(activation)),)


def block(weight, activation):
  return (Rule("*", formats.BlockFloat(weight), formats.BlockFloat(activation)),)


@given(
  name=st.sampled_from(sorted(MACHINES)),
  flow=st.sampled_from(["os", "ws", "is"]),
  bits=st.tuples(st.integers(2, 20), st.integers(2, 20)),
  side=st.sampled_from([(1, 0), (0, 1), (1, 1)]),
)
def test_more_bits_are_never_cheaper(name, flow, bits, side):
  whole = dataclasses.replace(MACHINES[name], dataflow=flow)
  wider = [b + more for b, more in zip(bits, side)]
  few = cost.exact(WORK, whole, policy=fixed(*bits))
  many = cost.exact(WORK, whole, policy=fixed(*wider))
  for field in ("time_s", "energy_j", "traffic_bytes"):
    assert getattr(many, field) >= getattr(few, field) * (1 - 1e-12), field


@given(
  name=st.sampled_from(sorted(MACHINES)),
  flow=st.sampled_from(["os", "ws", "is"]),
  sizes=st.tuples(*[st.integers(1, 90)] * 3),
  bits=st.tuples(st.integers(2, 12), st.integers(2, 12)),
)
def test_products_add_up(name, flow, sizes, bits):
  whole = dataclasses.replace(MACHINES[name], dataflow=flow)
  gemms = (Gemm("", "a", 1, *sizes), Gemm("", "b", 1, 17, 29, 5, count=3))
  price = lambda *g: cost.exact(Workload(g), whole, policy=fixed(*bits))
  both, first, second = price(*gemms), price(gemms[0]), price(gemms[1])
  for field in ("time_s", "energy_j", "cycles", "traffic_bytes", "idle_j"):
    total = getattr(first, field) + getattr(second, field)
    np.testing.assert_allclose(getattr(both, field), total, rtol=1e-12)
  assert np.all((both.product_utilization > 0) & (both.product_utilization <= 1))
  split = np.sum(np.stack(list(both.product_parts_j.values())), axis=0)
  np.testing.assert_allclose(split, both.product_energy_j, rtol=1e-12)
  assert 0 <= both.idle_j < both.parts_j["mac"]


@given(
  flow=st.sampled_from(["os", "ws", "is"]),
  accounting=st.sampled_from(["rtl", "scalesim"]),
  sizes=st.tuples(*[st.integers(1, 90)] * 3),
  array=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_at_a_fixed_fold_count_a_row_costs_only_its_fill(
  flow, accounting, sizes, array
):
  """More rows never take more steps of time; each row fills and drains longer."""
  rows, cols = array
  m, k, n = sizes
  high, wide, time = folding.along(flow, m, k, n)
  folds = lambda r: math.ceil(high / r) * math.ceil(wide / cols)
  taken = []
  for r in (rows, rows + 1):
    a = dataclasses.replace(presets.int8_45nm(r, cols), accounting=accounting)
    a = dataclasses.replace(a, dataflow=flow)
    with jax.enable_x64(True):
      taken.append(int(fold_cycles(a, *map(np.float64, sizes), 1.0)))
  fill = folding.fill(flow, accounting, 1, 0) - folding.fill(flow, accounting, 0, 0)
  if folds(rows) == folds(rows + 1):
    assert taken[1] - taken[0] == folds(rows) * fill
  steps = [c - folds(r) * folding.fill(flow, accounting, r, cols)
           for c, r in zip(taken, (rows, rows + 1))]  # fmt: skip
  assert steps[1] <= steps[0] == folds(rows) * time


def by_loop(flow, rows, cols, lanes, step):
  """Cycles and busy cell cycles of WORK, fold by fold, for cells of several lanes."""
  cycles = busy = 0
  for g in WORK.gemms:
    k = -(-g.k // lanes)
    high, wide, time = {"os": (g.m, g.n, k), "ws": (k, g.n, g.m)}.get(
      flow, (k, g.m, g.n)
    )
    fill = 2 * rows + cols - 1 if flow == "os" else 3 * rows + cols - 2
    for top in range(0, high, rows):
      for left in range(0, wide, cols):
        used = min(rows, high - top) * min(cols, wide - left)
        cycles += g.batch * (time * step + fill)
        busy += g.batch * used * time * step
  return cycles, busy


@pytest.mark.parametrize("flow", ["os", "ws", "is"])
@pytest.mark.parametrize(
  ("name", "policy", "lanes", "step"),
  [
    ("fmac", block(2, 2), 16, 1),
    ("fmac", block(4, 2), 16, 2),
    ("fmac", block(3, 5), 16, 6),
    ("fmac", (), 16, 1),
    ("fusible", fixed(8, 8), 1, 1),
    ("fusible", fixed(4, 2), 8, 1),
    ("fusible", fixed(3, 8), 2, 1),
    ("fusible", fixed(16, 4), 2, 2),
    ("floating", fixed(8, 8), 1, 1),
    ("shift", fixed(4, 6), 1, 6),
  ],
)
def test_cells_of_several_lanes_by_walking_the_folds(name, policy, lanes, step, flow):
  whole = dataclasses.replace(MACHINES[name], dataflow=flow)
  whole = dataclasses.replace(
    whole, dram=dataclasses.replace(whole.dram, bandwidth_bytes_s=1e30)
  )
  report = cost.exact(WORK, whole, policy=policy)
  cycles, busy = by_loop(flow, 8, 8, lanes, step)
  assert report.cycles == cycles
  assert report.utilization == pytest.approx(busy / (64 * cycles), rel=1e-12)
  mac, groups = whole.mac, busy // step
  results = sum(g.batch * g.m * g.n for g in WORK.gemms)
  assert report.idle_j == pytest.approx((64 * cycles - busy) * mac.idle_j, rel=1e-12)
  wanted = busy * mac.energy_j + groups * mac.group_j + results * mac.output_j
  assert report.parts_j["mac"] - report.idle_j == pytest.approx(wanted, rel=1e-9)


def test_partial_sums_go_round_less_often_through_wide_cells():
  work = Workload((Gemm("", "w", 1, 3000, 128, 8),))
  wide = machine(cells.fmac(), "ws")
  narrow = machine(cells.fmac(group=1), "ws")
  written = lambda m: float(cost.exact(work, m, policy=block(2, 2)).traffic_bytes)
  assert written(wide) < written(narrow) / 5  # 1 round of sums against 16


def test_narrow_operands_switch_less_of_a_parallel_cell():
  """The energies of the two synthesized cells, whichever operand is narrow."""
  idle = cells.parallel().idle_j

  def joules(policy):
    report = cost.exact(WORK, MACHINES["parallel"], policy=policy)
    return float(report.parts_j["mac"] - report.idle_j) / WORK.macs

  assert joules(fixed(8, 8)) == pytest.approx(0.222545e-12, rel=1e-6)
  dynamic = 0.222545e-12 - idle
  four = idle + dynamic * 91.288475 / 222.545
  assert joules(fixed(4, 4)) == pytest.approx(four, rel=1e-6)
  assert joules(fixed(2, 8)) == joules(fixed(8, 2)) == pytest.approx(four, rel=1e-6)


@pytest.mark.parametrize("flow", ["os", "ws"])
def test_bits_have_the_slopes_of_finite_differences(flow):
  """d(energy)/d(bits) of operands in the exact model, where widths decide nothing."""
  whole = MACHINES["parallel"]
  with jax.enable_x64(True):
    sizes = dataflow.sizes(WORK)
    mac = jax.tree.map(jnp.float64, whole.mac)

    def energy(bits):
      left, right = (
        dataflow.Operand(jnp.full(2, b), jnp.ones(2)) for b in (bits[0], bits[1])
      )
      step = cost.steps(mac, left, right)
      wide = jax.tree.map(jnp.float64, dataclasses.replace(whole, dataflow=flow))
      wide = dataclasses.replace(wide, temperature=0.0)
      _, sram_j, dram = dataflow.bytes_moved(wide, sizes, left, right, jnp.float64(1))
      joules = sizes.macs * step.cycles * step.active_j
      return jnp.sum(joules + sram_j + dram * wide.dram.access_j)

    at = jnp.array([5.3, 6.7])
    slopes = jax.grad(energy)(at)
    for i in range(2):
      step = jnp.zeros(2).at[i].set(1e-5)
      wanted = float(energy(at + step) - energy(at - step)) / 2e-5
      assert float(slopes[i]) > 0
      assert float(slopes[i]) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("flow", ["os", "ws", "is"])
@pytest.mark.parametrize("side", ["weight", "activation"])
def test_mantissas_have_the_slope_of_a_whole_chunk(side, flow):
  """Linear through full chunks: the secant of the exact model over two of them."""
  whole = dataclasses.replace(MACHINES["fmac"], dataflow=flow)
  whole = dataclasses.replace(
    whole, dram=dataclasses.replace(whole.dram, bandwidth_bytes_s=1e30)
  )
  with jax.enable_x64(True):

    def energy(policy):
      return cost.evaluate(WORK, whole, policy=policy).energy_j

    at = block(jnp.float64(4), jnp.float64(4))
    slope = getattr(jax.grad(energy)(at)[0], side).mantissa
    near = [energy(block(*((m, 4) if side == "weight" else (4, m)))) for m in (6, 2)]
    assert float(slope) > 0
    assert float(slope) == pytest.approx(float(near[0] - near[1]) / 4, rel=1e-6)


def test_term_budgets_have_the_slope_of_finite_differences():
  with jax.enable_x64(True):

    def energy(budget):
      rule = Rule("*", formats.Terms(budget), formats.Terms(3.0, group=1))
      return cost.evaluate(Workload(WORK.gemms[:1]), MACHINES["tmac"], policy=(rule,))

    for quantity in ("energy_j", "edp_js"):
      f = lambda b, q=quantity: getattr(energy(b), q)
      slope = float(jax.grad(f)(jnp.float64(12)))
      wanted = float(f(jnp.float64(12.01)) - f(jnp.float64(11.99))) / 0.02
      assert slope > 0 and slope == pytest.approx(wanted, rel=1e-4)


def test_a_designer_may_descend_on_the_width_of_the_cell():
  with jax.enable_x64(True):

    def energy(bits):
      cell = cells.parallel(bits, bits)
      return cost.evaluate(WORK, machine(cell)).energy_j

    slope = float(jax.grad(energy)(jnp.float64(6.5)))
    wanted = float(energy(jnp.float64(6.501)) - energy(jnp.float64(6.499))) / 0.002
    assert slope > 0 and slope == pytest.approx(wanted, rel=1e-4)
