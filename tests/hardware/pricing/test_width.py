"""Bits of a policy are paid for: slopes of the exact model, secants of its steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcodesign
from jaxcodesign.hardware.machines import cells, presets
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.numerics import formats
from jaxcodesign.numerics.formats.width import Width
from jaxcodesign.programs.precision import Rule
from jaxcodesign.programs.workload import Gemm, Workload

WORK = Workload((Gemm("", "w", 1, 96, 144, 40), Gemm("", "v", 2, 33, 64, 7)))
MACHINES = {
  name: dataclasses.replace(presets.int8_45nm(8, 8), mac=cell)
  for name, cell in {
    "parallel": cells.parallel(),
    "fusible": cells.fusible(),
    "bit_serial": cells.bit_serial(),
    "tmac": cells.tmac(),
  }.items()
}


def widths(weight, activation):
  return (Rule("*", Width(weight), Width(activation)),)


def quantities(report):
  """Joules by cause ("mac", "sram", "dram", "leakage"), cycles, bytes and sums."""
  fields = ("cycles", "traffic_bytes", "energy_j", "edp_js")
  return report.parts_j | {name: getattr(report, name) for name in fields}


def sloped(name, side, bits, flow="os", **changes):
  """Exact costs as a function of the bits of one operand, and their derivatives.

  Op by op: a compiler takes longer over one of these than all of them take.
  """
  whole = dataclasses.replace(MACHINES[name], dataflow=flow, **changes)

  def at(value):
    policy = widths(value, 8.0) if side == "weight" else widths(8.0, value)
    return quantities(cost.evaluate(WORK, whole, policy=policy))

  _, slopes = jax.jvp(at, (jnp.float64(bits),), (jnp.float64(1),))
  reverse = jax.grad(lambda b: at(b)["edp_js"])(jnp.float64(bits))
  assert float(reverse) == pytest.approx(float(slopes["edp_js"]), rel=1e-9)
  assert float(slopes["energy_j"]) > 0 and float(slopes["sram"]) > 0
  return at, slopes


@pytest.mark.parametrize("side", ["weight", "activation"])
@pytest.mark.parametrize("name", ["parallel", "fusible", "bit_serial", "tmac"])
def test_a_width_costs_what_fixed_does(name, side):
  for bits in (2, 3, 6, 8, 9, 16, 17):
    pair = (bits, 8) if side == "weight" else (8, bits)
    fixed = (Rule("*", formats.Fixed(pair[0]), formats.Fixed(pair[1])),)
    wanted = cost.exact(WORK, MACHINES[name], policy=fixed)
    found = cost.exact(WORK, MACHINES[name], policy=widths(*pair))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
      np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("flow", ["os", "ws", "is"])
@pytest.mark.parametrize(
  ("name", "side", "bits", "reach"),
  [
    ("bit_serial", "activation", 6, 2),  # a cycle a bit
    ("bit_serial", "weight", 5, 2),  # one pass: bytes alone
    ("parallel", "activation", 5.3, 1e-4),  # switches less, smoothly
    ("parallel", "weight", 6.7, 1e-4),
    ("tmac", "activation", 7, 4),  # a term for every two bits
    ("tmac", "weight", 7, 4),
  ],
)
def test_bits_of_a_policy_have_the_slopes_of_the_exact_model(
  name, side, bits, reach, flow
):
  with jax.enable_x64(True):
    at, slopes = sloped(name, side, bits, flow)
    high, low = at(jnp.float64(bits + reach)), at(jnp.float64(bits - reach))
    for quantity, slope in slopes.items():
      wanted = float(high[quantity] - low[quantity]) / (2 * reach)
      tiny = 1e-9 * float(high[quantity])
      assert float(slope) == pytest.approx(wanted, rel=1e-5, abs=tiny), quantity


@pytest.mark.parametrize(
  ("name", "side", "bits", "ends", "close"),
  [
    ("bit_serial", "weight", 16, (8, 24), 1e-9),  # passes over the weight
    ("parallel", "weight", 16, (8, 24), 1e-9),
    ("parallel", "activation", 16, (8, 24), 1e-9),
    ("parallel", "weight", 12, (8, 16), 0.02),  # inside: the switching is near a line
    ("fusible", "weight", 4, (2, 8), 1e-9),  # four, two, one cell in one
    ("fusible", "activation", 4, (2, 8), 1e-9),
    ("fusible", "weight", 16, (8, 24), 1e-9),
  ],
)
def test_steps_have_the_slope_of_their_secant(name, side, bits, ends, close):
  with jax.enable_x64(True):
    # Neither may the DRAM be waited for nor the image spill: these are steps as well.
    fast = dataclasses.replace(MACHINES[name].dram, bandwidth_bytes_s=1e30)
    roomy = dataclasses.replace(MACHINES[name].ifmap, capacity_bytes=2.0**18)
    at, slopes = sloped(name, side, bits, dram=fast, ifmap=roomy)
    low, high = (at(jnp.float64(end)) for end in ends)
    for quantity in set(slopes) - {"edp_js"}:
      wanted = float(high[quantity] - low[quantity]) / (ends[1] - ends[0])
      tiny = 1e-9 * float(high[quantity])
      found = float(slopes[quantity])
      assert found == pytest.approx(wanted, rel=close, abs=tiny), quantity


@pytest.mark.parametrize("flow", ["ws", "is"])
def test_fused_cells_save_folds_smoothly_when_hot(flow):
  """Along rows a contraction is folds, which have slopes at a temperature alone."""
  with jax.enable_x64(True):
    slope = lambda t: float(
      sloped("fusible", "weight", 4.0, flow, temperature=t)[1]["cycles"]
    )
    assert slope(0.0) == 0 and slope(0.3) > 0


@pytest.mark.parametrize(("name", "bits"), [("bit_serial", 6.3), ("parallel", 6.3)])
def test_hot_bits_feel_a_buffer_that_fills(name, bits):
  """The slope of the smooth model, by an image that just outgrows half its buffer."""
  with jax.enable_x64(True):
    tight = dataclasses.replace(MACHINES[name].ifmap, capacity_bytes=20 * 1024.0)
    cold = sloped(name, "activation", bits, ifmap=tight)[1]
    at, hot = sloped(name, "activation", bits, ifmap=tight, temperature=0.2)
    assert float(hot["dram"]) > 2 * float(cold["dram"])
    high, low = at(jnp.float64(bits + 1e-5)), at(jnp.float64(bits - 1e-5))
    for quantity, slope in hot.items():
      wanted = float(high[quantity] - low[quantity]) / 2e-5
      assert float(slope) == pytest.approx(wanted, rel=1e-5, abs=1e-18), quantity


def test_a_width_at_the_width_of_a_cell_has_half_of_either_slope():
  with jax.enable_x64(True):
    at, slopes = sloped("fusible", "weight", 8.0)
    left, right = (
      float(at(jnp.float64(b))["mac"] - at(jnp.float64(8.0))["mac"]) / (b - 8)
      for b in (4.0, 16.0)
    )
    assert float(slopes["mac"]) == pytest.approx((left + right) / 2, rel=0.01)


def test_a_machine_is_descended_on_widths_of_a_policy():
  """Fifty steps down: the memory switch and the passes hold nothing up."""
  with jax.enable_x64(True):
    hot = dataclasses.replace(MACHINES["bit_serial"], temperature=0.1)
    edp = lambda p: jnp.log(cost.evaluate(WORK, hot, policy=p).edp_js)
    step = jax.jit(jax.value_and_grad(edp))
    policy = widths(jnp.float64(12.0), jnp.float64(12.0))
    first = float(step(policy)[0])
    for _ in range(50):
      slopes = step(policy)[1]
      policy = jax.tree.map(lambda b, g: jnp.clip(b - 2 * g, 2, 24), policy, slopes)
    bits = jax.tree.leaves(policy)
    assert all(float(b) < 9 for b in bits) and float(step(policy)[0]) < first - 0.5


def test_a_width_prices_and_does_not_round():
  fmt = formats.Fixed(6, 4)
  assert Width.of(fmt) == Width(6.0, 4)
  x = jnp.ones((3, 8))
  for use in (Width(6.0).quantize, Width(6.0).pack):
    with pytest.raises(TypeError, match=r"quantize with Fixed\(bits\)"):
      use(x)
  layer = jaxcodesign.quantize(lambda p, x: x @ p, widths(4.0, 4.0))
  with pytest.raises(TypeError, match=r"left operand .* Width prices operands"):
    layer(jnp.ones((8, 2)), x)
  with pytest.raises(ValueError, match=r"1 to 24 bits: bits=0\.5"):
    Width(0.5)
  with pytest.raises(TypeError, match="is not Fixed: mantissas and budgets are leaves"):
    Width.of(formats.BlockFloat())  # pyright: ignore[reportArgumentType]
  with pytest.raises(ValueError, match="right operand: group=5 does not divide"):
    cost.evaluate(WORK, MACHINES["parallel"], policy=(Rule("*", Width(8.0, 5)),))
  with pytest.raises(TypeError, match="bits has dtype bool"):
    jax.eval_shape(lambda b: Width(b).bits_per_value(), jnp.bool_(True))
