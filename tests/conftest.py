"""Eight host devices, and jax at its strictest: no silent promotion of any kind."""

import os

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# A first example compiles: hypothesis' deadline would time the compiler.
hypothesis.settings.register_profile("jaxcodesign", deadline=None, max_examples=30)
hypothesis.settings.load_profile("jaxcodesign")


@pytest.fixture(scope="module", autouse=True)
def _optimizer(request):
  """XLA's optimizer off in modules marked `unoptimized`, which compile half as long.

  What is claimed to the bit is shown under the optimizer that users have: such modules
  are not marked. What was compiled is forgotten only from one kind to the other.
  """
  off = request.node.get_closest_marker("unoptimized") is not None
  if jax.config.read("jax_disable_most_optimizations") != off:
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", off)
