"""Convolutions as products of true matrices: any matrix engine may compute them."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import rewrite_gemms, trace
from tests.programs.operations import FEW, SETTINGS, convolutions, integers


def systolic(gemm, lhs, rhs, dot):
  """A matrix engine of its own: one rank-1 update a step, no product."""
  updates = jnp.moveaxis(lhs, -1, 0), jnp.moveaxis(rhs, -1, 0)
  step = lambda out, ab: (out + ab[0][:, :, None] * ab[1][:, None, :], None)
  out = jnp.zeros((gemm.batch, gemm.m, gemm.n), lhs.dtype)
  return jax.lax.scan(step, out, updates)[0]


def same(gemm, lhs, rhs, dot):
  return dot(lhs, rhs)


def matrices(fn, rule):
  return rewrite_gemms(fn, rule, matrices=True)


def loss_of(fn):
  return lambda w, x: jnp.sum(fn(w, x) ** 2)


def true_matrices(seen, product):
  """A rule that multiplies by `product`, having checked what it was given."""

  def rule(gemm, lhs, rhs, dot):
    assert lhs.shape == (gemm.batch, gemm.m, gemm.k)
    assert rhs.shape == (gemm.batch, gemm.n, gemm.k)
    seen.append(gemm)
    return product(gemm, lhs, rhs, dot)

  return rule


def on_numpy(gemm, lhs, rhs, dot):
  out = jax.ShapeDtypeStruct((gemm.batch, gemm.m, gemm.n), lhs.dtype)
  product = lambda a, b: np.asarray(a) @ np.asarray(b).transpose(0, 2, 1)
  return jax.pure_callback(product, out, lhs, rhs)


@SETTINGS
@hypothesis.given(convolutions())
def test_any_matrix_engine_computes_any_convolution_exactly(case):
  fn, w, x = case
  seen = []
  on_matrices = matrices(fn, true_matrices(seen, on_numpy))
  out, wanted = jax.jit(lambda w, x: (on_matrices(w, x), fn(w, x)))(w, x)
  np.testing.assert_array_equal(out, wanted)
  work = trace(fn)(w, x)
  assert tuple(seen) == work.gemms
  # Nothing but the product multiplies, and it multiplies as often as was counted.
  (gemm,) = trace(matrices(fn, same))(w, x).gemms
  assert (gemm.kind, gemm.macs) == ("dot", work.macs)
  assert not trace(matrices(fn, systolic))(w, x).gemms


@FEW
@hypothesis.given(convolutions())
def test_gradients_of_any_convolution_are_exact(case):
  fn, w, x = case
  seen = []
  grad = lambda fn: jax.grad(loss_of(fn), (0, 1))
  fns = (
    grad(fn),
    matrices(grad(fn), true_matrices(seen, same)),
    grad(matrices(fn, same)),
  )
  wanted, inside, outside = jax.jit(lambda w, x: [fn(w, x) for fn in fns])(w, x)
  jax.tree.map(np.testing.assert_array_equal, inside, wanted)
  assert tuple(seen) == trace(grad(fn))(w, x).gemms
  jax.tree.map(np.testing.assert_array_equal, outside, wanted)


def test_the_window_comes_before_the_channels():
  x = integers((1, 5, 5, 2), 0)
  w = integers((3, 3, 2, 4), 1)
  seen = []

  def rule(gemm, lhs, rhs, dot):
    seen.append((lhs, rhs))
    return dot(lhs, rhs)

  fn = lambda w, x: jax.lax.conv_general_dilated(
    x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  matrices(fn, rule)(w, x)
  ((lhs, rhs),) = seen
  # Row of output pixel (1, 2): its 3x3 window, channels fastest; a filter likewise.
  np.testing.assert_array_equal(lhs[0, 1 * 3 + 2], x[0, 1:4, 2:5].reshape(-1))
  np.testing.assert_array_equal(rhs[0, 3], w[..., 3].reshape(-1))


def test_depthwise_groups_are_the_batch():
  x, w = integers((2, 4, 4, 3), 0), integers((3, 3, 1, 3), 1)
  seen = []

  def rule(gemm, lhs, rhs, dot):
    seen.append((gemm.batch, lhs.shape, rhs))
    return dot(lhs, rhs)

  fn = lambda w, x: jax.lax.conv_general_dilated(
    x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=3,
  )  # fmt: skip
  matrices(fn, rule)(w, x)
  ((batch, shape, rhs),) = seen
  assert batch == 3 and shape == (3, 2 * 2 * 2, 9)
  np.testing.assert_array_equal(rhs[1, 0], w[:, :, 0, 1].reshape(-1))


def cnn(params, x):
  for name, groups in (("a", 1), ("b", 2)):
    x = jax.lax.conv_general_dilated(
      x, params[name], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups,
    )  # fmt: skip
    x = jax.nn.relu(x)
  return x.reshape(x.shape[0], -1) @ params["c"]


PARAMS = {
  "a": integers((3, 3, 2, 4), 0),
  "b": integers((3, 3, 2, 6), 1),
  "c": integers((24, 3), 2),
}
X = integers((2, 8, 8, 2), 3)


@pytest.mark.parametrize(
  "around",
  [
    lambda fn: fn,
    lambda fn: jax.grad(loss_of(fn)),
    jax.checkpoint,
    lambda fn: lambda p, x: jax.vmap(fn, (None, 0))(p, jnp.stack([x, -x])),
    lambda fn: lambda p, x: jax.lax.map(lambda row: fn(p, row[None]), x),
  ],
  ids=["values", "grad", "remat", "vmap", "scan"],
)
def test_a_network_on_a_matrix_engine(around):
  fns = around(cnn), matrices(around(cnn), systolic), around(matrices(cnn, systolic))
  wanted, *found = jax.jit(lambda p, x: [fn(p, x) for fn in fns])(PARAMS, X)
  for one in found:
    jax.tree.map(np.testing.assert_array_equal, one, wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_accumulator_is_the_one_asked_for(dtype):
  x, w = (integers(s, 0).astype(dtype) for s in ((1, 6, 2), (3, 2, 4)))
  preferred = jnp.int32 if dtype == "int8" else jnp.float32
  fn = lambda w, x: jax.lax.conv_general_dilated(
    x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"),
    preferred_element_type=preferred,
  )  # fmt: skip
  out = matrices(fn, same)(w, x)
  assert out.dtype == preferred
  np.testing.assert_array_equal(out, fn(w, x))


def test_a_rule_that_answers_with_an_image_is_refused():
  fn = lambda w, x: jax.lax.conv_general_dilated(
    x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
  )
  rule = lambda gemm, lhs, rhs, dot: dot(lhs, rhs)[0]
  with pytest.raises(TypeError, match=r"test_im2col\.py"):
    matrices(fn, rule)(integers((3, 2, 4), 0), integers((1, 6, 2), 1))


def test_empty_results_are_empty():
  fn = lambda w, x: jax.lax.conv_general_dilated(
    x, w, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
  )
  out = matrices(fn, systolic)(integers((3, 2, 4), 0), integers((1, 2, 2), 1))
  assert out.shape == (1, 0, 4)
