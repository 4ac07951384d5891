"""A policy rounds exactly what it names, prices the same thing, and is never idle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcodesign
from jaxcodesign.numerics.formats import BlockFloat, Fixed, Terms
from jaxcodesign.programs import fast, precision
from jaxcodesign.programs.fast import Fast
from jaxcodesign.programs.precision import Rule
from jaxcodesign.programs.workload import trace


@pytest.fixture(scope="module")
def params():
  keys = jax.random.split(jax.random.key(0), 3)
  return {
    "conv": jax.random.normal(keys[0], (3, 3, 8, 16)),
    "dense": {"kernel": jax.random.normal(keys[1], (16, 24)), "bias": jnp.ones(24)},
  }


@pytest.fixture(scope="module")
def images():
  return jax.random.normal(jax.random.key(1), (2, 6, 6, 8))


def network(params, x):
  numbers = ("NHWC", "HWIO", "NHWC")
  x = jax.lax.conv_general_dilated(
    x, params["conv"], (1, 1), "SAME", None, None, numbers
  )
  x = jax.nn.relu(x).mean((1, 2))
  return x @ params["dense"]["kernel"] + params["dense"]["bias"][None]


def test_weights_are_rounded_per_output_channel_along_the_contraction(params, images):
  fmt = Fixed(4, "channel")

  @jax.jit
  def by_hand(params, images):
    kernel = jnp.transpose(params["conv"], (3, 0, 1, 2)).reshape(16, -1)
    kernel = fmt.quantize(kernel).reshape(16, 3, 3, 8)
    dense = params["dense"]
    dense = {"kernel": fmt.quantize(dense["kernel"].T).T, "bias": dense["bias"]}
    rounded = {"conv": jnp.transpose(kernel, (1, 2, 3, 0)), "dense": dense}
    return network(rounded, images)

  quantized = jaxcodesign.quantize(network, [Rule("*", weight=fmt)])
  np.testing.assert_allclose(
    jax.jit(quantized)(params, images), by_hand(params, images), rtol=1e-5
  )


def test_activations_are_rounded_along_channels(params, images):
  fmt = Terms(2, group=1)
  quantized = jaxcodesign.quantize(network, [Rule("conv", activation=fmt)])
  np.testing.assert_array_equal(
    jax.jit(quantized)(params, images),
    jax.jit(lambda p, x: network(p, fmt.quantize(x)))(params, images),
  )


def test_first_match_wins_and_the_rest_stays(params, images):
  policy = [Rule("conv", weight=Fixed(3)), Rule("c*", weight=Fixed(8)), Rule("dense*")]
  with pytest.raises(ValueError, match=r"rule 1 \('c\*'\) decides nothing"):
    jaxcodesign.quantize(network, policy)(params, images)
  first, only = (
    jax.jit(jaxcodesign.quantize(network, rules))(params, images)
    for rules in ([policy[0], policy[2]], [policy[0]])
  )
  np.testing.assert_array_equal(first, only)


def test_a_rule_that_matches_nothing_names_the_nearest(params, images):
  with pytest.raises(ValueError, match=r"'dens/kernel' matches no name.*dense/kernel"):
    jaxcodesign.quantize(network, [Rule("dens/kernel", Fixed(8))])(params, images)


def test_a_group_that_does_not_divide_names_the_product(params, images):
  with pytest.raises(ValueError, match=r"dense/kernel .*right operand.*group=5"):
    jaxcodesign.quantize(network, [Rule("dense*", Terms(4, group=5))])(params, images)


def test_gradient_is_straight_through(params, images):
  fmt = Fixed(8)
  loss = lambda p: jaxcodesign.quantize(network, [Rule("dense*", fmt, fmt)])(
    p, images
  ).sum()
  slope = jax.jit(jax.grad(loss))(params)["dense"]["kernel"]

  @jax.jit
  def by_hand(kernel):
    hidden = jax.nn.relu(
      jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", None, None, ("NHWC", "HWIO", "NHWC")
      )
    ).mean((1, 2))
    return fmt.quantize(hidden).sum(0)[:, None]

  wanted = np.broadcast_to(by_hand(params["conv"]), slope.shape)
  np.testing.assert_allclose(slope, wanted, rtol=1e-5)


def test_a_policy_is_data_one_compilation_serves_all_budgets(params, images):
  traces = []

  @jax.jit
  def run(policy, params, images):
    traces.append(1)
    return jaxcodesign.quantize(network, policy)(params, images)

  exact = network(params, images)
  errors = [
    float(jnp.abs(run((Rule("*", Terms(k)),), params, images) - exact).mean())
    for k in (2, 6, 12, 32)
  ]
  assert errors == sorted(errors, reverse=True) and len(traces) == 1


def test_products_of_two_activations_take_the_activation_format():
  attention = lambda p, x: jnp.einsum("qd,kd->qk", x @ p["q"], x @ p["k"])
  p = {"q": jnp.eye(8), "k": jnp.eye(8)}
  x = jax.random.normal(jax.random.key(0), (4, 8))
  fmt = Fixed(3)
  quantized = jaxcodesign.quantize(attention, [Rule("", activation=fmt)])
  rounded = fmt.quantize(x)
  np.testing.assert_allclose(quantized(p, x), rounded @ rounded.T, rtol=1e-6)


def test_assign_gives_the_formats_that_quantize_uses(params, images):
  workload = jaxcodesign.trace(network)(params, images)
  policy = [Rule("conv", Fixed(4), Fixed(6)), Rule("dense*", Terms(8))]
  assert precision.assign(policy, workload.gemms) == [
    (Fixed(6), Fixed(4)),
    (None, Terms(8)),
  ]


def test_where_an_operand_lies_is_no_business_of_a_rule():
  for rule in ({"weight": Fixed(4, 8, axis=-2)}, {"gradient": BlockFloat(axis=-2)}):
    with pytest.raises(ValueError, match=r"axis=-2.*run along the contraction"):
      Rule("*", **rule)


@pytest.mark.parametrize("spec", ["ij,jk->ik", "ij,kj->ik", "ji,jk->ik", "ji,kj->ik"])
def test_operands_are_rounded_where_they_lie(spec):
  sizes, (left, right) = {"i": 6, "j": 32, "k": 5}, spec.split("->")[0].split(",")
  keys = jax.random.split(jax.random.key(0), 2)
  x, w = (
    jax.random.normal(key, tuple(sizes[i] for i in names))
    for key, names in zip(keys, (left, right))
  )
  product = lambda p, x: jnp.einsum(spec, x, p["w"])
  fmt = BlockFloat(4, 8)
  program = str(
    jax.make_jaxpr(jaxcodesign.quantize(product, [Rule("*", fmt, fmt)]))({"w": w}, x)
  )

  @jax.jit
  def both(w, x):
    rounded = [
      jnp.moveaxis(
        fmt.quantize(jnp.moveaxis(a, names.index("j"), -1)), -1, names.index("j")
      )
      for a, names in ((x, left), (w, right))
    ]
    found = jaxcodesign.quantize(product, [Rule("*", fmt, fmt)])({"w": w}, x)
    return found, jnp.einsum(spec, *rounded)

  np.testing.assert_allclose(*both(w, x), rtol=1e-6, atol=1e-6)
  # Blocks of 8 along the contraction, beside the other axis as the program has it.
  assert (f"1,4,8,{sizes['i']}]" in program) == (left == "ji")
  assert (f"1,4,8,{sizes['k']}]" in program) == (right == "jk")


@pytest.mark.parametrize(
  ("name", "params"),
  [
    ("h[0]", {"h[0]": 0, "h0": 0}),
    ("a*", {"a*": 0, "ab": 0}),
    ("['a/b']", {"a/b": 0, "a": {"b": 0}}),
  ],
)
def test_a_printed_name_is_a_rule_for_itself(name, params):
  """And not the glob that it looks like: `h[0]` took the products of `h0`."""
  params = jax.tree.map(lambda _: jnp.ones((2, 2)), params)

  def product(params, x):
    for leaf in jax.tree.leaves(params):
      x = x @ leaf
    return x

  policy = [Rule(name, Fixed(8), None)]
  rows = precision.describe(product, policy)(params, jnp.ones((2, 2))).rows
  assert [row.product for row in rows if row.rule == "0"] == [name]
  work = trace(product)(params, jnp.ones((2, 2)))
  found = zip(work.gemms, precision.assign(policy, work.gemms))
  assert [g.name for g, (_, fmt) in found if fmt is not None] == [name]
  plan = fast.plan(product, Fast(leaf=name))(params, jnp.ones((2, 2)))
  assert len(plan.names) == 1 and plan.names[0].startswith(name)
