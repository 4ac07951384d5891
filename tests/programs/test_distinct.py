"""Copies that a broadcast makes are no data: distinct values of operands, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.machines import chips
from jaxcodesign.hardware.pricing.roofline import roofline
from jaxcodesign.programs.workload import trace

S = jax.ShapeDtypeStruct
HEADS, SHARED, TOKENS, WIDTH = 8, 2, 6, 4


def grouped(repeat):
  """Scores of eight heads of queries on two of keys."""

  def scores(_, q, k):
    return jnp.einsum("thd,shd->hts", q, repeat(k))

  return scores


def by_broadcast(k):
  shape = (TOKENS, SHARED, HEADS // SHARED, WIDTH)
  return jnp.broadcast_to(k[:, :, None], shape).reshape(TOKENS, HEADS, WIDTH)


@pytest.mark.parametrize(
  "repeat",
  [
    lambda k: jnp.repeat(k, HEADS // SHARED, axis=1),
    by_broadcast,
    jax.jit(lambda k: jnp.tanh(by_broadcast(k)) + 1),
    jax.checkpoint(lambda k: -by_broadcast(k).astype(jnp.bfloat16).astype("f4")),
  ],
  ids=["repeat", "broadcast", "elementwise, jit", "checkpoint"],
)
def test_keys_of_grouped_attention_count_once(repeat):
  q, k = S((TOKENS, HEADS, WIDTH), "f4"), S((TOKENS, SHARED, WIDTH), "f4")
  (g,) = trace(grouped(repeat))({}, q, k).gemms
  assert g.macs == HEADS * TOKENS * TOKENS * WIDTH
  assert {g.lhs_elements, g.rhs_elements} == {
    TOKENS * HEADS * WIDTH,
    TOKENS * SHARED * WIDTH,
  }


def elements(fn, *args):
  (g,) = trace(lambda _, *args: fn(*args))({}, *args).gemms
  return g.lhs_elements, g.rhs_elements


def test_bounds_are_those_of_what_was_read():
  row, column, square = S((1, 64), "f4"), S((64, 1), "f4"), S((64, 64), "f4")
  wide = lambda x: jnp.broadcast_to(x, (64, 64))
  count = lambda fn, *args: elements(lambda *a: fn(*a) @ jnp.eye(64), *args)[0]
  assert count(wide, row) == 64
  assert count(lambda x: jnp.ones((64, 64)) * 3, row) == 1
  # Pairs of a row's and a column's values, and no more than there are places.
  assert count(lambda x, y: wide(x) + wide(y), row, column) == 64 * 64
  assert count(lambda x: jnp.concatenate([wide(x), wide(x)])[:64], row) == 128
  # A sum along copies, or a sort, is taken for data.
  assert count(lambda x: jnp.cumsum(wide(x), 0), row) == 64 * 64
  assert count(lambda x, y: jnp.where(y > 0, wide(x), 0), row, square) == 64 * 64


def test_a_scan_counts_slices_and_a_loop_its_uses():
  xs = S((5, 16, 16), "f4")

  def body(carry, x):
    return carry @ x, None

  run = lambda _, c, xs: jax.lax.scan(body, c, jnp.broadcast_to(xs[:1], (5, 16, 16)))
  (g,) = trace(run)({}, S((16, 16), "f4"), xs).gemms
  assert g.count == 5 and g.rhs_elements == 5 * 256 and g.lhs_elements == 256
  # A weight keeps the size of its leaf, however often it is laid out.
  layer = lambda w, x: x @ jnp.broadcast_to(w, (16, 16))
  (g,) = trace(layer)(S((1, 16), "f4"), S((4, 16), "f4")).gemms
  assert (g.rhs, g.rhs_elements, g.leaf_elements) == ("params", 16, 16)


def test_the_roofline_moves_what_grouped_attention_moves():
  q, k = S((TOKENS, HEADS, WIDTH), "f4"), S((TOKENS, SHARED, WIDTH), "f4")
  bound = roofline(trace(grouped(by_broadcast))({}, q, k), chips.h100_sxm())
  values = TOKENS * WIDTH * (HEADS + SHARED) + HEADS * TOKENS * TOKENS
  np.testing.assert_allclose(bound.bytes_moved.sum(), 2 * values)
