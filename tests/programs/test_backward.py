"""Backward products round along their own contraction; policies say what they do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcodesign
from jaxcodesign.numerics.formats import (
  E2M1,
  E5M2,
  MXFP4,
  BlockFloat,
  Fixed,
  Terms,
  noise,
)
from jaxcodesign.programs import precision
from jaxcodesign.programs.jaxprs import Unsupported
from jaxcodesign.programs.precision import Backward, Rule

M, K, N = 20, 48, 24
KEYS = jax.random.split(jax.random.key(0), 3)
W = {"w": jax.random.normal(KEYS[0], (K, N))}
X = jax.random.normal(KEYS[1], (M, K))
COMING = jax.random.normal(KEYS[2], (M, N))
A4, W3, G2, G5 = BlockFloat(4), BlockFloat(3), BlockFloat(2), BlockFloat(5)


def layer(p, x):
  return x @ p["w"]


def gradients(policy, fn=layer, key=None):
  quantized = jaxcodesign.quantize(fn, policy, key=key)
  # An argument: XLA rounds a constant while it compiles, slowly.
  loss = lambda p, x, coming: jnp.sum(quantized(p, x) * coming)
  by_weight, by_input = jax.jit(jax.grad(loss, argnums=(0, 1)))(W, X, COMING)
  return by_weight["w"], by_input


@pytest.mark.parametrize(
  ("gradient", "by_input", "by_weight", "weight", "activation"),
  [
    (G2, G2, G2, W3, A4),
    (Backward(G2, G5), G2, G5, W3, A4),
    (Backward(None, G5), None, G5, W3, A4),
    (Backward(G2, None, weight=Fixed(8), activation=MXFP4), G2, None, Fixed(8), MXFP4),
    (Backward(G2, G5, weight=None), G2, G5, None, A4),
    (Backward(G2, G5, activation=None), G2, G5, W3, None),
  ],
  ids=[
    "one",
    "two",
    "weight gradient only",
    "others too",
    "no weight",
    "no activation",
  ],
)
def test_every_product_rounds_along_its_own_contraction(
  gradient, by_input, by_weight, weight, activation
):
  rounded = lambda fmt, x: x if fmt is None else jax.jit(fmt.quantize)(x)
  slope_w, slope_x = gradients([Rule("w", W3, A4, gradient)])
  wanted_x = rounded(by_input, COMING) @ rounded(weight, W["w"]).T  # over n
  wanted_w = rounded(activation, X.T) @ rounded(by_weight, COMING.T).T  # over m
  np.testing.assert_allclose(slope_x, wanted_x, rtol=1e-5, atol=1e-4)
  np.testing.assert_allclose(slope_w, wanted_w, rtol=1e-5, atol=1e-4)


def test_blocks_of_a_strided_convolution_lie_along_each_contraction():
  shape = (2, 5, 7, 3), (3, 3, 3, 8), (2, 2, 3, 8)
  image, kernel, coming = (jax.random.normal(k, s) for k, s in zip(KEYS, shape))
  conv = lambda x, w: jax.lax.conv_general_dilated(
    x, w, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  fmt = BlockFloat(3, block=4)
  quantized = jaxcodesign.quantize(lambda w, x: conv(x, w), [Rule("*", gradient=fmt)])
  loss = lambda w, x, coming: jnp.sum(quantized(w, x) * coming)
  by_kernel, by_image = jax.jit(jax.grad(loss, argnums=(0, 1)))(kernel, image, coming)

  @jax.jit
  def by_hand(image, kernel, coming):
    _, pull = jax.vjp(conv, image, kernel)
    # Input gradient: the sum runs over filters. Weight gradient: over images and
    # pixels, images fastest.
    flat = jnp.transpose(coming, (3, 1, 2, 0)).reshape(8, -1)
    along = fmt.quantize(flat).reshape(8, 2, 3, 2)
    by_kernel = pull(jnp.transpose(along, (3, 1, 2, 0)))[1]
    return pull(fmt.quantize(coming))[0], by_kernel

  wanted = by_hand(image, kernel, coming)
  np.testing.assert_allclose(by_image, wanted[0], rtol=1e-4)
  np.testing.assert_allclose(by_kernel, wanted[1], rtol=1e-4, atol=1e-4)


def test_a_schedule_of_mantissas_compiles_once():
  traces = []

  @jax.jit
  def run(mantissa):
    traces.append(1)
    rule = Rule("*", A4, A4, Backward(BlockFloat(mantissa), BlockFloat(mantissa)))
    loss = lambda p: jnp.sum(jaxcodesign.quantize(layer, [rule])(p, X) * COMING)
    return jax.grad(loss)(W)["w"]

  exact = gradients([Rule("*", A4, A4)])[0]
  errors = [float(jnp.abs(run(jnp.float32(m)) - exact).mean()) for m in (2, 4, 8)]
  assert errors == sorted(errors, reverse=True) and len(traces) == 1


@pytest.mark.parametrize("source", [noise.Counter, noise.Threefry, noise.Lfsr])
def test_gradients_are_noisy_and_the_forward_pass_is_not(source):
  rule = Rule("*", A4, A4, G2)

  @jax.jit
  def run(key):
    noisy = jaxcodesign.quantize(layer, [rule], key=source(key))
    return gradients([rule], key=source(key)), noisy(W, X)

  (one, values), (again, _) = (run(jax.random.key(0)) for _ in range(2))
  two, others = run(jax.random.key(1))
  assert all(map(np.array_equal, one, again)) and not any(map(np.array_equal, one, two))
  np.testing.assert_array_equal(values, others)


def test_clipped_gradients_stop_where_values_saturate():
  fmt = E2M1  # ends at 6
  w = {"w": jnp.array([[1.0], [-20.0], [6.0], [6.3], [0.0]])}
  for clip, passes in ((True, [1, 0, 1, 0, 1]), (False, [1, 1, 1, 1, 1])):
    quantized = jaxcodesign.quantize(layer, [Rule("*", weight=fmt, clip=clip)])
    slope = jax.grad(lambda p, q=quantized: jnp.sum(q(p, jnp.ones((2, 5)))))(w)["w"]
    np.testing.assert_array_equal(slope[:, 0], 2 * np.array(passes))


def network(p, x):
  x = jax.lax.conv_general_dilated(
    x, p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  ).mean((1, 2))
  scores = jnp.einsum("qd,kd->qk", x @ p["q"], x @ p["k"])
  return scores @ x @ p["out"]


NETWORK = {
  "conv": jnp.ones((3, 3, 8, 16)), "q": jnp.eye(16), "k": jnp.eye(16),
  "out": jnp.ones((16, 3)),
}  # fmt: skip
IMAGES = jnp.ones((2, 6, 6, 8))


def test_kinds_of_product_choose_a_rule():
  policy = [Rule("*", Fixed(4), Fixed(4), kind="conv"), Rule("*", E5M2, E5M2)]
  rows = precision.describe(network, policy)(NETWORK, IMAGES).rows
  assert [row.rule for row in rows] == ["0", "1", "1", "1", "1", "1"]
  with pytest.raises(ValueError, match="kind='convolution' matches no product; there"):
    jaxcodesign.quantize(network, [Rule(kind="convolution")])(NETWORK, IMAGES)


def test_the_description_names_formats_rules_and_reasons():
  policy = [
    Rule("conv", Fixed(4, "channel"), MXFP4, Backward(E5M2, BlockFloat(3))),
    Rule("[qk]", weight=Terms(jnp.float32(12))),
    Rule("out"),
  ]
  told = precision.describe(network, policy)(NETWORK, IMAGES)
  conv, q, k, scores, mixed, out = told.rows
  assert conv[3:] == (
    "MXFP4", "Fixed(bits=4, share='channel')",
    "E5M2 x Fixed(bits=4, share='channel') along 9 taps x 16",
    "BlockFloat(mantissa=3) x MXFP4 along 36 taps x 2", "0", "",
  )  # fmt: skip
  assert q[3:5] == ("float32", "Terms(budget=12)") and k.rule == "1"
  assert q.note == "activation: rule 1 has no format for it"
  assert scores.note == mixed.note == "both operands: no rule matches"
  assert re.fullmatch(r"test_backward\.py:\d+", scores.product)
  assert out.note == "activation and weight: rule 2 has no format for it"
  assert "1 of 6 products" in told.summary() and "<td>MXFP4</td>" in told._repr_html_()
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), NETWORK)
  assert precision.describe(network, policy)(shapes, IMAGES) == told
  assert str(told).count("\n") == 8


@pytest.mark.parametrize(("stride", "along"), [(1, "4 taps x 4"), (2, "4")])
def test_a_description_tells_how_scales_of_a_convolution_lie(stride, along):
  """A stride makes the input gradient a product of each tap by itself."""
  kernel = jax.random.normal(KEYS[1], (2, 2, 3, 4))
  coming = jax.random.normal(KEYS[2], (1, 4, 4, 4))
  x = jnp.ones((1, 4 * stride, 4 * stride, 3))
  conv = lambda p, x: jax.lax.conv_general_dilated(
    x, p["w"], (stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  rows = Fixed(3, "channel")
  policy = [Rule(gradient=Backward(weight=rows))]
  (row,) = precision.describe(conv, policy)({"w": kernel}, x).rows
  assert row.input_gradient == f"float32 x Fixed(bits=3, share='channel') along {along}"
  turned = jnp.moveaxis(kernel, 2, 0)  # [inputs, 2, 2, outputs]
  given = turned.reshape(3, -1) if stride == 1 else turned
  w = jnp.moveaxis(rows.quantize(given).reshape(turned.shape), 0, 2)
  slope = lambda fn, w: jax.vjp(lambda x: fn({"w": w}, x), x)[1](coming)[0]
  found = slope(jaxcodesign.quantize(conv, policy), kernel)
  np.testing.assert_allclose(found, slope(conv, w), atol=1e-5)


@pytest.mark.parametrize("key", [None, jax.random.key(0)])
def test_what_a_description_counts_runs_no_loop_twice(key):
  fn = lambda p, x: jax.lax.scan(lambda c, w: (c @ w, None), x, p["stack"])[0]
  p = {"stack": jnp.ones((5, 4, 4))}
  told = precision.describe(fn, [Rule("*", Fixed(8), Fixed(8))])(p, jnp.ones((2, 4)))
  (row,) = told.rows
  assert row.product == "stack" and row.macs == 5 * 2 * 4 * 4


def test_a_workload_is_priced_with_gradient_formats():
  loss = lambda p, x: jnp.sum(layer(p, x) ** 2)
  gemms = jaxcodesign.trace(jax.grad(loss, argnums=(0, 1)))(W, X).gemms
  policy = [Rule("w", W3, A4, Backward(G2, G5))]
  found = dict(zip([g.role for g in gemms], precision.assign(policy, gemms)))
  assert found == {
    "forward": (A4, W3), "input_gradient": (G2, W3), "weight_gradient": (G5, A4),
  }  # fmt: skip


@pytest.mark.parametrize(
  ("use", "error", "message"),
  [
    (lambda: Rule(stochastic=("gradients",)), ValueError, "'gradients' is none of"),
    (
      lambda: gradients(
        [Rule("*", A4, stochastic=("activation", "gradient"))], key=jax.random.key(0)
      ),
      ValueError,
      "key is given, but no rule rounds stochastically",
    ),
    (lambda: gradients([Rule("*", gradient=G2)], key=3), TypeError, "no PRNG key"),
    (
      lambda: gradients([Rule("*", gradient=G2)], key=noise.Explicit(jnp.ones(1), 1)),
      TypeError,
      "no PRNG key to draw every product's noise from",
    ),
    (
      lambda: gradients([Rule("*", gradient=Terms(8, group=16))]),
      ValueError,
      r"w \(.*test_backward\.py:\d+\), backward operand.*group=16",
    ),
    (
      lambda: jaxcodesign.quantize(jax.grad(lambda p: jnp.sum(layer(p, X) ** 2)), [
        Rule("*", gradient=G2)
      ])(W),
      Unsupported,
      r"product of a backward pass already; with gradient formats",
    ),
    (
      lambda: jaxcodesign.quantize(layer, [Rule("*", Fixed(8))])(
        {"w": jnp.ones((K, N), jnp.int8)}, X.astype(jnp.int8)
      ),
      TypeError,
      r"w \(.*test_backward\.py:\d+\), right operand .*x is int8: cast it first",
    ),
  ],
)  # fmt: skip
def test_bad_policies(use, error, message):
  with pytest.raises(error, match=message):
    use()


def test_forward_mode_says_that_no_gradient_comes_in():
  quantized = jaxcodesign.quantize(layer, [Rule("*", gradient=G2)])
  with pytest.raises(TypeError, match="forward-mode"):
    jax.jvp(lambda p: quantized(p, X), (W,), (W,))
