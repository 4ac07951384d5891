"""An array that is in memory on the CPU before it is read, and itself everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.programs.materialize import materialized, materialized_across
from jaxcodesign.runs.preview import collectives

X = jax.random.normal(jax.random.key(0), (32, 48))


@pytest.mark.parametrize("same", [materialized, materialized_across])
def test_it_is_the_identity_under_every_transformation(same):
  np.testing.assert_array_equal(same(X), X)
  np.testing.assert_array_equal(jax.jit(jax.vmap(same))(X[None]), X[None])
  slope = jax.grad(lambda x: jnp.sum(jnp.sin(same(x))))
  np.testing.assert_array_equal(jax.jit(slope)(X), jax.jit(jnp.cos)(X))
  tangent = jax.jvp(same, (X,), (2 * X,))[1]
  np.testing.assert_array_equal(tangent, 2 * X)


def read_twice(same):
  """Two readers of something that a compiler may take for cheap."""

  def read(x):
    made = same(jnp.floor(x) * x)
    return jnp.sum(made.reshape(-1, 16, 48), 1), made * 3

  return read


def test_on_the_cpu_it_is_computed_once_and_read_from_memory():
  text = jax.jit(read_twice(materialized)).lower(X).compile().as_text()
  assert text.count(" call(") == 1
  assert text.count("floor(") == 1
  # Where this fails, the compiler has learnt it: the module may go.
  fused = jax.jit(read_twice(lambda x: x)).lower(X).compile().as_text()
  assert fused.count("floor(") == 2


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_elsewhere_nothing_is_done(platform):
  lowered = jax.jit(materialized).trace(X).lower(lowering_platforms=(platform,))
  assert "inlineable" not in lowered.as_text()


def test_it_lies_as_its_operand_does_without_a_collective():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.NamedSharding(mesh, jax.P("data"))
  made = jax.jit(read_twice(materialized), in_shardings=rows, out_shardings=rows)
  text = made.lower(jnp.ones((128, 48))).compile().as_text()
  assert not collectives(text) and " call(" in text
