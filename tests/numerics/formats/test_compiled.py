"""A format called outside of jit is one program, and inside adds none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import tree
from jaxcodesign.numerics.formats import BlockFloat, Fixed


def test_a_call_outside_of_jit_is_traced_once_and_inside_adds_no_call():
  traces = []

  @tree.pytree
  class Seen(Fixed):
    def values(self, elements, scale):
      traces.append(1)
      return super().values(elements, scale)

  x = jnp.ones((2, 16))
  fmt = Seen(5)
  for _ in range(3):
    fmt.quantize(x)
  assert len(traces) == 1
  # A newer jax keeps its name in the jaxpr; what is compiled has no call in either.
  inside = jax.jit(lambda x: Fixed(5).quantize(x) + 1).lower(x).compile()
  assert " call(" not in inside.as_text()


def test_a_mantissa_that_is_an_array_packs():
  x = jax.random.normal(jax.random.key(0), (2, 16))
  packed = BlockFloat(jnp.int32(3)).pack(x)
  np.testing.assert_array_equal(BlockFloat(3).unpack(packed), BlockFloat(3).quantize(x))


def test_what_is_no_array_is_refused_in_the_formats_words():
  with pytest.raises(TypeError, match="floating-point arrays; x is float"):
    Fixed().quantize(1.5)  # pyright: ignore[reportArgumentType]
  with pytest.raises(TypeError, match="key=7 is no PRNG key"):
    Fixed().quantize(jnp.ones(3), 7)  # pyright: ignore[reportArgumentType]
