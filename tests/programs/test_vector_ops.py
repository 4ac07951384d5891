"""Work between the products is counted: elements and bytes, by hand."""

import jax
import jax.numpy as jnp
import pytest

from jaxcodesign import trace


def array(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def ops(fn, *args):
  """(elements, bytes, count) of each kind of operation; each has one size here."""
  work = trace(fn)(*args)
  found = {v.op: (v.elements, v.bytes, v.count) for v in work.vector_ops}
  assert len(found) == len(work.vector_ops) and not work.gemms
  return found


def test_softmax():
  x = array(6, 10)
  fn = lambda x: jnp.exp(x - x.max(1, keepdims=True))
  softmax = lambda x: fn(x) / jnp.sum(fn(x), axis=1, keepdims=True)
  assert ops(softmax, x) == {
    "reduce_max": (60, 4 * (60 + 6), 2),
    "sub": (60, 4 * (60 + 6 + 60), 2),
    "exp": (60, 4 * 120, 2),
    "reduce_sum": (60, 4 * (60 + 6), 1),
    "div": (60, 4 * (60 + 6 + 60), 1),
  }
  library = ops(jax.nn.softmax, x)
  assert library["exp"] == (60, 480, 1) and library["div"] == (60, 504, 1)


def test_layer_normalization():
  def norm(p, x):
    mean = jnp.sum(x, axis=-1, keepdims=True) * 0.1
    centered = x - mean
    variance = jnp.sum(centered * centered, axis=-1, keepdims=True) * 0.1
    return centered * jax.lax.rsqrt(variance + 1e-5) * p[None]

  work = trace(norm)(array(10), array(6, 10))
  found = {}
  for v in work.vector_ops:
    found.setdefault(v.op, []).append((v.elements, v.bytes, v.count))
  column, matrix = (6, 4 * (6 + 1 + 6), 2), 4 * (60 + 6 + 60)
  assert found == {
    "reduce_sum": [(60, 4 * 66, 2)],
    # mean and variance; the square; by the deviation; by the scale.
    "mul": [column, (60, 4 * 180, 1), (60, matrix, 1), (60, 4 * (60 + 10 + 60), 1)],
    "sub": [(60, matrix, 1)],
    "add": [(6, 4 * (6 + 1 + 6), 1)],
    "rsqrt": [(6, 4 * 12, 1)],
  }


def test_relu_of_half_the_bytes():
  assert ops(lambda x: jnp.maximum(x, 0), array(5, dtype=jnp.bfloat16)) == {
    "max": (5, 2 * 11, 1)
  }


@pytest.mark.parametrize(
  "view",
  [
    lambda x: x.reshape(8),
    lambda x: x[None],
    lambda x: jnp.broadcast_to(x, (3, 2, 4)),
    jax.lax.stop_gradient,
    lambda x: jnp.squeeze(x[:, None], 1),
    lambda x: jnp.array(x),
  ],
)
def test_views_cost_nothing(view):
  assert ops(view, array(2, 4)) == {}


def test_a_lookup_reads_its_rows_not_the_table():
  fn = lambda table, ids: jnp.take(table, ids, axis=0, mode="clip")
  gather = ops(fn, array(50000, 8), array(3, dtype=jnp.int32))["gather"]
  assert gather == (24, 4 * (24 + 3 + 24), 1)


def test_a_slice_reads_its_part():
  assert ops(lambda x: x[2:4], array(1000, 8)) == {"slice": (16, 4 * 32, 1)}


def test_an_update_writes_its_part():
  fn = lambda cache, row: jax.lax.dynamic_update_slice(cache, row, (3, 0))
  (update,) = ops(fn, array(1000, 8), array(1, 8)).values()
  assert update == (8, 4 * (8 + 1 + 1 + 8), 1)


def test_the_gradient_of_a_lookup_adds_its_rows():
  loss = lambda table, ids: jnp.sum(table.at[ids].get(mode="clip") ** 2)
  work = trace(jax.grad(loss))(array(50000, 8), array(3, dtype=jnp.int32))
  (scatter,) = [v for v in work.vector_ops if v.op.startswith("scatter")]
  assert (scatter.elements, scatter.bytes) == (24, 4 * (3 + 3 * 24))


def test_sorting_reducing_and_scanning_are_vector_work():
  def fn(x):
    y = jax.lax.reduce(x, 0.0, jax.lax.add, (0,)) + jnp.cumsum(x, axis=0)[0]
    return jnp.sort(y) + jax.lax.reduce_window(y, 0.0, jax.lax.add, (2,), (1,), "SAME")

  work = trace(fn)(array(4, 6))
  assert {"sort", "reduce_sum"} <= {v.op for v in work.vector_ops}


def test_random_numbers_are_vector_work():
  work = trace(lambda key: jax.random.normal(key, (64,)))(jax.random.key(0))
  assert not work.gemms and max(v.elements for v in work.vector_ops) >= 64


def test_equal_work_is_merged_and_loops_multiply():
  def fn(x):
    x = jax.lax.fori_loop(0, 5, lambda i, x: jnp.sin(x), x)
    return jnp.sin(jnp.sin(x))

  assert ops(fn, array(7))["sin"] == (7, 56, 7)
