"""What cannot be counted or rewritten is refused, by name, at the user's line."""

import inspect

import jax
from jax.experimental import pallas as pl
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import rewrite_gemms, trace
from jaxcodesign.programs.jaxprs import Unsupported
from tests.programs.frameworks import plain

W, X = np.ones((4, 4), "f4"), np.ones((4, 4), "f4")
SAME = lambda gemm, lhs, rhs, dot: dot(lhs, rhs)


def line_of(fn, marker="# here"):
  """`file:line` of the line of `fn` that is marked."""
  lines, first = inspect.getsourcelines(fn)
  (offset,) = [i for i, line in enumerate(lines) if marker in line]
  return f"test_refusals.py:{first + offset}:"


def loop(w, x):
  return jax.lax.while_loop(  # here
    lambda c: c[0, 0] < 9, lambda c: c @ w + 1, x
  )


def branch(w, x):
  return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x)  # here


def ragged(w, x):
  return jax.lax.ragged_dot(x, w[None], jnp.array([4]))  # here


def fft(w, x):
  return jnp.fft.fft(x @ w)  # here


def cholesky(w, x):
  return jnp.linalg.cholesky(w) @ x  # here


def solve(w, x):
  return jnp.linalg.solve(w, x)  # here


def svd(w, x):
  return jnp.linalg.svd(w, compute_uv=False)  # here


def copy(source, target):
  target[...] = source[...]


def kernel(w, x):
  return pl.pallas_call(  # here
    copy, out_shape=jax.ShapeDtypeStruct((4, 4), jnp.float32), interpret=True
  )(x)


def host(w, x):
  return jax.pure_callback(lambda x: x, X, x)  # here


mystery_p = jex.Primitive("mystery_matmul")
mystery_p.def_abstract_eval(lambda x: x)


def foreign(w, x):
  return mystery_p.bind(x)  # here


def strided(w, x):
  return jax.lax.conv_general_dilated(  # here
    x[None], w[:, None, :], (2,), [(0, 0)], lhs_dilation=(2,),
    dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=4,
  )  # fmt: skip


@pytest.mark.parametrize(
  ("fn", "reason"),
  [
    (loop, "trip count of a while loop is data"),
    (branch, 'branches="max"'),
    (ragged, "ragged_dot_general cannot be counted"),
    (fft, "fft cannot be counted"),
    (cholesky, "cholesky cannot be counted: factorizations"),
    (solve, "lu cannot be counted"),
    (svd, "svd cannot be counted"),
    (kernel, "pallas_call cannot be counted: a kernel is opaque"),
    (host, "pure_callback cannot be counted"),
    (foreign, "mystery_matmul cannot be counted: it is no primitive of jax's own"),
    (strided, "subsample"),
  ],
)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_trace_refuses(fn, reason, wrap):
  with pytest.raises(Unsupported) as refusal:
    trace(wrap(fn))(W, X)
  assert line_of(fn) in str(refusal.value) and reason in str(refusal.value)


def test_a_refusal_inside_loops_is_found():
  def fn(w, x):
    body = lambda c, _: (jnp.where(branch(w, c) > 0, c, 1.0), None)
    return jax.lax.scan(jax.checkpoint(body), x, None, length=2)[0]

  with pytest.raises(Unsupported) as refusal:
    trace(fn)(W, X)
  assert line_of(branch) in str(refusal.value)


def by_value(w, x):
  if x[0, 0] > 0:  # here
    return x @ w
  return x


def by_length(w, x):
  for _ in range(x[0, 0].astype(int)):  # here
    x = x @ w
  return x


def by_mask(w, x):
  return x[x > 0]  # here


def by_numpy(w, x):
  return np.asarray(x) @ w  # here


@pytest.mark.parametrize("fn", [by_value, by_length, by_mask, by_numpy])
@pytest.mark.parametrize("use", [trace, lambda f: rewrite_gemms(f, SAME)])
def test_functions_that_need_values_are_refused_at_their_line(fn, use):
  with pytest.raises(Unsupported) as refusal:
    use(fn)(W, X)
  message = str(refusal.value)
  assert (
    fn.__name__ in message and line_of(fn)[:-1] in message and "jnp.where" in message
  )


def test_other_errors_of_the_function_are_its_own():
  with pytest.raises(TypeError, match="dot_general requires contracting dimensions"):
    trace(lambda w, x: w @ x)(np.ones((2, 3), "f4"), np.ones((2, 3), "f4"))


@jax.custom_vjp
def custom_vjp(w, x):
  return x @ w


custom_vjp.defvjp(lambda w, x: (x @ w, None), lambda _, g: (g, g))


@jax.custom_jvp
def custom_jvp(w, x):
  return x @ w


custom_jvp.defjvp(lambda p, t: (custom_jvp(*p), t[1]))


def calls_vjp(w, x):
  return custom_vjp(w, x)  # here


def calls_jvp(w, x):
  return jnp.sin(custom_jvp(w, x))  # here


@pytest.mark.parametrize(
  ("fn", "reason"),
  [
    (ragged, "ragged_dot_general"),
    (strided, "subsample"),
  ],
)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_rewrite_refuses_products_that_no_rule_would_see(fn, reason, wrap):
  with pytest.raises(Unsupported) as refusal:
    rewrite_gemms(wrap(fn), SAME)(W, X)
  assert line_of(fn) in str(refusal.value) and reason in str(refusal.value)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_the_value_of_a_custom_jvp_is_rewritten_its_derivative_refused(wrap):
  fn = wrap(lambda w, x: calls_jvp(w, x).sum())
  doubled = rewrite_gemms(fn, lambda gemm, lhs, rhs, dot: 2 * dot(lhs, rhs))
  np.testing.assert_allclose(doubled(W, X), np.sin(2 * X @ W).sum(), rtol=1e-6)
  with pytest.raises(Unsupported, match=r"jax\.custom_jvp") as refusal:
    jax.grad(doubled)(W, X)
  assert line_of(calls_jvp) in str(refusal.value)


def wrong(shape, dtype="float32"):
  return lambda gemm, lhs, rhs, dot: jnp.ones(shape, dtype)


@pytest.mark.parametrize(
  ("rule", "given"),
  [
    (wrong((1, 4, 4), "bfloat16"), r"bfloat16\[1, 4, 4\]"),
    (wrong((4, 4)), r"float32\[4, 4\]"),
    (wrong((1, 3, 8)), r"float32\[1, 3, 8\]"),
    (lambda gemm, lhs, rhs, dot: None, "None"),
    (lambda gemm, lhs, rhs, dot: 0.0, "0.0"),
  ],
)
def test_a_rule_that_returns_another_type_is_named(rule, given):
  fn = lambda p, x: x @ p["w"]  # here
  with pytest.raises(TypeError, match=f"test_refusals.py:.*{given} for w; the product"):
    rewrite_gemms(fn, rule)({"w": W}, X)


def test_an_error_in_the_rule_is_the_rules_own():
  def rule(gemm, lhs, rhs, dot):
    raise KeyError(gemm.name)

  net = plain()
  with pytest.raises(KeyError, match="first/w"):
    jax.jit(rewrite_gemms(net.fn, rule))(net.params, jnp.ones((2, 4)))
