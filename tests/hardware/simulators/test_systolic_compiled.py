"""The cycle-level array as users compile it: floats, memory, a real layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.simulators import systolic
from tests.hardware.simulators.test_systolic import DATAFLOWS, exact, integers


def plain(a, b):
  return jnp.matmul(a, b.T, preferred_element_type=jnp.float32)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_floats_and_their_gradients(dataflow):
  rng = np.random.default_rng(2)
  a, b = (jnp.asarray(rng.normal(size=(9, 22)), jnp.float32) for _ in range(2))

  options = {"rows": 5, "cols": 7, "dataflow": dataflow}

  def run(a, b):
    product, _ = systolic.simulate(a, b, **options, toggles=dataflow == "os")
    return jnp.sum(jnp.sin(product)), product

  def wanted(a, b):
    return jnp.sum(jnp.sin(plain(a, b))), plain(a, b)

  pull = lambda f: jax.jit(jax.grad(f, argnums=(0, 1), has_aux=True))(a, b)
  (slopes, product), (expected, _) = pull(run), pull(wanted)
  np.testing.assert_allclose(product, plain(a, b), rtol=2e-5, atol=2e-5)
  for got, one in zip(slopes, expected):
    np.testing.assert_allclose(got, one, rtol=2e-4, atol=2e-4)
  narrow = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
  product, _ = systolic.simulate(*narrow, **options, toggles=dataflow == "ws")
  np.testing.assert_allclose(product, plain(*narrow), rtol=2e-5, atol=2e-5)


def test_gradient_of_a_long_simulation_keeps_few_states():
  a, b = jnp.ones((8, 2048)), jnp.ones((8, 2048))

  def loss(a, b):
    options = {"rows": 8, "cols": 8, "dataflow": "os", "toggles": False}
    return jnp.sum(systolic.simulate(a, b, **options)[0])

  compiled = jax.jit(jax.grad(loss)).lower(a, b).compile()
  every_state = 2048 * 8 * 8 * 4 * 2
  assert compiled.memory_analysis().temp_size_in_bytes < every_state


def test_a_real_layer_tile_by_tile():
  # ResNet-18 Conv5_2: 49 x 512 x 4608 on 32 x 32.
  rng = np.random.default_rng(4)
  a, b = integers(rng, (49, 4608)), integers(rng, (512, 4608))
  for dataflow in DATAFLOWS:
    product, trace = systolic.simulate(
      a, b, rows=32, cols=32, dataflow=dataflow, toggles=False
    )
    np.testing.assert_array_equal(product, exact(a, b))
    assert trace.cycles == systolic.cycles(49, 4608, 512, 32, 32, dataflow)
