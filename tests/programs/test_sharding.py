"""Rewriting keeps a program as it is spread over devices."""

import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import pytest

from jaxcodesign import rewrite_gemms
from tests.programs.frameworks import NETWORKS

SAME = lambda gemm, lhs, rhs, dot: dot(lhs, rhs)
MOVES = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"


def mesh_of(kind=AxisType.Auto):
  return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)


def put(mesh, x, *spec):
  return jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))


def collectives(fn, *args):
  text = jax.jit(fn).lower(*args).compile().as_text()
  return sorted(re.findall(rf"\b({MOVES})\(", text))


def loss_of(fn):
  return lambda params, x: jnp.sum(fn(params, x) ** 2)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("grad", [False, True], ids=["values", "grad"])
def test_a_sharded_batch_takes_no_more_collectives_and_changes_no_bit(network, grad):
  net, mesh = NETWORKS[network](), mesh_of()
  x = put(mesh, jax.random.normal(jax.random.key(0), (16, 4)), "data")
  params = jax.device_put(net.params, jax.NamedSharding(mesh, jax.P()))
  around = (lambda fn: jax.grad(loss_of(fn))) if grad else (lambda fn: fn)
  fn = around(net.fn)
  for other in (rewrite_gemms(fn, SAME), around(rewrite_gemms(net.fn, SAME))):
    assert collectives(other, params, x) == collectives(fn, params, x)
    jax.tree.map(
      np.testing.assert_array_equal, jax.jit(other)(params, x), jax.jit(fn)(params, x)
    )


def mlp(params, x):
  return jax.nn.relu(x @ params["up"]) @ params["down"]


def tensor_parallel(mesh):
  draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
  params = {
    "up": put(mesh, draw(0, 4, 8), None, "model"),
    "down": put(mesh, draw(1, 8, 4), "model", None),
  }
  return params, put(mesh, draw(2, 8, 6, 4), "data")


def test_sharded_weights_and_tokens_keep_their_collectives():
  params, x = tensor_parallel(mesh_of())
  for fn in (mlp, jax.grad(loss_of(mlp))):
    other = rewrite_gemms(fn, SAME)
    assert collectives(other, params, x) == collectives(fn, params, x)
    jax.tree.map(
      np.testing.assert_array_equal, jax.jit(other)(params, x), jax.jit(fn)(params, x)
    )


@pytest.mark.parametrize("grad", [False, True], ids=["values", "grad"])
def test_explicit_shardings_are_kept(grad):
  mesh = mesh_of(AxisType.Explicit)
  params, x = tensor_parallel(mesh)

  def fn(params, x):
    hidden = jax.nn.relu(jnp.einsum("btd,dh->bth", x, params["up"]))
    out = jax.NamedSharding(mesh, jax.P("data"))
    return jnp.einsum("bth,hd->btd", hidden, params["down"], out_sharding=out)

  fn = jax.grad(loss_of(fn)) if grad else fn
  with jax.set_mesh(mesh):
    wanted, other = jax.jit(fn)(params, x), jax.jit(rewrite_gemms(fn, SAME))(params, x)
  jax.tree.map(np.testing.assert_array_equal, other, wanted)
  types = lambda out: jax.tree.map(jax.typeof, out)
  assert types(other) == types(wanted)


def test_shardings_that_a_function_asks_for_are_kept():
  mesh = mesh_of()
  rows = jax.NamedSharding(mesh, jax.P("data"))
  asks = jax.jit(lambda w, x: x @ w, out_shardings=rows)
  constrains = lambda w, x: jax.lax.with_sharding_constraint(x @ w, rows)
  for fn in (asks, constrains):
    out = jax.jit(rewrite_gemms(fn, SAME))(jnp.ones((4, 4)), jnp.ones((8, 4)))
    assert out.sharding.is_equivalent_to(rows, 2)


@pytest.mark.parametrize("check", [True, False])
def test_shard_map(check):
  mesh = mesh_of()

  def local(w, x):
    return jax.lax.psum(x @ w, "model")

  fn = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(jax.P("model", None), jax.P("data", "model")),
    out_specs=jax.P("data"),
    check_vma=check,
  )
  w = jax.random.normal(jax.random.key(0), (4, 3))
  x = jax.random.normal(jax.random.key(1), (8, 4))
  double = rewrite_gemms(fn, lambda gemm, lhs, rhs, dot: 2 * dot(lhs, rhs))
  wanted = jax.jit(fn)(w, x)
  np.testing.assert_array_equal(jax.jit(rewrite_gemms(fn, SAME))(w, x), wanted)
  np.testing.assert_array_equal(jax.jit(double)(w, x), 2 * wanted)
  assert collectives(rewrite_gemms(fn, SAME), w, x) == collectives(fn, w, x)
