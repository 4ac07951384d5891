"""Eight host devices, and jax at its strictest: no silent promotion of any kind."""

import os

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# A first example compiles: hypothesis' deadline would time the compiler.
hypothesis.settings.register_profile("jaxcodesign", deadline=None, max_examples=30)
hypothesis.settings.load_profile("jaxcodesign")
