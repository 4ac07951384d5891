"""Prices of training iterations: identities, a plain oracle, gradients and vmap."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.machines import number_systems
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.hardware.pricing import iteration as iteration_cost
from jaxcodesign.hardware.pricing.backward_products import BY_LEFT, BY_RIGHT, belongs
from jaxcodesign.hardware.pricing.iteration import Passes, fixed, iteration
from jaxcodesign.numerics.precision_schedules import Adaptive
from jaxcodesign.programs import fast
from jaxcodesign.programs.workload import Gemm, Workload, trace

SYSTEMS = {s.name: s for s in number_systems.systems(0.4)}
shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
MLP = {"a": shape(32, 24), "b": shape(24, 48), "c": shape(48, 10)}


def mlp(p, x):
  x = jax.nn.relu(x @ p["a"])
  x = jax.nn.relu(x @ p["b"])
  return jnp.mean((x @ p["c"]) ** 2)


WORK = trace(jax.grad(mlp))(MLP, shape(20, 32))


def close(found, wanted, rtol=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol), found, wanted)


def test_fast_at_four_passes_is_high_bfp_and_at_one_is_low():
  of = SYSTEMS["FAST"]
  for name, bits in (("LowBFP", 2), ("MidBFP", 3), ("HighBFP", 4)):
    close(iteration(WORK, of, passes=fixed(WORK, bits)), iteration(WORK, SYSTEMS[name]))
  close(iteration(WORK, of), iteration(WORK, SYSTEMS["HighBFP"]))
  low, high = (float(iteration(WORK, SYSTEMS[n]).time_s) for n in ("LowBFP", "HighBFP"))
  assert low < high


def measured_passes(seed=0):
  """Means between those of 2 and of 4 bits, another for every tensor and product."""
  rng = np.random.default_rng(seed)
  bits = 2 + 2 * rng.uniform(size=(3, 3))
  mean = 1.25 + 2.5 * rng.uniform(size=(3, 3))
  return Passes(("a", "b", "c"), jnp.asarray(bits, "f4"), jnp.asarray(mean, "f4"))


def oracle(system, passes, m=20, exponent=8, group=16):
  """Seconds and joules of the products of the MLP, from the text of the modules."""
  a = system.accelerator
  R, C, g = int(a.rows), int(a.cols), a.mac.lanes
  sizes = {"a": (32, 24), "b": (24, 48), "c": (48, 10)}
  stored = lambda bits: exponent / group + bits / 2 * 3
  time = joules = 0.0
  for row, (name, (k, n)) in enumerate(sizes.items()):
    w, x, d = (stored(float(b)) for b in passes.bits[row])
    uses = 1 if name == "a" else 2  # the first layer has no input gradient
    products = [
      # role, m, k, n of the product, left and right bits
      ("forward", m, k, n, x, w),
      ("input_gradient", m, n, k, d, w),
      ("weight_gradient", n, m, k, d, x),
    ]
    for column, (role, pm, pk, pn, left, right) in enumerate(products):
      if role == "input_gradient" and name == "a":
        continue
      p = float(passes.mean[row, column])
      weighted = role != "weight_gradient"
      if role == "forward":
        rounds, across = math.ceil(pk / (g * R)), math.ceil(pn / C)
        cycles = rounds * across * (pm * p + R + 2 * R + C - 2)
      elif role == "input_gradient":
        rounds, across = math.ceil(pk / C), math.ceil(pn / (g * R))
        cycles = rounds * across * (pm * p + R + 2 * C + R - 2)
      else:
        rounds, across = 1, math.ceil(pn / C)
        folds = math.ceil(pm / R) * across
        cycles = folds * (math.ceil(pk / g) * p + 2 * R + C - 1)
      fetched = pn * pk * right / 8 / uses if weighted else 0.0
      cycles = max(cycles, fetched / a.dram.bandwidth_bytes_s * a.clock_hz)
      dots = pm * pn * math.ceil(pk / g)
      work = dots * (p * a.mac.energy_j + a.mac.group_j) + pm * pn * a.mac.output_j
      idle = (R * C * cycles - dots * p) * a.mac.idle_j
      again = math.ceil(pm / R) if role == "weight_gradient" else 1
      sram = (
        pm * pk * left / 8 * a.ifmap.write_energy_j()
        + pm * pk * across * left / 8 * a.ifmap.read_energy_j()
        + (fetched if weighted else pn * pk * right / 8) * a.weight.write_energy_j()
        + pn * pk * again * right / 8 * a.weight.read_energy_j()
        + pm * pn * rounds * 4 * a.ofmap.write_energy_j()
        + pm * pn * (rounds - 1) * 4 * a.ofmap.read_energy_j()
        + pm * pn * 4 * a.ofmap.read_energy_j()
      )
      seconds = cycles / a.clock_hz
      time += seconds
      joules += work + idle + sram + fetched * a.dram.access_j
      joules += seconds * a.leakage_w()
  return time, float(joules)


def test_a_plain_loop_says_the_same():
  passes, system = measured_passes(), SYSTEMS["FAST"]
  found = iteration(WORK, system, passes=passes)
  time, joules = oracle(system, passes)
  np.testing.assert_allclose(float(np.sum(found.product_time_s)), time, rtol=1e-5)
  np.testing.assert_allclose(float(np.sum(found.product_energy_j)), joules, rtol=1e-5)
  # Beside the products: vector unit, batch and gradients in float32.
  a = system.accelerator
  elements = sum(v.elements * v.count for v in WORK.vector_ops)
  io = 4 * (20 * 32 + 32 * 24 + 24 * 48 + 48 * 10)
  seconds = elements / a.vector.lanes / a.clock_hz + io / a.dram.bandwidth_bytes_s
  np.testing.assert_allclose(found.other_time_s, seconds, rtol=1e-5)
  np.testing.assert_allclose(found.time_s, time + seconds, rtol=1e-5)
  total = sum(float(x) for x in found.parts_j.values())
  np.testing.assert_allclose(found.energy_j, total, rtol=1e-5)


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_every_system_has_a_price_that_adds_up(system):
  report = iteration(WORK, system)
  assert report.names == tuple(g.name for g in WORK.gemms)
  assert np.all(np.asarray(report.product_utilization) <= 1)
  assert np.all(np.asarray(report.product_time_s) > 0)
  for name, part in report.product_parts_j.items():
    assert np.all(np.asarray(part) > 0) or name == "dram"
  assert "b" in report.table()


@pytest.mark.parametrize("name", ["FP32", "bfloat16", "INT8", "HFP8"])
def test_a_forward_pass_costs_what_it_does_elsewhere(name):
  """Weight-stationary products of formats that are stored as they are multiplied."""
  system, work = SYSTEMS[name], trace(mlp)(MLP, shape(20, 32))
  found = iteration(work, system)
  wanted = cost.evaluate(work, system.accelerator, policy=system.policy)
  for field in dataclasses.fields(found):
    if field.name.startswith("product_"):
      close(getattr(found, field.name), getattr(wanted, field.name))


def test_the_run_of_fast_is_what_is_priced():
  """From the telemetry of a real step to the price of its iterations."""
  params = jax.tree.map(lambda s: jax.random.normal(jax.random.key(0), s.shape), MLP)
  x = jax.random.normal(jax.random.key(1), (20, 32))
  scheme = fast.Fast(Adaptive(alpha=0.3, beta=0.3))  # low at first, high at last
  layers = fast.plan(mlp, scheme)(params, x)

  def telemetry(progress):
    stepped = lambda probe: fast.quantize(
      mlp, scheme, progress=progress, key=jax.random.key(2), probe=probe
    )
    run = lambda p, probe: stepped(probe)(p, x)
    return jax.grad(run, (0, 1))(params, layers.probe())[1]

  early, late = jax.jit(jax.vmap(telemetry))(jnp.array([0.0, 1.0]))
  price = lambda t: iteration(
    WORK, SYSTEMS["FAST"], passes=iteration_cost.measured(layers, t)
  )
  assert float(price(early).time_s) < float(price(late).time_s)
  np.testing.assert_array_equal(late[:, :3], np.full((3, 3), 4.0))
  close(price(late), iteration(WORK, SYSTEMS["HighBFP"]))
  both = iteration_cost.measured(layers, early + late, steps=2)
  assert np.all((both.mean[1:] >= 1) & (both.mean[1:] <= 4))


def test_a_run_of_many_steps_is_one_vmap_with_gradients():
  many = [measured_passes(seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *many)
  price = lambda p: iteration(WORK, SYSTEMS["FAST"], passes=p)
  together = jax.jit(jax.vmap(price))(stacked)
  for i, one in enumerate(many):
    close(jax.tree.map(lambda x, i=i: x[i], together), price(one), rtol=1e-4)
  energy = lambda p: price(p).energy_j * 1e9
  slope = jax.grad(energy)(many[0]).mean
  assert slope[0, BY_LEFT] == 0 and np.all(np.asarray(slope)[1:] > 0)
  for row, column in ((0, 0), (1, BY_LEFT), (2, BY_RIGHT)):
    step = jnp.zeros((3, 3)).at[row, column].set(0.25)
    moved = lambda s: dataclasses.replace(many[0], mean=many[0].mean + s)
    secant = (energy(moved(step)) - energy(moved(-step))) / 0.5
    np.testing.assert_allclose(slope[row, column], secant, rtol=2e-2)


def test_rows_are_cut_rather_than_sums_spilled():
  """Sums of many rows would not fit on chip; cut, they never leave it."""
  system, (k, n) = SYSTEMS["FP32"], (4096, 64)
  for m in (4096, 16 * 4096):
    report = iteration(Workload((Gemm("", "w", 1, m, k, n),)), system)
    again = math.ceil(n / system.accelerator.cols)
    wanted = 4 * (again * m * k + n * k + m * n)
    np.testing.assert_allclose(report.traffic_bytes, wanted, rtol=1e-6)
  # Too large for its buffer together with another, a weight waits for all its parts.
  gemms = tuple(Gemm("", name, 1, 16 * 4096, k, 24) for name in ("v", "w", "x"))
  report = iteration(Workload(gemms), system)
  again = math.ceil(24 / system.accelerator.cols)
  wanted = 3 * 4 * (again * 16 * 4096 * k + 24 * k + 16 * 4096 * 24)
  np.testing.assert_allclose(report.traffic_bytes, wanted, rtol=1e-6)


def attention(p, x):
  for name in ("q", "r"):
    y = x @ p[name]
    x = jnp.einsum("bts,bsd->btd", jnp.einsum("btd,bsd->bts", y, y), x)
  return jnp.mean(x**2)


def test_products_of_activations_belong_to_their_line():
  work = trace(jax.grad(attention))(
    {"q": shape(8, 8), "r": shape(8, 8)}, shape(2, 4, 8)
  )
  kin = belongs(work)
  back = [
    (g, who)
    for g, who in zip(work.gemms, kin)
    if g.role == "input_gradient" and not g.rhs
  ]
  # Both layers share two lines; the second layer's products come back first.
  first = [who.products[0] for _, who in back]
  assert first == sorted(first, reverse=True) and set(first) >= {1, 2, 4, 5}
  for g, who in back:
    assert who.kinds in ((BY_LEFT,), (BY_RIGHT,), (BY_LEFT, BY_RIGHT)), g.name
  forward = [g for g in work.gemms if g.role == "forward"]
  names = tuple(g.name for g in forward)
  table = jnp.ones((len(names), 3)).at[1].set(4.0)
  mixed = iteration(work, SYSTEMS["FAST"], passes=Passes(names, 2 * table, table))
  low = iteration(work, SYSTEMS["FAST"], passes=fixed(work, 2))
  slower = np.asarray(mixed.product_cycles) > np.asarray(low.product_cycles)
  assert [who.products == (1,) for who in kin] == slower.tolist()


def test_what_recomputes_and_what_has_strides_is_priced():
  def net(p, x):
    conv = lambda x, w: jax.lax.conv_general_dilated(
      x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    block = jax.checkpoint(lambda p, x: jax.nn.relu(conv(x, p)))
    return jnp.mean(block(p["v"], block(p["u"], x)) ** 2)

  params = {"u": shape(3, 3, 4, 16), "v": shape(3, 3, 16, 16)}
  work = trace(jax.grad(net))(params, shape(2, 8, 8, 4))
  assert "recompute" in [g.role for g in work.gemms]
  report = iteration(work, SYSTEMS["FAST"], passes=fixed(work, 4))
  close(report, iteration(work, SYSTEMS["HighBFP"]))
  # An input gradient has the multiplications of its forward product, no zeros.
  macs = {}
  placed = iteration_cost.in_place(work, belongs(work))
  for g in placed.gemms:
    macs.setdefault(g.name, set()).add(g.macs)
  assert all(len(each) == 1 for each in macs.values())


def priced(names, bits, mean=None):
  table = Passes(names, jnp.ones(bits), jnp.ones(bits) if mean is None else mean)
  return lambda: iteration(WORK, SYSTEMS["FAST"], passes=table)


ORPHAN = Gemm("", "", 1, 4, 4, 4, role="weight_gradient", output="w", source="f.py:3")
alone = lambda *gemms: lambda: iteration(Workload(gemms), SYSTEMS["FAST"])
REFUSED = {
  "a system of fixed precision": (
    lambda: iteration(WORK, SYSTEMS["INT8"], passes=fixed(WORK, 4)),
    "precision of INT8 is fixed",
  ),
  "other products": (
    priced(("a", "b"), (2, 3)),
    "passes are of 2 products, the workload has 3 .*different: c",
  ),
  "many steps at once": (
    priced(("a", "b", "c"), (7, 3, 3)),
    r"passes.bits has shape \(7, 3, 3\).*vmap over steps",
  ),
  "no passes of what runs": (
    priced(("a", "b", "c"), (3, 3), jnp.zeros((3, 3))),
    r"product a \(forward\) runs and has 0.0 passes",
  ),
  "an orphan": (alone(ORPHAN), r"f.py:3: product w .* belongs to no forward product"),
  "nothing": (alone(), "no matrix product"),
  "an empty product": (
    alone(Gemm("", "w", 1, 0, 4, 4)),
    "product w: m=0, a size is at least 1",
  ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_priced_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
