"""A rule that changes nothing changes no bit; a rule that changes all reaches all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import quantize, rewrite_gemms, trace
from jaxcodesign.numerics.formats import Fixed
from jaxcodesign.programs.precision import Rule
from tests.programs.frameworks import BATCH, INPUT, NETWORKS, inputs, plain

SAME = lambda gemm, lhs, rhs, dot: dot(lhs, rhs)
DOUBLE = lambda gemm, lhs, rhs, dot: 2 * dot(lhs, rhs)


def twice(fn):
  return rewrite_gemms(fn, DOUBLE)


def same(fn):
  return rewrite_gemms(fn, SAME)


def equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def together(*fns):
  return jax.jit(lambda *args: [fn(*args) for fn in fns])


def loss_of(fn):
  return lambda params, x: jnp.sum(fn(params, x) ** 2)


def looped(fn):
  """A while and a cond: only rewriting goes through them; trip counts are data."""

  def run(params, x):
    first = jax.lax.cond(x[0, 0] > 9, lambda: 0 * fn(params, x), lambda: fn(params, x))
    body = lambda c: (c[0] + 1, c[1] + fn(params, x))
    more = lambda c: c[0] < x.shape[0] // x.shape[0] + 1
    return jax.lax.while_loop(more, body, (0, first))[1]

  return run


def scanned(fn):
  def run(params, x):
    body = lambda total, row: (total + jnp.sum(fn(params, row[None])), fn(params, x))
    return jax.lax.scan(body, 0.0, x, reverse=True)

  return run


def mapped(fn):
  return lambda params, x: jax.vmap(fn, (None, 0))(params, jnp.stack([x, 2 * x]))


def perturbed(fn):
  def run(params, x):
    tangent = jax.tree.map(jnp.ones_like, params)
    return jax.jvp(lambda p: fn(p, x), (params,), (tangent,))

  return run


# What stands between the network and the rewriting, or around both.
TRANSFORMS = {
  "values": lambda fn: fn,
  "grad": lambda fn: jax.grad(loss_of(fn)),
  "vmap": mapped,
  "scan": scanned,
  "remat": jax.checkpoint,
  "grad of remat": lambda fn: jax.grad(loss_of(jax.checkpoint(fn))),
  "grad of scan": lambda fn: jax.grad(lambda p, x: jnp.sum(scanned(fn)(p, x)[1] ** 2)),
  "while and cond": looped,
  "jvp": perturbed,
  "jit": jax.jit,
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_identity_changes_no_bit(network, transform):
  net, around = NETWORKS[network](), TRANSFORMS[transform]
  # In one program: to compile three takes twice as long.
  wanted, transformed, rewritten = together(
    around(net.fn), same(around(net.fn)), around(same(net.fn))
  )(net.params, inputs())
  equal(transformed, wanted)
  equal(rewritten, wanted)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_identity_holds_without_jit(network):
  net, x = NETWORKS[network](), inputs()
  np.testing.assert_allclose(
    same(net.fn)(net.params, x), net.fn(net.params, x), rtol=1e-6, atol=1e-6
  )


# Factors by which two doubled products in a row must scale each result: the network is
# homogeneous without biases, so a product that the rule missed would show.
REACHES = {
  "values": 4, "vmap": 4, "scan": 4, "remat": 4, "while and cond": 4, "jit": 4,
}  # fmt: skip


def homogeneous(params, x):
  return jnp.maximum(x @ params["first"]["w"], 0) @ params["second"]["w"]


@pytest.mark.parametrize("transform", REACHES)
def test_a_rule_reaches_every_product(transform):
  net, x, around = plain(), inputs(), TRANSFORMS[transform]
  wanted, *changed = together(
    around(homogeneous), twice(around(homogeneous)), around(twice(homogeneous))
  )(net.params, x)
  for one in changed:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, REACHES[transform] * b, rtol=1e-6),
      one,
      wanted,
    )


def test_gradients_go_through_what_the_rule_returned():
  # loss = sum(relu(x a) b)^2 is quadratic in two doubled products.
  net, x = plain(), inputs()
  wanted, doubled = together(
    jax.grad(loss_of(homogeneous)), jax.grad(loss_of(twice(homogeneous)))
  )(net.params, x)
  for name in ("first", "second"):
    np.testing.assert_allclose(doubled[name]["w"], 16 * wanted[name]["w"], rtol=1e-5)


@pytest.mark.parametrize(
  ("role", "first", "second"),
  # y = 4 y0; its gradient is 4 times as large, and the hidden layer twice.
  [("forward", 4, 8), ("input_gradient", 2, 1), ("weight_gradient", 2, 2)],
)
def test_a_rule_may_change_one_pass_of_a_gradient(role, first, second):
  def rule(gemm, lhs, rhs, dot):
    return dot(lhs, rhs) * (2 if gemm.role == role else 1)

  net, x = plain(), inputs()
  grad = jax.grad(loss_of(homogeneous))
  wanted, changed = together(grad, rewrite_gemms(grad, rule))(net.params, x)
  for name, factor in (("first", first), ("second", second)):
    np.testing.assert_allclose(
      changed[name]["w"], factor * wanted[name]["w"], rtol=1e-5
    )


def seen_by_rule(fn, *args, **options):
  seen = []

  def rule(gemm, lhs, rhs, dot):
    seen.append(gemm)
    if options.get("matrices") or gemm.kind == "dot":
      assert lhs.shape == (gemm.batch, gemm.m, gemm.k)
    assert rhs.shape == (gemm.batch, gemm.n, gemm.k)
    return dot(lhs, rhs)

  jax.eval_shape(rewrite_gemms(fn, rule, **options), *args)
  return tuple(seen)


TRACEABLE = [t for t in TRANSFORMS if t != "while and cond"]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("transform", TRACEABLE)
def test_the_rule_sees_the_traced_products_with_names_and_roles(network, transform):
  net, x = NETWORKS[network](), inputs()
  fn = TRANSFORMS[transform](net.fn)
  work = trace(fn)(net.params, x)
  assert seen_by_rule(fn, net.params, x) == work.gemms
  # Rewriting leaves a program whose products are traced as before: same names and
  # roles. A flipped product is bound in its own layout, so sizes agree as well.
  again = trace(same(fn))(net.params, x)
  view = lambda g: (g.lhs, g.rhs, g.role, g.output, g.m, g.k, g.n, g.count, g.source)
  assert list(map(view, again.gemms)) == list(map(view, work.gemms))


def test_operands_are_canonical_in_every_framework():
  for build in NETWORKS.values():
    net, weights = build(), []
    x = inputs()

    def rule(gemm, lhs, rhs, dot, weights=weights, x=x):
      weights.append((gemm.rhs, rhs))
      if len(weights) == 1:
        np.testing.assert_array_equal(lhs[0], x)
      return dot(lhs, rhs)

    rewrite_gemms(net.fn, rule)(net.params, x)
    named = {name: leaf[0] for name, leaf in weights}  # [n, k]
    assert tuple(named) == net.weights
    leaves = jax.tree.leaves(net.params)
    for weight in named.values():
      assert any(np.array_equal(weight, w) or np.array_equal(weight.T, w)
                 for w in leaves)  # fmt: skip


def scale_rule(scale):
  return lambda gemm, lhs, rhs, dot: scale * dot(lhs, rhs)


BODIES = {
  "plain": lambda fn: fn,
  "jit": jax.jit,
  "scan": lambda fn: (
    lambda p, x: jax.lax.scan(
      lambda c, row: (c + jnp.sum(fn(p, row[None])), None), 0.0, x
    )[0]
  ),
  "remat": jax.checkpoint,
  "scan of remat": lambda fn: (
    lambda p, x: jax.lax.scan(
      jax.checkpoint(lambda c, row: (c + jnp.sum(fn(p, row[None])), None)), 0.0, x
    )[0]
  ),
  "cond": lambda fn: (
    lambda p, x: jax.lax.cond(x[0, 0] > 99, lambda: 0 * fn(p, x), lambda: fn(p, x))
  ),
  "vmap": mapped,
}


@pytest.mark.parametrize("body", BODIES)
def test_gradients_reach_what_the_rule_closes_over(body):
  net, x = plain(), inputs()

  def total(scale):
    fn = rewrite_gemms(BODIES[body](homogeneous), scale_rule(scale))
    return jnp.sum(fn(net.params, x))

  # Two products in a row: total(s) = s^2 total(1).
  base = total(jnp.float32(1))
  for grad in (jax.grad(total), jax.jit(jax.grad(total))):
    np.testing.assert_allclose(grad(jnp.float32(3)), 6 * base, rtol=1e-4)


def test_a_schedule_inside_the_rule_compiles_once():
  net, traces = plain(), []

  @jax.jit
  def run(scale, x):
    traces.append(1)
    return rewrite_gemms(homogeneous, scale_rule(scale))(net.params, x)

  one, two = (run(jnp.float32(s), inputs()) for s in (1, 2))
  np.testing.assert_allclose(two, 4 * one, rtol=1e-6)
  assert len(traces) == 1


WEIGHTS = {
  "masked": lambda p, x: x @ jnp.where(p["w"] > 0, p["w"], 0),
  "cast": lambda p, x: x.astype(jnp.bfloat16) @ p["w"].astype(jnp.bfloat16),
  "tied": lambda p, x: (x @ p["w"]) @ p["w"].T,
  "gathered": lambda p, x: x @ p["stack"][jnp.argmax(x[0])],
  "einsum of three": lambda p, x: jnp.einsum("ti,ij,kj->tk", x, p["w"], p["w"]),
  "int8": lambda p, x: jax.lax.dot(
    x.astype(jnp.int8), p["w"].astype(jnp.int8), preferred_element_type=jnp.int32
  ),
  "not a matrix": lambda p, x: jnp.einsum("ti,sij->tsj", x, p["stack"]),
}


@pytest.mark.parametrize("how", WEIGHTS)
def test_weights_in_any_state(how):
  rng = np.random.default_rng(0)
  x, w, stack = (rng.normal(size=s).astype("f4") for s in ((5, 4), (4, 6), (4, 4, 6)))
  x, params = jnp.asarray(3 * x), {"w": jnp.asarray(3 * w), "stack": jnp.asarray(stack)}
  fn = WEIGHTS[how]
  wanted, found, doubled = together(fn, same(fn), twice(fn))(params, x)
  equal(found, wanted)
  assert {g.rhs for g in seen_by_rule(fn, params, x)} <= {"w", "stack"}
  products = len(trace(fn)(params, x).gemms)
  np.testing.assert_allclose(
    doubled.astype("f4"), 2.0**products * wanted.astype("f4"), rtol=0.02
  )


def test_a_warm_jitted_helper_is_rewritten():
  helper = jax.jit(lambda w, x: x @ w)
  w, x = jnp.ones((4, 4)), jnp.ones((2, 4))
  helper(w, x)
  np.testing.assert_array_equal(twice(helper)(w, x), 2 * helper(w, x))
  np.testing.assert_array_equal(helper(w, x), 4 * jnp.ones((2, 4)))  # itself untouched


@pytest.mark.parametrize("prevent_cse", [True, False])
@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.dots_saveable])
def test_checkpoints_keep_their_policy_and_their_barrier(policy, prevent_cse):
  fn = jax.checkpoint(
    lambda w, x: jnp.sin(jnp.sin(x @ w) @ w), policy=policy, prevent_cse=prevent_cse
  )
  w, x = jnp.ones((4, 4)), jnp.ones((2, 4))
  inside, outside = same(jax.grad(loss_of(fn))), jax.grad(loss_of(same(fn)))
  roles = lambda grad: [g.role for g in trace(grad)(w, x).gemms]
  barriers = lambda grad: jax.jit(grad).lower(w, x).as_text().count("barrier")
  for grad in (inside, outside):
    assert roles(grad) == roles(jax.grad(loss_of(fn)))
    assert barriers(grad) == barriers(jax.grad(loss_of(fn)))
  assert roles(inside).count("recompute") == (2 if policy is None else 0)
  assert (barriers(inside) > 0) == prevent_cse


def test_derivatives_of_relu_survive():
  def fn(w, x):
    return jnp.sum(jax.nn.relu(x @ w))

  w, x = jnp.zeros((3, 3)), jnp.ones((2, 3))
  # relu'(0) = 0 is relu's own choice; that of maximum(x, 0) would be a half.
  assert not jax.grad(same(fn))(w, x).any()
  assert jax.grad(lambda w, x: jnp.sum(jnp.maximum(x @ w, 0)))(w, x).any()


def test_custom_derivatives_without_products_survive():
  @jax.custom_vjp
  def through(x):
    return jnp.round(x)

  through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (7 * g,))
  fn = lambda w, x: jnp.sum(jax.checkpoint(lambda y: through(y @ w))(x))
  w, x = jnp.full((3, 3), 0.3), jnp.ones((2, 3))
  np.testing.assert_array_equal(jax.grad(same(fn))(w, x), 7 * 2 * jnp.ones((3, 3)))
  np.testing.assert_array_equal(same(jax.grad(fn))(w, x), 7 * 2 * jnp.ones((3, 3)))


def test_a_rule_may_be_a_custom_derivative():
  @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
  def product(dot, a, b):
    return dot(a, b)

  product.defvjp(
    lambda dot, a, b: (dot(a, b), (a, b)),
    lambda dot, saved, g: jax.tree.map(lambda x: jnp.full_like(x, 5), saved),
  )
  rule = lambda gemm, lhs, rhs, dot: product(dot, lhs, rhs)
  fn = lambda w, x: jnp.sum(jax.lax.map(lambda row: row @ w, x))
  grad = jax.grad(rewrite_gemms(fn, rule))(jnp.ones((3, 2)), jnp.ones((4, 3)))
  np.testing.assert_array_equal(grad, 5 * 4 * jnp.ones((3, 2)))


def test_python_values_and_structure_pass_through():
  def fn(params, x, depth, *, act):
    for _ in range(depth):
      x = act(x @ params["w"])
    return {"out": x, "none": None, "pair": (x, params["w"])}

  w = {"w": jnp.eye(3)}
  out = twice(fn)(w, jnp.ones((2, 3)), 2, act=jnp.negative)
  assert out["none"] is None and out["pair"][1].shape == (3, 3)
  np.testing.assert_array_equal(out["out"], 4 * jnp.ones((2, 3)))
  assert twice(fn).__name__ == "fn"


def test_inputs_may_be_numpy_and_double():
  w, x = np.ones((3, 2)), np.ones((4, 3))  # float64, which jax makes float32
  np.testing.assert_array_equal(twice(lambda w, x: x @ w)(w, x), 6 * np.ones((4, 2)))


def test_batch_and_input_sizes_are_those_of_the_frameworks():
  assert inputs().shape == (BATCH, INPUT)


def test_a_reversed_scan_stays_reversed():
  def fn(params, xs):
    step = lambda carry, x: (carry @ params["w"] + x, carry)
    return jax.lax.scan(step, jnp.zeros(3), xs, reverse=True)

  params = {"w": 0.5 * jnp.eye(3)}
  xs = jnp.arange(12, dtype=jnp.float32).reshape(4, 3)
  equal(same(fn)(params, xs), fn(params, xs))


def test_every_iteration_of_every_loop_has_its_own_noise():
  noisy = Rule("*", None, Fixed(4), stochastic=("activation",))
  x = jnp.full((1, 64), 0.3).at[0, 0].set(1.0)

  def looped(params, x):
    inner = lambda carry, _: (carry, x @ params["w"])
    outer = lambda carry, _: (carry, jax.lax.scan(inner, 0, None, 3)[1])
    return jax.lax.scan(outer, 0, None, 2)[1]

  run = jax.jit(quantize(looped, [noisy], key=jax.random.key(0)))
  drawn = np.asarray(run({"w": jnp.eye(64)}, x)).reshape(6, 64)
  assert len({row.tobytes() for row in drawn}) == 6
