"""Every encoding says the same number, and a budget keeps its largest terms."""

import functools

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.numerics.formats import terms

digits = jax.jit(terms.digits, static_argnums=1, static_argnames="encoding")
count = jax.jit(terms.count, static_argnums=1)
keep_largest = jax.jit(
  terms.keep_largest, static_argnames=("group", "bits", "encoding")
)
every_encoding = pytest.mark.parametrize("encoding", terms.ENCODINGS)


def integers(low, high):
  return np.arange(low, high, dtype=np.int32)


@functools.cache
def digits_of(encoding):
  """[511, 9] digits of -255 to 255."""
  return np.asarray(digits(integers(-255, 256), 8, encoding=encoding))


@every_encoding
@pytest.mark.parametrize("bits", [1, 2, 3, 7, 8, 12])
def test_digits_sum_to_the_number(encoding, bits):
  q = integers(-(2**bits) + 1, 2**bits)
  d = np.asarray(digits(q, bits, encoding=encoding))
  assert d.shape == (len(q), bits + 1) and set(np.unique(d)) <= {-1, 0, 1}
  np.testing.assert_array_equal((d * 2 ** np.arange(bits, -1, -1)).sum(-1), q)


@every_encoding
@pytest.mark.parametrize("bits", [1, 2, 5, 7, 8, 11])
def test_counts_are_those_of_the_digits_and_reach_the_stated_most(encoding, bits):
  q = integers(0, 2**bits)
  counts = np.asarray(count(q, encoding))
  d = np.asarray(digits(q, bits, encoding=encoding))
  np.testing.assert_array_equal(counts, np.abs(d).sum(-1))
  assert counts.max() == terms.most_terms(bits, encoding)


def test_naf_digits_do_not_touch_and_are_fewest():
  q = integers(0, 4096)
  d = np.abs(np.asarray(digits(q, 12, encoding="naf")))
  assert not (d[:, 1:] & d[:, :-1]).any()
  for other in terms.ENCODINGS:
    assert (count(q, "naf") <= count(q, other)).all()


def test_hese3_is_the_released_encoder():
  # 27 = 32 - 8 + 4 - 1, where 32 - 4 - 1 would do; 35 of 0..255 differ from NAF.
  np.testing.assert_array_equal(
    digits(jnp.int32(27), 5, encoding="hese3"), [1, 0, -1, 1, 0, -1]
  )
  q = integers(0, 256)
  hese, naf, binary = (
    np.asarray(count(q, encoding)) for encoding in ("hese3", "naf", "binary")
  )
  assert int((hese > naf).sum()) == 35 and (hese >= naf).all()
  assert int((hese[:128] != naf[:128]).sum()) == 13
  assert (hese <= binary).all()


def window_encoder(n):
  """The released encoder, bit by bit from the top, as its description reads."""
  bit = lambda i: n >> i & 1 if i >= 0 else 0
  value, found, i = 0, 0, n.bit_length()
  while i >= 0:
    window = (bit(i + 1), bit(i), bit(i - 1))
    step = {(0, 1, 0): 2**i, (0, 1, 1): 2 ** (i + 1), (1, 1, 0): -(2**i)}.get(window, 0)
    value, found = value + step, found + (step != 0)
    i -= 2 if window == (0, 1, 0) else 1
  return value, found


def test_hese3_matches_a_sequential_encoder():
  pairs = [window_encoder(n) for n in range(1024)]
  assert [v for v, _ in pairs] == list(range(1024))
  np.testing.assert_array_equal(
    count(integers(0, 1024), "hese3"), [c for _, c in pairs]
  )


@pytest.mark.parametrize(
  ("encoding", "uniform", "most"),
  [("binary", 3.50, 7), ("booth4", 3.00, 4), ("hese3", 2.88, 5), ("naf", 2.77, 4)],
)
def test_mean_terms_of_seven_bits(encoding, uniform, most):
  counts = np.asarray(count(integers(0, 128), encoding))
  assert round(counts.mean(), 2) == pytest.approx(uniform, abs=0.005)
  assert int(counts.max()) == most


def test_golden_vector_of_the_paper():
  q = jnp.array([64, 3, 14], jnp.int32)
  keep = lambda encoding: keep_largest(q, 4, group=3, bits=7, encoding=encoding)
  np.testing.assert_array_equal(keep("binary"), [64, 2, 12])
  np.testing.assert_array_equal(keep("naf"), [64, 4, 14])


def merged(group, budget, encoding):
  """Receding water: take the largest remaining term, the earlier value on ties."""
  bits = 8
  lanes = [
    [int(d) << (bits - i) for i, d in enumerate(digits_of(encoding)[q + 255]) if d]
    for q in group
  ]
  out = [0] * len(group)
  for _ in range(budget):
    heads = [abs(lane[0]) if lane else 0 for lane in lanes]
    best = int(np.argmax(heads))
    if not heads[best]:
      break
    out[best] += lanes[best].pop(0)
  return out


