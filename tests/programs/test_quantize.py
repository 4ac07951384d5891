"""Quantizing reaches every product of every program, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcodesign
from jaxcodesign.numerics.formats import Fixed
from jaxcodesign.programs.jaxprs import Unsupported
from jaxcodesign.programs.precision import Rule
from tests.programs import cases
from tests.programs.frameworks import NETWORKS, inputs

# One scale for the whole array: the grid does not depend on how a program lays it out.
WEIGHT, ACTIVATION, GRADIENT = Fixed(4), Fixed(5), Fixed(6)


@jax.custom_vjp
def on_the_way_back(y):
  return y


on_the_way_back.defvjp(lambda y: (y, None), lambda _, g: (GRADIENT.quantize(g),))


def loss_of(fn):
  def loss(p, x):
    out = fn(p, x)
    # Not its square: gradients would fall on ties of their own grid.
    coming = cases.normal(7, *out.shape)
    return jnp.sum(out.astype("f4") * coming), out

  return jax.grad(loss, argnums=(0, 1), has_aux=True)


def together(*fns):
  """`fns` of the same arguments in one compilation."""
  return jax.jit(lambda *args: [fn(*args) for fn in fns])


def close(got, wanted, tolerance=2e-5):
  most = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
  near = {"rtol": tolerance, "atol": tolerance * most}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a.astype("f4"), b.astype("f4"), **near),
    got,
    wanted,
  )


NOT_REVERSED = {"while"}  # jax cannot differentiate it backwards


STRAIGHT_THROUGH = ("two layers", "tied weight", "remat", "strided convolution",
                    "stacked weights, scanned", "custom_vjp")  # fmt: skip
RUNS = [(name, True) for name in cases.CASES]
RUNS += [(name, False) for name in STRAIGHT_THROUGH]


@pytest.mark.parametrize(("name", "backward"), RUNS)
def test_it_computes_what_rounding_by_hand_computes(name, backward):
  case, p, x = cases.CASES[name], cases.params(), cases.inputs()
  if name == "cast weight":
    x = x.astype(jnp.bfloat16).astype("f4")
  rule = Rule("*", WEIGHT, ACTIVATION, GRADIENT if backward else None)
  plain = case(cases.SAME, cases.SAME, cases.SAME)
  back = on_the_way_back if backward else cases.SAME
  by_hand = case(WEIGHT.quantize, ACTIVATION.quantize, back)
  quantized = jaxcodesign.quantize(plain, [rule])
  if name in NOT_REVERSED:
    got, wanted, exact = together(quantized, by_hand, plain)(p, x)
    close(got, wanted)
    assert not np.array_equal(got, exact)
    return
  if name == "custom_vjp" and backward:
    with pytest.raises(Unsupported, match=r"cases\.py:\d+: w is inside a custom"):
      quantized(p, x)
    return
  got, wanted, exact = together(*map(loss_of, (quantized, by_hand, plain)))(p, x)
  # XLA may keep more bits than bfloat16 has between two operations.
  close(got, wanted, 2**-7 if name == "cast weight" else 2e-5)
  if name == "custom_vjp":
    got, exact = got[1], exact[1]  # its gradient is linear, and its author's
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(exact)):
    assert not np.array_equal(a, b) or not np.any(b), "a silent no-op"


@pytest.mark.parametrize("name", ["two layers", "while", "stacked weights, scanned"])
def test_forward_mode(name):
  case, p, x = cases.CASES[name], cases.params(), cases.inputs()
  tangent = lambda fn: lambda p, x: jax.jvp(lambda p: fn(p, x), (p,), (p,))
  rule = Rule("*", WEIGHT, ACTIVATION)
  plain = case(cases.SAME, cases.SAME, cases.SAME)
  by_hand = case(WEIGHT.quantize, ACTIVATION.quantize, cases.SAME)
  fns = map(tangent, (jaxcodesign.quantize(plain, [rule]), by_hand))
  close(*together(*fns)(p, x))


@pytest.mark.parametrize("network", NETWORKS)
def test_frameworks(network):
  net, x = NETWORKS[network](), inputs()
  # A bias keeps sums of integers off the kink of relu at zero.
  shift = lambda leaf: leaf + 0.123 if leaf.ndim == 1 else leaf
  net = net._replace(params=jax.tree.map(shift, net.params))
  rule = Rule("*", WEIGHT, ACTIVATION, GRADIENT)
  got = jax.jit(loss_of(jaxcodesign.quantize(net.fn, [rule])))(net.params, x)
  values = dict(zip(("first", "second"), [_matrix(net, name) for name in net.weights]))

  def by_hand(values, x):
    multiply = lambda x, w: on_the_way_back(ACTIVATION.quantize(x) @ WEIGHT.quantize(w))
    one, two = _biases(net)
    return (
      multiply(jax.nn.relu(multiply(x, values["first"]) + one), values["second"]) + two
    )

  wanted = jax.jit(loss_of(by_hand))(values, x)
  close(got[1], wanted[1])  # values
  close(got[0][1], wanted[0][1])  # gradient by the input
  for name, short in zip(net.weights, ("first", "second")):
    close(_turned(_leaf(got[0][0], name), values[short]), wanted[0][0][short])


def _leaf(params, name):
  return jaxcodesign.tree.named_leaves(params)[name]


def _turned(w, like):
  return w if w.shape == like.shape else w.T


def _matrix(net, name):
  w = _leaf(net.params, name)
  return w.T if "weight" in name else w  # equinox: [out, in]


def _biases(net):
  named = jaxcodesign.tree.named_leaves(net.params)
  return [leaf[None] for name, leaf in named.items() if name not in net.weights]


def test_noise_is_drawn_anew_for_each_product_iteration_and_operand():
  # Fractions of a half everywhere: what goes up is the noise itself.
  p = {"stack": jnp.full((3, 8, 8), 0.5).at[:, 0, 0].set(127.0)}
  rule = Rule("*", Fixed(8), stochastic=("weight",))
  seen = lambda p, x: jax.lax.scan(lambda c, w: (c, jnp.eye(8) @ w), x, p["stack"])[1]
  key = jax.random.key(0)
  run = jax.jit(lambda key: jaxcodesign.quantize(seen, [rule], key=key)(p, jnp.eye(8)))
  one, two, three = run(key)
  for a, b in ((one, two), (two, three), (one, three)):
    assert 0.2 < np.mean(np.array(a != b)[1:]) < 0.8
  np.testing.assert_array_equal(run(key), run(key))
  assert np.any(run(key) != run(jax.random.key(1)))


@pytest.mark.parametrize("check", [True, False])
def test_quantized_inside_and_around_shard_map(check):
  mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
  rows, whole = jax.P("d"), {"w": jax.P()}
  fn = lambda p, x: x @ p["w"]
  split = lambda fn: jax.shard_map(
    fn, mesh=mesh, in_specs=(whole, rows), out_specs=rows, check_vma=check
  )
  w, x = jnp.eye(8), jnp.full((64, 8), 0.5).at[:, 0].set(127.0)
  noisy = Rule("*", None, Fixed(8), stochastic=("activation",))
  local = jaxcodesign.quantize(fn, [noisy], key=jax.random.key(0))
  parts = np.array(jax.jit(split(local))({"w": w}, x))[:, 1:].reshape(8, -1)
  shares = [np.mean(parts[0] != part) for part in parts[1:]]
  # Without the check nobody knows what differs between devices: all draw the same.
  assert all(0.2 < share < 0.8 for share in shares) if check else not any(shares)

  # One row a device: a scale for each is a scale for each row.
  rule = Rule("*", WEIGHT, Fixed(5, "channel"), Fixed(6, "channel"))
  one = jax.random.normal(jax.random.key(1), (8, 8))
  loss = lambda fn: jax.jit(jax.grad(lambda p: jnp.sum(fn(p, one) ** 2)))
  wanted = loss(lambda p, x: jnp.stack([by_row(p, x[i : i + 1])[0] for i in range(8)]))
  by_row = jaxcodesign.quantize(fn, [rule])
  for quantized in (split(by_row), jaxcodesign.quantize(split(fn), [rule])):
    close(loss(quantized)({"w": one}), wanted({"w": one}))


def test_stochastic_gradients_are_unbiased():
  w, x = jax.random.normal(jax.random.key(0), (16, 8)), jnp.ones((4, 16))
  coming = jax.random.normal(jax.random.key(1), (4, 8))
  rule = Rule("*", gradient=Fixed(3, "channel"))
  loss = lambda fn: lambda p: jnp.sum(fn(p, x) * coming)
  fn = lambda p, x: x @ p["w"]

  @jax.jit
  @functools.partial(jax.vmap, in_axes=0)
  def draw(key):
    return jax.grad(loss(jaxcodesign.quantize(fn, [rule], key=key)))({"w": w})["w"]

  slopes = draw(jax.random.split(jax.random.key(2), 2000))
  nearest, exact = together(
    *(jax.grad(loss(f)) for f in (jaxcodesign.quantize(fn, [rule]), fn))
  )({"w": w})
  nearest, exact = nearest["w"], exact["w"]
  spread = slopes.std(0) / 2000**0.5
  assert np.all(np.abs(slopes.mean(0) - exact) < 5 * spread + 1e-5)
  assert np.abs(nearest - exact).max() > np.abs(slopes.mean(0) - exact).max()
