"""Learned steps and limits come back from wherever an optimizer threw them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.numerics.formats.learned import LEAST, LSQ, PACT

X = jax.random.normal(jax.random.key(0), (4096,))
KINDS = {"LSQ": LSQ(0.1, 4), "PACT": PACT(1.0, 4)}
# As an optimizer leaves them: a constructor would refuse the first ones.
thrown = lambda kind, value: jax.tree.map(lambda _: jnp.float32(value), KINDS[kind])


@jax.jit
def seen(fmt, x):
  total = lambda fmt, x: jnp.sum(fmt.quantize(x))
  return fmt.quantize(x), *jax.grad(total, (0, 1))(fmt, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [-0.05, 0.0, 1e-45, 6e-20, 1e-10, 0.1, 1e20, 3e38])
def test_values_and_gradients_are_finite_for_every_step(kind, value):
  for size in (0.1, 2.0, 1e30):
    for leaf in jax.tree.leaves(seen(thrown(kind, value), size * X)):
      assert np.isfinite(leaf).all()


@pytest.mark.parametrize("value", [-0.05, 0.0, 1e-30])
def test_below_the_least_step_the_gradient_is_that_at_it(value):
  _, by_step, _ = seen(thrown("LSQ", value), X)
  ends = np.where(np.asarray(X) > 0, 7, -8).sum() / np.sqrt(X.size * 7)
  assert float(by_step.step) == pytest.approx(ends, rel=1e-5)
  assert float(seen(thrown("LSQ", LEAST), X)[1].step) == float(by_step.step)
  _, by_limit, _ = seen(thrown("PACT", value), X)
  assert float(by_limit.limit) == np.sum(np.asarray(X) > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_descent_that_overshot_comes_back(kind):
  error = lambda fmt: jnp.mean((fmt.quantize(X) - X) ** 2)
  down = lambda fmt, _: (
    jax.tree.map(lambda p, g: p - 2 * g, fmt, jax.grad(error)(fmt)),
    0,
  )
  run = jax.jit(lambda fmt: jax.lax.scan(down, fmt, None, 2000)[0])
  (found,) = jax.tree.leaves(run(thrown(kind, -0.05)))
  if kind == "LSQ":
    (wanted,) = jax.tree.leaves(run(thrown(kind, 0.1)))
    assert 0.25 < found < 0.4 and found == pytest.approx(float(wanted), rel=1e-3)
  else:
    assert found > 3  # half of the error is of values below zero, which no limit mends
