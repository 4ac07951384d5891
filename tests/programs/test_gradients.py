"""The backward pass is two more products of every layer but the first."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxcodesign import trace
from tests.programs.frameworks import NETWORKS, inputs


def array(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def view(work):
  """(role, name of the weight or of the weight whose gradient it is) by product."""
  return [(g.role, g.output or g.rhs) for g in work.gemms]


def three_passes(weights):
  """What a chain of layers asks for: the first one has no input gradient."""
  forward = [("forward", w) for w in weights]
  backward = []
  for w in reversed(weights):
    backward += [("weight_gradient", w), ("input_gradient", w)]
  return sorted(forward + backward[:-1])


def loss_of(fn):
  return lambda params, x: jnp.sum(fn(params, x) ** 2)


@pytest.mark.parametrize("network", NETWORKS)
def test_three_products_of_a_layer_cost_the_same_in_every_framework(network):
  net = NETWORKS[network]()
  forward = {g.rhs: g.macs for g in trace(net.fn)(net.params, inputs()).gemms}
  for grad in (jax.grad, jax.value_and_grad, lambda f: jax.jit(jax.grad(jax.jit(f)))):
    work = trace(grad(loss_of(net.fn)))(net.params, inputs())
    assert sorted(view(work)) == three_passes(net.weights)
    assert all(g.macs == forward[g.output or g.rhs] for g in work.gemms)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_train_step_returns_named_parameters(network):
  net = NETWORKS[network]()

  def adam(p, g, m, v):
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
    return p - 1e-3 * m / (jnp.sqrt(v) + 1e-8), m, v

  def step(params, state, x):
    grads = jax.grad(loss_of(net.fn))(params, x)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    grads = jax.tree.map(lambda g: g / jnp.maximum(norm, 1.0), grads)
    out = [jax.tree.map(lambda *p, i=i: adam(*p)[i], params, grads, *state)
           for i in range(3)]  # fmt: skip
    return out[0], tuple(out[1:])

  work = trace(step)(net.params, (net.params, net.params), inputs())
  assert sorted(view(work)) == three_passes(net.weights)


def cnn(params, x):
  """Windows that stride evenly and strides that window exactly: no pixel is wasted."""
  for name, stride in (("a", 1), ("b", 2), ("c", 3)):
    x = jnp.maximum(
      jax.lax.conv_general_dilated(
        x,
        params[name],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2 if name == "b" else 1,
      ),
      0,
    )
  return x.reshape(x.shape[0], -1) @ params["d"]


CNN = {
  "a": array(3, 3, 2, 4),
  "b": array(3, 3, 2, 6),
  "c": array(3, 3, 6, 8),
  "d": array(8 * 4, 5),
}


def test_a_convolution_costs_the_same_three_times():
  x = array(2, 12, 12, 2)
  forward = {g.rhs: g.macs for g in trace(cnn)(CNN, x).gemms}
  work = trace(jax.grad(loss_of(cnn)))(CNN, x)
  assert sorted(view(work)) == three_passes("abcd")
  assert all(g.macs == forward[g.output or g.rhs] for g in work.gemms)
  kinds = {g.output or g.rhs: g.kind for g in work.gemms if g.role == "input_gradient"}
  assert kinds == {"b": "transposed_conv", "c": "transposed_conv", "d": "dot"}
  assert forward["b"] == 2 * 36 * 9 * 2 * 6  # groups and stride, by hand


def test_a_transposed_convolution_costs_the_same_three_times():
  def fn(params, x):
    y = jax.lax.conv_transpose(x, params["up"], (2, 2), "VALID")
    return jax.lax.conv_transpose(y, params["out"], (2, 2), "VALID")

  params = {"up": array(2, 2, 3, 4), "out": array(2, 2, 4, 2)}
  work = trace(jax.grad(loss_of(fn)))(params, array(2, 5, 5, 3))
  assert sorted(view(work)) == three_passes(["up", "out"])
  macs = {"up": 2 * 25 * 4 * 3 * 4, "out": 2 * 100 * 4 * 4 * 2}
  assert all(g.macs == macs[g.output or g.rhs] for g in work.gemms)


def stack(body):
  return lambda w, x: jax.lax.scan(lambda c, w: (body(w, c), None), x, w["layers"])[0]


def layer(w, x):
  return jnp.tanh(x @ w)


def test_stacked_layers():
  params, x = {"layers": array(5, 4, 4)}, array(2, 4)
  work = trace(jax.value_and_grad(loss_of(stack(layer))))(params, x)
  # The input of the first layer is a carry like any other: its gradient is computed.
  roles = ("forward", "input_gradient", "weight_gradient")
  assert sorted(view(work)) == [(role, "layers") for role in roles]
  assert {(g.count, g.macs) for g in work.gemms} == {(5, 5 * 2 * 4 * 4)}


def test_layers_indexed_from_a_stack():
  def fn(w, x):
    for i in range(3):
      x = layer(w["layers"][i], x)
    return x

  work = trace(jax.grad(loss_of(fn)))({"layers": array(3, 4, 4)}, array(2, 4))
  assert sorted(view(work)) == three_passes(["layers"] * 3)


@pytest.mark.parametrize("where", ["inside the scan", "around the scan", "nested"])
def test_recomputation_is_a_fourth_product(where):
  body = layer if where == "around the scan" else jax.checkpoint(layer)
  fn = stack(body)
  fn = fn if where == "inside the scan" else jax.checkpoint(fn)
  params, x = {"layers": array(5, 4, 4)}, array(2, 4)
  work = trace(jax.jit(jax.grad(loss_of(fn))))(params, x)
  counts = collections.Counter()
  for gemm in work.gemms:
    counts[gemm.role] += gemm.count
  extra = 2 if where == "nested" else 1
  assert counts == {
    "forward": 5, "recompute": 5 * extra, "input_gradient": 5, "weight_gradient": 5
  }  # fmt: skip
  assert {g.output or g.rhs for g in work.gemms} == {"layers"}


def test_a_custom_backward_pass_is_counted_as_it_is_written():
  @jax.custom_vjp
  def product(w, x):
    return x @ w

  # Its own law: the weight gradient twice, no input gradient.
  def backward(saved, g):
    _, x = saved
    return (x.T @ g + x.T @ (2 * g)), jnp.zeros_like(x)

  product.defvjp(lambda w, x: (x @ w, (w, x)), backward)
  fn = lambda p, x: product(p["w"], x)
  work = trace(jax.grad(loss_of(fn)))({"w": array(4, 3)}, array(2, 4))
  assert sorted(view(work)) == [("forward", "w")] + [("weight_gradient", "w")] * 2


def test_attention_has_gradients_of_activations():
  def fn(p, x):
    q, k = x @ p["q"], x @ p["k"]
    return jax.nn.softmax(q @ k.T) @ x

  params = {"q": array(4, 6), "k": array(4, 6)}
  work = trace(jax.grad(loss_of(fn)))(params, array(5, 4))
  assert sorted(view(work)) == sorted(
    [("forward", "q"), ("forward", "k"), ("forward", ""), ("forward", "")]
    + [("weight_gradient", "q"), ("weight_gradient", "k")]
    + [("input_gradient", "")] * 3
  )


def test_an_embedding_below_a_layer_is_its_input_and_no_weight_of_it():
  params = {"wte": array(11, 4), "w": array(4, 6)}
  loss = lambda p, ids: jnp.sum((p["wte"].at[ids].get(mode="clip") @ p["w"]) ** 2)
  ids = jax.ShapeDtypeStruct((5,), jnp.int32)
  # The input gradient ends in the embedding, but it is not what multiplies its weight.
  assert sorted(view(trace(jax.grad(loss))(params, ids))) == sorted(
    [("forward", "w"), ("weight_gradient", "w"), ("input_gradient", "w")]
  )


def test_one_leaf_of_parameters_is_found_by_its_shape():
  for grad in (jax.grad, jax.value_and_grad):
    work = trace(grad(lambda w, x: jnp.sum(jnp.tanh(x @ w))))(array(4, 3), array(2, 4))
    assert view(work) == [("forward", "params"), ("weight_gradient", "params")]


def test_parameters_in_a_tuple():
  loss = lambda p, x: jnp.sum(jnp.tanh(x @ p[0]) @ p[1])
  work = trace(jax.value_and_grad(loss))((array(4, 3), array(3, 2)), array(2, 4))
  assert sorted(view(work)) == three_passes(["0", "1"])


def test_gradients_of_every_example_have_the_name_of_their_parameter():
  grad = jax.grad(lambda p, x: jnp.sum(jnp.tanh(x @ p["w"]) ** 2))
  work = trace(jax.vmap(grad, (None, 0)))({"w": array(4, 3)}, array(8, 4))
  assert view(work) == [("forward", "w"), ("weight_gradient", "w")]
  assert {g.macs for g in work.gemms} == {8 * 4 * 3}


def test_gradients_summed_over_devices():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

  def step(params, x):
    grads = jax.grad(loss_of(lambda p, x: jnp.tanh(x @ p["w"])))(params, x)
    return jax.lax.pmean(grads, "data")

  step = jax.shard_map(
    step, mesh=mesh, in_specs=(jax.P(), jax.P("data")), out_specs=jax.P(),
    check_vma=False,
  )  # fmt: skip
  work = trace(step)({"w": array(4, 3)}, array(16, 4))
  assert view(work) == [("forward", "w"), ("weight_gradient", "w")]
  assert {g.macs for g in work.gemms} == {16 * 4 * 3}


def test_gradients_inside_a_branch():
  fn = lambda p, x: jax.lax.cond(x[0, 0] > 0, lambda: x @ p["w"], lambda: x * 1.0)
  work = trace(jax.grad(loss_of(fn)), branches="max")({"w": array(4, 4)}, array(2, 4))
  assert view(work) == [("forward", "w"), ("weight_gradient", "w")]


def test_roles_are_part_of_the_gemm_and_survive_hashing():
  work = trace(jax.grad(loss_of(layer)))(array(4, 4), array(2, 4))
  assert dataclasses.replace(work) == work and hash(work.gemms[0]) is not None
