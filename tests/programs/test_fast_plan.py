"""What FAST's precisions cost in passes of the fMAC."""

import jax.numpy as jnp
import numpy as np

from jaxcodesign.programs import fast_plan
from jaxcodesign.programs.fast_plan import Place, Plan
from jaxcodesign.programs.workload import Gemm


def test_a_started_chunk_is_a_pass():
  for left, right, wanted in ((2, 2, 1), (2, 4, 2), (4, 4, 4), (3, 2, 2), (3, 3, 4)):
    assert int(fast_plan.passes(jnp.int32(left), jnp.int32(right))) == wanted


def test_the_share_is_of_products_that_ran():
  """A first layer without an input gradient is not counted as one that is saved."""
  places = [
    Place(Gemm("", name, 1, 4, 8, 2, count=1), i, (), 2) for i, name in enumerate("ab")
  ]
  plan = Plan(tuple(places))
  two = np.array([[2, 2, 2, 1, 0, 1], [2, 2, 2, 1, 1, 1]], "f4")
  assert float(plan.share(jnp.asarray(two))) == 0.25
  four = np.array([[4, 4, 4, 4, 0, 4], [4, 4, 4, 4, 4, 4]], "f4")
  assert float(plan.share(jnp.asarray(four))) == 1.0
