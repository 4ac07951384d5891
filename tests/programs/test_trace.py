"""One network is one workload, however it is written and transformed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import trace
from jaxcodesign.programs import provenance
from tests.programs.frameworks import (
  BATCH,
  HIDDEN,
  INPUT,
  NETWORKS,
  OUTPUT,
  inputs,
  plain,
)

AUTO = (jax.sharding.AxisType.Auto,) * 2
SIZES = [(1, BATCH, INPUT, HIDDEN, 1), (1, BATCH, HIDDEN, OUTPUT, 1)]


def sizes(work):
  return [(g.batch, g.m, g.k, g.n, g.count) for g in work.gemms]


def names(work):
  return [(g.lhs, g.rhs) for g in work.gemms]


def array(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def optimized(f):
  g = jax.custom_jvp(f)
  g.defjvp(lambda primals, tangents: jax.jvp(f, primals, tangents))
  return g


@pytest.mark.parametrize("network", NETWORKS)
def test_every_framework_traces_to_the_same_products(network):
  net = NETWORKS[network]()
  work = trace(net.fn)(net.params, inputs())
  assert sizes(work) == SIZES
  assert names(work) == [("", net.weights[0]), ("", net.weights[1])]
  assert [g.name for g in work.gemms] == list(net.weights)
  assert {g.role for g in work.gemms} == {"forward"}
  assert work.macs == BATCH * (INPUT * HIDDEN + HIDDEN * OUTPUT)
  assert work.parameters == INPUT * HIDDEN + HIDDEN + HIDDEN * OUTPUT + OUTPUT


@pytest.mark.parametrize("network", NETWORKS)
def test_the_source_is_the_users_line_not_the_librarys(network):
  net = NETWORKS[network]()
  sources = {
    g.source.rsplit("/", 1)[-1] for g in trace(net.fn)(net.params, inputs()).gemms
  }
  assert all(s.startswith("frameworks.py:") for s in sources)


def test_the_callers_line_stands_for_a_function_without_a_users_line():
  traced = trace(jnp.matmul)
  (gemm,) = traced(array(2, 2), array(2, 2)).gemms
  assert gemm.source.rsplit("/", 1)[-1].startswith("test_trace.py:")


@pytest.mark.parametrize(
  "wrap",
  [
    jax.jit,
    jax.checkpoint,
    lambda f: jax.jit(jax.checkpoint(jax.jit(f))),
    lambda f: jax.named_call(f, name="layer"),
    lambda f: optimized(f),
    lambda f: lambda p, x: jax.vmap(f, (None, 0))(p, x[:, None, :])[:, 0],
  ],
  ids=["jit", "remat", "nested", "named", "custom_jvp", "vmap"],
)
def test_what_computes_the_same_counts_the_same(wrap):
  net = plain()
  work = trace(wrap(net.fn))(net.params, inputs())
  assert sizes(work) == SIZES and names(work)[1][1] == "second/w"


def test_a_jit_that_was_called_before_is_counted():
  net = plain()
  warm = jax.jit(net.fn)
  warm(net.params, inputs())
  twice = lambda p, x: warm(p, x) + warm(p, x)
  assert sizes(trace(twice)(net.params, inputs())) == SIZES * 2


def test_custom_vjp_is_counted_forward():
  @jax.custom_vjp
  def product(w, x):
    return x @ w

  product.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, g: (r[1].T @ g, g @ r[0].T))
  work = trace(product)(array(4, 3), array(2, 4))
  assert sizes(work) == [(1, 2, 4, 3, 1)] and names(work) == [("", "params")]


def test_scan_multiplies_by_its_length_and_names_stacked_weights():
  fn = lambda p, x: jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p["layers"])[
    0
  ]
  work = trace(fn)({"layers": array(5, 4, 4)}, array(2, 4))
  assert sizes(work) == [(1, 2, 4, 4, 5)] and names(work) == [("", "layers")]
  (tanh,) = [v for v in work.vector_ops if v.op == "tanh"]
  assert (tanh.elements, tanh.count) == (8, 5)


def test_nested_loops_multiply():
  def fn(p, x):
    inner = lambda c, _: (c @ p["w"], None)
    outer = lambda c, w: (jax.lax.scan(inner, c, None, length=3)[0] @ w, None)
    x, _ = jax.lax.scan(outer, x, p["stack"])
    return jax.lax.fori_loop(0, 7, lambda i, c: c @ p["w"], x)

  params = {"w": array(4, 4), "stack": array(5, 4, 4)}
  work = trace(fn)(params, array(2, 4))
  assert [g.count for g in work.gemms] == [15, 5, 7]
  assert names(work) == [("", "w"), ("", "stack"), ("", "w")]


def test_a_scan_of_length_zero_multiplies_nothing():
  fn = lambda w, x: jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=0)[0]
  assert trace(fn)(array(4, 4), array(2, 4)).macs == 0


def test_vmap_over_weights_is_a_batch():
  fn = jax.vmap(lambda w, x: x @ w, (0, None))
  work = trace(fn)(array(6, 4, 3), array(2, 4))
  assert work.macs == 6 * 2 * 4 * 3 and names(work) == [("", "params")]


def test_shard_map_counts_every_device():
  mesh = jax.make_mesh((4, 2), ("rows", "idle"), axis_types=AUTO)
  spec = jax.P("rows")
  fn = jax.shard_map(
    lambda w, x: jnp.tanh(x @ w), mesh=mesh, in_specs=(jax.P(), spec), out_specs=spec
  )
  work = trace(fn)(array(4, 3), array(8, 4))
  assert [(g.m, g.count) for g in work.gemms] == [(2, 8)]
  # The mesh axis that no spec mentions repeats the work: 8 devices do it, not 4.
  assert work.macs == 2 * 8 * 4 * 3
  assert [v.count for v in work.vector_ops if v.op == "tanh"] == [8]


def test_cond_counts_the_largest_branch_when_asked():
  def fn(w, x):
    return jax.lax.cond(x[0, 0] > 0, lambda: (x @ w) @ w, lambda: x @ w)

  work = trace(fn, branches="max")(array(4, 4), array(2, 4))
  assert sizes(work) == [(1, 2, 4, 4, 1)] * 2
  assert names(work) == [("", "params")] * 2


def test_cond_without_products_counts_the_most_vector_work():
  fn = lambda p, x: jax.lax.cond(x[0] > 0, jnp.sin, lambda x: jnp.cos(jnp.cos(x)), x)
  work = trace(fn, branches="max")((), array(8))
  counted = {v.op: v.count for v in work.vector_ops}
  assert counted["cos"] == 2 and "sin" not in counted


def test_an_unknown_way_to_count_branches_is_refused():
  with pytest.raises(ValueError, match='neither None nor "max"'):
    trace(jnp.sin, branches="min")


@pytest.mark.parametrize(
  ("spec", "shapes", "gemm"),
  [
    (
      "ij,jk->ik",
      [(2, 3), (3, 5)],
      (1, 5, 3, 2),
    ),  # flipped: the left one is the weight
    ("bij,bkj->bik", [(4, 2, 3), (4, 5, 3)], (4, 5, 3, 2)),
    ("abij,jiak->kb", [(2, 4, 3, 5), (5, 3, 2, 6)], (1, 6, 30, 4)),
    ("i,i->", [(7,), (7,)], (1, 1, 7, 1)),
  ],
)
def test_einsums_are_matrices(spec, shapes, gemm):
  work = trace(functools.partial(jnp.einsum, spec))(*(array(*s) for s in shapes))
  assert [(g.batch, g.m, g.k, g.n) for g in work.gemms] == [gemm]


def test_an_einsum_of_three_is_two_products():
  fn = lambda p, x: jnp.einsum("ti,ij,jk->tk", x, p["a"], p["b"])
  work = trace(fn)({"a": array(4, 5), "b": array(5, 6)}, array(2, 4))
  assert work.macs == min(2 * 4 * 5 + 2 * 5 * 6, 4 * 5 * 6 + 2 * 4 * 6)
  assert {g.rhs for g in work.gemms} <= {"a", "b"}


def test_values_do_not_matter_and_nothing_runs():
  net = plain()
  shapes = jax.tree.map(lambda x: array(*x.shape), net.params)
  assert trace(net.fn)(shapes, array(BATCH, INPUT)) == trace(net.fn)(
    net.params, inputs()
  )
  huge = array(10**6, 10**6)
  assert trace(jnp.matmul)(huge, huge).macs == 10**18


def test_python_values_pass_through():
  def fn(w, x, depth, *, act, scale=1.0, note=None):
    assert isinstance(depth, int) and isinstance(scale, float) and note == "why"
    for _ in range(depth):
      x = act(x @ w) * scale
    return x

  traced = trace(fn)
  work = traced(np.ones((4, 4), "f4"), array(2, 4), 3, act=jnp.tanh, note="why")
  assert sizes(work) == [(1, 2, 4, 4, 1)] * 3
  assert traced.__name__ == "fn"


def test_parameters_may_hold_python_values():
  fn = lambda p, x: x @ p["w"] * p["scale"]
  work = trace(fn)({"scale": 2.0, "w": array(4, 3)}, array(2, 4))
  assert names(work) == [("", "w")] and work.parameters == 12


def test_a_method_of_the_trace_is_traceable_inside_jit():
  counted = []

  @jax.jit
  def fn(w, x):
    counted.append(trace(jnp.matmul)(w, x).macs)
    return w @ x

  fn(jnp.ones((2, 3)), jnp.ones((3, 4)))
  assert counted == [24]


def test_dtype_is_that_of_the_left_operand():
  fn = lambda w, x: jax.lax.dot_general(
    w, x, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
  )
  (gemm,) = trace(fn)(array(3, 4, dtype=jnp.bfloat16), array(2, 4)).gemms
  assert (gemm.rhs, gemm.dtype) == ("params", "float32")  # the weight is on the right


def test_steps_visited_do_not_grow_with_the_depth_of_nesting(monkeypatch):
  visits = []
  through = provenance.through
  monkeypatch.setattr(
    provenance, "through", lambda step, ins: visits.append(step) or through(step, ins)
  )

  def nest(depth):
    if depth == 0:
      return lambda w, x: x @ w
    body = lambda w: lambda c, _: (jnp.tanh(nest(depth - 1)(w, c)), None)
    loop = lambda w, x: jax.lax.scan(body(w), jnp.zeros_like(x), None, length=2)[0]
    return lambda w, x: loop(w, x) + x

  per_level = []
  for depth in (2, 4, 8):
    visits.clear()
    (gemm,) = trace(nest(depth))(array(3, 3), array(3, 3)).gemms
    assert gemm.count == 2**depth
    per_level.append(len(visits) / depth)
  assert max(per_level) < 1.5 * min(per_level)


def test_a_weight_that_a_loop_reuses_is_read_once():
  step = lambda params: lambda carry, x: (carry, x @ params["w"])
  run = lambda params, xs: jax.lax.scan(step(params), 0.0, xs)[1]
  (g,) = trace(run)({"w": jnp.ones((8, 4))}, jnp.ones((5, 3, 8))).gemms
  assert (g.count, g.rhs_elements, g.leaf_elements) == (5, 32, 32)
  data = lambda params, xs: jax.lax.scan(lambda c, x: (c, x @ x.T), 0.0, xs)[1]
  (g,) = trace(data)({}, jnp.ones((5, 3, 8))).gemms
  assert (g.count, g.rhs_elements) == (5, 5 * 24)


def test_a_product_of_two_activations_keeps_its_sides():
  (g,) = trace(lambda params, a, b: a @ b)({}, jnp.ones((3, 5)), jnp.ones((5, 7))).gemms
  assert (g.m, g.k, g.n) == (3, 5, 7)
