"""Counted multiplications are executed multiplications: a slow interpreter agrees."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import trace
from tests.programs import counting
from tests.programs.operations import SETTINGS, convolutions, dots, integers


def check(fn, *args):
  """Values and multiplications of every product of `fn` are those really executed."""
  values, executed = counting.execute(fn, *args)
  for value, expected in zip(values, jax.tree.leaves(jax.jit(fn)(*args))):
    np.testing.assert_array_equal(value, expected)
  work = trace(fn, branches="max")(*args)
  if all(len(ways) == 1 for ways in executed):
    assert work.macs == sum(count for (count,) in map(dict.values, executed))
  else:
    for gemm, ways in zip(work.gemms, executed, strict=True):
      kinds = [gemm.kind] if gemm.rhs else ways
      assert gemm.macs == ways[gemm.kind] == min(ways[kind] for kind in kinds)
      assert gemm.kind == next(iter(ways)) or not gemm.rhs
  return work


@SETTINGS
@hypothesis.given(dots())
def test_any_dot(case):
  numbers, shapes, (batch, m, k, n) = case
  fn = lambda w, x: jax.lax.dot_general(x, w, numbers)
  x, w = (integers(s, i) for i, s in enumerate(shapes))
  (gemm,) = check(fn, w, x).gemms
  assert (gemm.batch, gemm.m, gemm.k, gemm.n) == (batch, m, k, n)
  assert (gemm.lhs, gemm.rhs) == ("", "params")


@SETTINGS
@hypothesis.given(convolutions())
def test_any_convolution(case):
  fn, w, x = case
  (gemm,) = check(fn, w, x).gemms
  assert gemm.rhs == "params"
  assert gemm.kind in ("conv", "transposed_conv")
  assert gemm.batch * gemm.n * gemm.k == w.size  # the weight is its right operand
  assert gemm.lhs_elements == x.size
  assert gemm.out_elements == jax.eval_shape(fn, w, x).size


@SETTINGS
@hypothesis.given(convolutions(), st.integers(0, 1))
def test_gradients_of_any_convolution(case, argument):
  fn, w, x = case
  loss = lambda w, x: jnp.sum(fn(w, x) ** 2)
  check(jax.grad(loss, argument), w, x)


def test_groups_are_not_forgotten():
  conv = lambda groups: lambda w, x: jax.lax.conv_general_dilated(
    x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )  # fmt: skip
  x = integers((1, 4, 4, 6), 0)
  for groups in (1, 2, 3, 6):
    w = integers((3, 3, 6 // groups, 6), 1)
    (gemm,) = check(conv(groups), w, x).gemms
    assert (gemm.batch, gemm.k, gemm.n) == (groups, 9 * 6 // groups, 6 // groups)
    assert gemm.macs == 16 * 9 * 36 // groups


@pytest.mark.parametrize("size", [0, 1])
def test_empty_and_single_contractions(size):
  work = check(lambda w, x: x @ w, integers((size, 3), 0), integers((2, size), 1))
  assert work.gemms[0].k == size


@st.composite
def programs(draw, depth=2):
  """A function of ([4, 4] weight, [4, 4] data): products inside transformations."""
  if depth == 0:
    return draw(st.sampled_from([
      lambda w, x: x @ w,
      lambda w, x: w.T @ x,
      lambda w, x: jnp.einsum("ij,ij->i", x, w)[:, None] * x,
      lambda w, x: jnp.maximum(x, 0) - w,
      lambda w, x: jax.lax.conv_general_dilated(
        x[None], w[:3, None, :], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=4,
      )[0],
    ]))  # fmt: skip
  f, g = draw(programs(depth - 1)), draw(programs(depth - 1))
  length = draw(st.integers(1, 3))
  small = lambda x: jnp.clip(x, -4, 4)  # integers stay exact

  def custom(w, x):
    h = jax.custom_vjp(f)
    h.defvjp(lambda w, x: (f(w, x), None), lambda _, g: (g, g))
    return h(w, x)

  def scan(w, x):
    body = lambda c, row: (small(f(w, c)), row + 1)
    out, rows = jax.lax.scan(body, x, x, length=4, reverse=length > 1)
    return out + rows

  return draw(st.sampled_from([
    lambda w, x: g(w, small(f(w, x))),
    lambda w, x: jax.jit(f)(w, x) + jax.jit(f)(w, x),
    lambda w, x: jax.checkpoint(f)(w, x) + g(w, x),
    lambda w, x: jax.vmap(f, (None, 0))(w, jnp.stack([x, 2 * x])).sum(0),
    lambda w, x: jax.lax.cond(x[0, 0] > 0, f, g, w, x),
    lambda w, x: jax.lax.fori_loop(0, length, lambda i, c: small(g(w, c)), x),
    scan,
    custom,
  ]))  # fmt: skip


@SETTINGS
@hypothesis.given(programs())
def test_any_composition(fn):
  check(fn, integers((4, 4), 0), integers((4, 4), 1))
