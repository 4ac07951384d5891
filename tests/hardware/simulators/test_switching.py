"""A trace is priced by what it did, term by term, and near the closed form."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.hardware.simulators import array_scan, switching, systolic
from jaxcodesign.programs.workload import Gemm, Workload

SIZES = (32, 48, 24)


def run(flow, *, quiet=False, sizes=SIZES, density=1.0, accounting="rtl", array=(8, 8)):
  """A trace; quiet, with no bit flipped: without a product there is no array."""
  m, k, n = sizes
  rng = np.random.default_rng(0)
  operands = [
    jnp.asarray(
      rng.integers(-128, 128, shape) * (rng.random(shape) < density), jnp.int8
    )
    for shape in ((m, k), (n, k))
  ]
  rows, cols = array
  options = {"dataflow": flow, "accounting": accounting, "toggles": not quiet}
  simulate = partial(systolic.simulate, rows=rows, cols=cols, **options)
  if not quiet:
    return jax.device_get(simulate(*operands)[1])
  trace = jax.device_get(jax.jit(lambda a, b: simulate(a, b)[1])(*operands))
  none = np.zeros_like(trace.busy)
  return trace._replace(toggles=array_scan.Flips(none, none, none))


@pytest.mark.parametrize("flow", ["os", "ws", "is"])
def test_parts_are_counts_times_constants(flow):
  trace, a = run(flow), presets.int8_45nm(8, 8, dataflow=flow)
  found = switching.energy_j(trace, a)
  sums = {k: int(np.sum(getattr(trace, k))) for k in trace._fields if k != "toggles"}
  flips = sum(int(np.sum(x)) for x in trace.toggles)
  # Operands of 8 bits, half of them flip; sums of 32, in two registers.
  each = {"os": 16, "ws": 4 + 32, "is": 4 + 32}[flow]
  dynamic = 0.8 * 0.222545e-12
  assert found["toggles"] == pytest.approx(flips * dynamic / each, rel=1e-5)
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


@pytest.mark.parametrize(
  ("sizes", "accounting"),
  [((32, 48, 24), "rtl"), ((32, 48, 24), "scalesim"), ((96, 128, 80), "rtl")],
)
@pytest.mark.parametrize("flow", ["os", "ws", "is"])
def test_random_operands_cost_what_the_closed_form_says(flow, accounting, sizes):
  """In every dataflow a toggle was divided by the flips of random operands."""
  a = presets.int8_45nm(8, 8, dataflow=flow)
  fast = dataclasses.replace(a.dram, bandwidth_bytes_s=1e30)
  a = dataclasses.replace(a, dram=fast, accounting=accounting)
  report = cost.exact(Workload((Gemm("", "w", 1, *sizes),)), a)
  trace = run(flow, sizes=sizes, accounting=accounting)
  assert trace.cycles == report.cycles
  found = switching.energy_j(trace, a)
  cells = float(found["toggles"] + found["idle"])
  assert cells == pytest.approx(report.parts_j["mac"], rel=0.1)
  assert found["leakage"] == pytest.approx(report.parts_j["leakage"])


def test_sparse_operands_switch_less():
  found, sparse = (
    switching.energy_j(run("os", density=density), presets.int8_45nm(8, 8))
    for density in (1.0, 0.25)
  )
  assert sparse["toggles"] < 0.6 * found["toggles"]
  assert sparse["idle"] == found["idle"]


@pytest.mark.parametrize("flow", ["os", "ws", "is"])
def test_a_batch_costs_the_sum_of_its_runs(flow):
  m, k, n = SIZES
  rng = np.random.default_rng(1)
  draw = lambda *shape: jnp.asarray(rng.integers(-128, 128, shape), jnp.int8)
  left, right = draw(4, m, k), draw(n, k)
  simulate = lambda x: systolic.simulate(x, right, rows=8, cols=8, dataflow=flow)[1]
  traces = jax.device_get(jax.vmap(simulate)(left))
  a = presets.int8_45nm(8, 8, dataflow=flow)
  whole = switching.energy_j(traces, a)
  runs = [
    switching.energy_j(jax.tree.map(lambda x, i=i: x[i], traces), a) for i in range(4)
  ]
  for part, joules in whole.items():
    total = sum(float(r[part]) for r in runs)
    assert float(joules) == pytest.approx(total, rel=1e-5), part
  each = jax.jit(jax.vmap(lambda t: switching.energy_j(t, a)["idle"]))(traces)
  assert float(each.sum()) == pytest.approx(float(whole["idle"]))


@pytest.mark.parametrize("flow", ["os", "ws", "is"])
@pytest.mark.parametrize("sizes", [(32, 48, 24), (3, 5, 2), (1, 1, 1), (9, 2, 30)])
def test_a_trace_of_another_array_is_refused(flow, sizes):
  trace = run(flow, quiet=True, sizes=sizes)
  a = presets.int8_45nm(8, 8, dataflow=flow)
  switching.energy_j(trace, a)
  others = [
    {"rows": 16.0}, {"cols": 9.0}, {"rows": 4.0}, {"cols": np.uint8(200)},
    {"accounting": "scalesim"}, {"rows": 256.0, "cols": 256.0},
  ]  # fmt: skip
  for change in others:
    with pytest.raises(ValueError, match="a fold of the trace takes"):
      switching.energy_j(trace, dataclasses.replace(a, **change))
  # Not known: priced as told.
  jax.eval_shape(
    lambda t: switching.energy_j(t, dataclasses.replace(a, rows=16.0)), trace
  )


@pytest.mark.parametrize("flow", ["os", "ws", "is"])
def test_an_array_lying_on_its_side_is_refused_where_lanes_tell(flow):
  """2 x 8 + 15 or 3 x 8 + 15 cycles to fill and drain, and as many on fewer lanes."""
  rows, cols, other = {"os": (8, 15, (9, 13))}.get(flow, (8, 15, (9, 12)))
  trace = run(flow, quiet=True, sizes=(40, 40, 40), array=(rows, cols))
  a = presets.int8_45nm(rows, cols, dataflow=flow)
  switching.energy_j(trace, a)
  with pytest.raises(ValueError, match="a fold of the trace takes"):
    switching.energy_j(
      trace, dataclasses.replace(a, rows=float(other[0]), cols=float(other[1]))
    )


@pytest.mark.parametrize("flow", ["os", "ws"])
def test_further_inputs_flip_as_many_bits_as_the_cell_says(flow):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.integers(-128, 128, shape), jnp.int8)
  channel = jnp.asarray(rng.integers(0, 4, (16, 32)), jnp.int8)
  _, trace = systolic.simulate_packed(
    draw(64, 32, 4), draw(16, 32), channel, rows=16, cols=8, dataflow=flow
  )
  flipped = int(trace.toggles.left.sum()) / int(trace.busy.sum())
  plain = presets.int8_45nm().mac
  further = dataclasses.replace(plain, inputs=4.0).flips(flow) - plain.flips(flow)
  assert further == 12 and flipped * 3 / 4 == pytest.approx(further, rel=0.1)
  if flow == "ws":
    found = switching.energy_j(trace, presets.int8_45nm(16, 8, dataflow="ws"))
    assert all(joules > 0 for joules in found.values())


def test_leaves_have_slopes():
  trace, a = run("os"), presets.int8_45nm(8, 8)
  total = lambda x: sum(switching.energy_j(trace, x).values())
  slopes = jax.jit(jax.grad(total))(a)
  more = dataclasses.replace(
    a, mac=dataclasses.replace(a.mac, energy_j=1.01 * a.mac.energy_j)
  )
  wanted = float(total(more) - total(a)) / (0.01 * a.mac.energy_j)
  assert float(slopes.mac.energy_j) == pytest.approx(wanted, rel=1e-3)


def test_a_trace_without_toggles_is_refused():
  with pytest.raises(ValueError, match="simulate with toggles=True"):
    switching.energy_j(run("os")._replace(toggles=None), presets.int8_45nm(8, 8))
