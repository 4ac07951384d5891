"""The FAST array's three modes against the fMAC's product and their closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.simulators import fmac, fmac_array, folding
from jaxcodesign.hardware.simulators.fmac_array import Bits
from jaxcodesign.numerics.formats import BlockFloat

CASES = [
  # m, k, n, rows, cols, group
  ((5, 24, 8), (3, 4, 4), Bits(4, 2, 4)),
  ((3, 7, 9), (2, 4, 4), Bits(2, 4, 3)),
  ((1, 1, 1), (1, 2, 2), Bits(2, 2, 2)),
]


def tensors(m, k, n, seed=0):
  """Activations, weight and gradient of mixed magnitudes."""
  rng = np.random.default_rng(seed)
  make = lambda *s: jnp.asarray(rng.normal(size=s) * np.exp(rng.normal(size=s)), "f4")
  return make(m, k), make(n, k), make(m, n)


@partial(jax.jit, static_argnames=("bits", "group"))
def rounded(left, right, bits, group):
  """Operands in block floating point along their last axis, and their fMAC product."""
  values = [BlockFloat(b, group).quantize(x) for x, b in zip((left, right), bits)]
  x, y = (fmac_array.groups(x, b, group) for x, b in zip((left, right), bits))
  how = {"left_bits": bits[0], "right_bits": bits[1]}
  return values, fmac.simulate(*x, *y, **how)[0]


def check_product(found, left, right, bits, group):
  """Bit for bit that of `fmac.simulate`, and nearly that of numpy."""
  (x, y), exact = rounded(left, right, bits, group)
  np.testing.assert_array_equal(found, exact)
  wanted = np.asarray(x, np.float64) @ np.asarray(y, np.float64).T
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "array", "bits"), CASES)
def test_three_modes_multiply_groups_along_their_own_contraction(size, array, bits):
  (rows, cols, group), (a, w, g) = array, tensors(*size)
  how = {"bits": bits, "rows": rows, "cols": cols, "group": group}
  out, dx, trace = fmac_array.weight_stationary(a, w, g, **how)
  dw, busy = fmac_array.output_stationary(a, g, **how)
  check_product(out, a, w, (bits.activation, bits.weight), group)
  check_product(dx, g, w.T, (bits.gradient, bits.weight), group)
  check_product(dw, g.T, a.T, (bits.gradient, bits.activation), group)

  (m, k, n), p = size, fmac.passes
  cycles = lambda mode, left, right, **more: fmac_array.cycles(
    mode, m, k, n, passes=p(left, right), rows=rows, cols=cols, group=group, **more
  )
  forward = cycles("forward", bits.activation, bits.weight)
  back = cycles("input_gradient", bits.gradient, bits.weight, loaded=True)
  assert trace.weight_reads.size + trace.forward.size == forward
  assert trace.input_gradient.size == back
  assert trace.cycles == forward + back
  assert busy.size == cycles("weight_gradient", bits.gradient, bits.activation)
  # No transposed copy: every value of the weight enters once for two products.
  assert int(trace.weight_reads.sum()) == n * k


@pytest.mark.parametrize("accounting", ["rtl", "scalesim"])
@pytest.mark.parametrize(("rows", "cols"), [(64, 256), (8, 16)])
def test_cycles_are_those_of_the_folds_in_the_library(rows, cols, accounting):
  """Forward and weight gradient are ws and os with a contraction in groups."""
  lead = partial(fmac_array.overhead, rows=rows, cols=cols, accounting=accounting)
  assert lead("forward") == folding.fill("ws", accounting, rows, cols)
  assert lead("weight_gradient") == folding.fill("os", accounting, rows, cols)
  # The same array turned, but that W comes in as for the forward mode.
  turned = folding.fill("ws", accounting, cols, rows) - cols
  assert lead("input_gradient", loaded=True) == turned
  assert lead("input_gradient") == turned + rows


def test_cycles_by_hand():
  # 2 folds of 64 groups of 16, 3 of 256 outputs, by hand.
  size = {"passes": 4, "rows": 64, "cols": 256}
  assert fmac_array.cycles("forward", 100, 2000, 600, **size) == 6 * (
    64 + 400 + 128 + 254
  )


def test_busy_cells_multiply_what_is_there():
  ones = jnp.ones((3, 8)), jnp.ones((4, 8)), jnp.ones((3, 4))
  how = {"bits": Bits(2, 2, 2), "rows": 2, "cols": 4, "group": 4}
  _, _, trace = fmac_array.weight_stationary(*ones, **how)
  # Each of 2 x 4 cells meets each of the 3 rows once in either mode.
  assert int(trace.forward.sum()) == int(trace.input_gradient.sum()) == 3 * 2 * 4
  assert trace.forward[0, -2] > 0 and trace.input_gradient[0, -2] > 0  # tight
  _, busy = fmac_array.output_stationary(ones[0], ones[2], **how)
  assert int(busy.sum()) == 4 * 8  # one group of m, a pass for each output


def test_what_cannot_run_is_refused():
  a, w, g = tensors(2, 8, 4)
  how = {"bits": Bits(2, 2, 2), "rows": 2, "group": 4}
  with pytest.raises(ValueError, match="cols=6 hold no whole groups of group=4"):
    fmac_array.weight_stationary(a, w, g, cols=6, **how)
  with pytest.raises(ValueError, match=r"a \(2, 8\), w \(8, 4\)"):
    fmac_array.weight_stationary(a, w.T, g, cols=4, **how)
  with pytest.raises(ValueError, match=r"a \(2, 8\) and g \(4, 2\)"):
    fmac_array.output_stationary(a, g.T, cols=4, **how)
  with pytest.raises(ValueError, match="mode='backward' is none of forward"):
    fmac_array.cycles("backward", 1, 1, 1, passes=1, rows=1, cols=1)  # type: ignore
  with pytest.raises(ValueError, match="passes=0: a size is at least 1"):
    fmac_array.cycles("forward", 1, 1, 1, passes=0, rows=1, cols=1)


def test_noise_of_the_gradient_may_come_before_the_array():
  """A gradient rounded stochastically is on the grid, and stays."""
  g = tensors(8, 4, 4)[2]
  noisy = jax.jit(BlockFloat(2, 4).quantize)(g, jax.random.key(0))
  assert not np.array_equal(noisy, BlockFloat(2, 4).quantize(g))
  again = fmac_array.groups(noisy, 2, 4)
  values = np.ldexp(np.asarray(again.mantissa, "f4")[:, 0], np.asarray(again.exponent))
  np.testing.assert_array_equal(values, noisy)