@every_encoding
@given(
  group=st.lists(st.integers(-255, 255), min_size=4, max_size=4),
  budget=st.integers(1, 12),
)
def test_keeping_is_the_papers_merge(encoding, group, budget):
  kept = keep_largest(
    np.array(group, np.int32), budget, group=4, bits=8, encoding=encoding
  )
  assert list(np.asarray(kept)) == merged(group, budget, encoding)


@pytest.mark.parametrize("encoding", ["binary", "naf", "hese3"])
@pytest.mark.parametrize("group", [1, 4, 8])
def test_keeping_twice_is_keeping_once(encoding, group):
  rng = np.random.default_rng(group)
  q = rng.integers(-255, 256, (500, 2 * group), np.int32)
  keep = lambda q, k: keep_largest(q, k, group=group, bits=8, encoding=encoding)
  for budget in range(1, 4 * group + 2, max(1, group // 2)):
    once = keep(q, budget)
    np.testing.assert_array_equal(keep(once, budget), once)


# Counts ride in fields of 4 bits, of 8 from groups of 16 and of 32 from 256; ranks are
# words up to 31 values.
SIZES = [(group, 20) for group in (1, 3, 15, 16, 31, 32, 260)]
SIZES += [(group, bits) for group in (15, 32) for bits in (3, 7, 8, 15)] + [(260, 7)]


@pytest.mark.parametrize(("group", "bits"), SIZES)
def test_groups_and_widths_of_any_size_keep_the_first_and_largest(group, bits):
  rng = np.random.default_rng(bits)
  q = rng.integers(-(2**bits) + 1, 2**bits, (3, 2 * group), dtype=np.int32)
  budget = max(1, group * bits // 6)
  padded = np.zeros(6 * 260, np.int32)  # one shape: one compilation
  padded[: q.size] = q.ravel()
  d = np.asarray(digits(padded, bits))[: q.size].reshape(3, 2, group, bits + 1)
  spent = np.abs(d).swapaxes(-1, -2).reshape(3, 2, -1).cumsum(-1)
  kept = (spent <= budget).reshape(3, 2, bits + 1, group).swapaxes(-1, -2) * d
  wanted = (kept * 2 ** np.arange(bits, -1, -1)).sum(-1).reshape(q.shape)
  found = keep_largest(q, budget, group=group, bits=bits)
  np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
  ("alpha", "group", "naf", "binary"),
  [(1, 8, 0.143, 0.204), (1.25, 8, 0.086, 0.139), (2, 8, 0.013, 0.038)],
)
def test_error_on_gaussian_weights(alpha, group, naf, binary):
  w = np.random.default_rng(0).normal(size=(4096, 64))
  q = np.round(w / np.abs(w).max() * 127).astype(np.int32)
  for encoding, wanted in (("naf", naf), ("binary", binary)):
    kept = keep_largest(q, int(alpha * group), group=group, bits=7, encoding=encoding)
    error = np.abs(q - kept).sum() / np.abs(q).sum()
    assert error == pytest.approx(wanted, rel=0.15)


def test_bad_input_is_refused():
  q = jnp.zeros((2, 12), jnp.int32)
  with pytest.raises(ValueError, match="group=8 does not divide"):
    terms.keep_largest(q, 4, group=8, bits=7)
  with pytest.raises(ValueError, match="budget=0 keeps no term"):
    terms.keep_largest(q, 0, group=4, bits=7)
  with pytest.raises(ValueError, match="none of binary"):
    terms.digits(q, 7, "gray")
  with pytest.raises(TypeError, match="float32"):
    terms.digits(jnp.zeros(3), 7)
  with pytest.raises(ValueError, match="bits=40"):
    terms.digits(q, 40)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_narrow_integers_have_the_same_terms(dtype):
  q = integers(-127, 128).reshape(5, 51)[:, :48]
  for encoding in terms.ENCODINGS:
    how = {"bits": 7, "encoding": encoding}
    np.testing.assert_array_equal(
      digits(q.astype(dtype), 7, encoding=encoding), digits(q, 7, encoding=encoding)
    )
    np.testing.assert_array_equal(
      keep_largest(q.astype(dtype), 9, group=8, **how),
      keep_largest(q, 9, group=8, **how),
    )


@pytest.mark.parametrize("group", [15, 16, 255, 256])
def test_a_group_that_shares_every_term_is_counted_in_full(group):
  q = np.full((1, group), 5, np.int32)
  keep = lambda budget: keep_largest(q, budget, group=group, bits=7)
  np.testing.assert_array_equal(keep(2 * group), q)
  one = np.where(np.arange(group) < group - 1, 4, 0)
  np.testing.assert_array_equal(keep(group - 1)[0], one)
