"""The cycle-level array as users compile it: its memory, and a real layer."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign.hardware.simulators import systolic
from tests.hardware.simulators.test_systolic import DATAFLOWS, exact, integers


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
