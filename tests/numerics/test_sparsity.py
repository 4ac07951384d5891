"""N of M: published masks, exact counts, ties to the lower index."""

import pathlib

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.numerics.sparsity import NOfM

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "reference/golden_formats.npz")
PUBLISHED = sorted(
  k for k in GOLDEN if k.startswith("nm_") and "_in" not in k and "_weight" not in k
)
mask = jax.jit(lambda pattern, x: pattern.mask(jnp.abs(x)))


def unpacked(key):
  return np.unpackbits(GOLDEN[key])[: 32 * 64].reshape(32, 64) > 0


@pytest.mark.parametrize("key", PUBLISHED)
def test_published_masks(key):
  tool, kind, *where, lab = key.split("/")
  n, m = map(int, kind.split("_"))
  axis = 0 if where and where[0] in ("axis0", "C") else -1
  x = GOLDEN[f"nm_in/{lab}"]
  found, wanted = np.array(mask(NOfM(n, m, axis), x)), unpacked(key)
  split = lambda a: np.moveaxis(a, axis, -1).reshape(-1, m)
  if lab == "ties" and tool != "nm_qwix":
    # These keep other ones of equal magnitudes: as many, and as large.
    kept = lambda a: np.sort(np.where(split(a), np.abs(split(x)), 0))
    np.testing.assert_array_equal(kept(found), kept(wanted))
    return
  np.testing.assert_array_equal(found, wanted)


@settings(max_examples=15)
@given(st.sampled_from([(1, 4), (2, 4), (4, 8), (0, 2), (3, 3)]), st.integers(-3, 2),
       st.integers(0, 99))  # fmt: skip
def test_exactly_n_of_the_largest_and_first(nm, axis, seed):
  n, m = nm
  x = np.random.default_rng(seed).integers(-3, 4, (2 * m, m, 3 * m)).astype(np.float32)
  x[0, 0, 0] = np.nan
  found = np.moveaxis(np.array(mask(NOfM(n, m, axis), x)), axis, -1).reshape(-1, m)
  scores = np.abs(np.moveaxis(x, axis, -1).reshape(-1, m))
  scores = np.where(np.isnan(scores), -np.inf, scores)
  order = np.argsort(-scores, axis=-1, kind="stable")[:, :n]
  wanted = np.zeros_like(found)
  np.put_along_axis(wanted, order, True, axis=-1)
  np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
  ("use", "error", "message"),
  [
    (lambda: NOfM(5, 4), ValueError, "n=5 of m=4"),
    (lambda: NOfM().mask(jnp.ones((3, 6))), ValueError, "m=4 does not divide axis -1"),
    (lambda: NOfM(axis=2).mask(jnp.ones((4, 4))), ValueError, "axis=2 is out of range"),
    (lambda: NOfM().mask(jnp.ones(4, jnp.complex64)), TypeError, "complex64; pass"),
  ],
)
def test_bad_input(use, error, message):
  with pytest.raises(error, match=message):
    use()
