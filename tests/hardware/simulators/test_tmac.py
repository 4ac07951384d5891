"""tMAC, its serial encoder and comparator against numerics and numpy; refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.simulators import fmac, tmac
from jaxcodesign.numerics.formats import terms

# Integers, in the operations of integers.

keep_largest = jax.jit(
  terms.keep_largest, static_argnames=("group", "bits", "encoding")
)
count_terms = jax.jit(terms.count, static_argnames="encoding")


@pytest.mark.parametrize("encoding", ["hese3", "naf", "binary"])
@pytest.mark.parametrize(("group", "budget", "data_terms"), [(8, 12, 3), (4, 3, 1)])
def test_tmac_is_the_product_of_what_the_budget_leaves(
  group, budget, data_terms, encoding
):
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 256, (5, 24)), rng.integers(-128, 129, (7, 24))
  product, trace = tmac.simulate(
    jnp.asarray(a),
    jnp.asarray(b),
    group=group,
    budget=budget,
    data_terms=data_terms,
    encoding=encoding,
  )
  keep = lambda q, k, g: np.asarray(
    keep_largest(jnp.asarray(q), k, group=g, bits=8, encoding=encoding)
  )
  left, right = keep(a, data_terms, 1), keep(b, budget, group)
  np.testing.assert_array_equal(product, left @ right.T)
  assert trace.cycles == 24 // group * budget * data_terms
  count = lambda q: np.asarray(count_terms(jnp.asarray(q), encoding))
  if encoding == "binary":  # what is left keeps its terms
    assert int(trace.busy.sum()) == (count(left) @ count(right).T).sum()
  assert 0 < int(trace.largest) <= group * data_terms


def test_tmac_with_room_for_all_terms_is_exact():
  rng = np.random.default_rng(1)
  a, b = rng.integers(-128, 128, (3, 16)), rng.integers(-128, 128, (4, 16))
  product, _ = tmac.simulate(
    jnp.asarray(a), jnp.asarray(b), group=16, budget=200, data_terms=9
  )
  np.testing.assert_array_equal(product, a @ b.T)


def test_serial_encoder_makes_the_digits_of_hese():
  every = jnp.arange(256)
  for bits in (8, 10):
    expected = jax.jit(partial(terms.digits, bits=bits, encoding="hese3"))(every)
    np.testing.assert_array_equal(tmac.encode(every, bits=bits), expected)


def test_comparator_keeps_what_term_quantization_keeps(monkeypatch):
  rng = np.random.default_rng(2)
  q = jnp.asarray(rng.integers(0, 256, (50, 8)))
  digits = tmac.encode(q, bits=8)
  places = 1 << np.arange(8, -1, -1)
  traced, scan = [], jax.lax.associative_scan
  monkeypatch.setattr(
    jax.lax, "associative_scan", lambda *a, **k: traced.append(1) or scan(*a, **k)
  )
  for budget in (1, 5, 12, 40):
    kept = tmac.compare(digits, budget)
    expected = keep_largest(q, budget, group=8, bits=8, encoding="hese3")
    np.testing.assert_array_equal(np.asarray(kept) @ places, expected)
  assert len(traced) == 1  # a budget is no new program


def test_bad_input_is_refused():
  x = jnp.ones((2, 6), jnp.int32)
  fine = {"group": 3, "budget": 2, "data_terms": 1}
  for change, message in (
    ({"group": 4}, "group"),
    ({"budget": 0}, "budget"),
    ({"bits": 9}, "bits=9"),
  ):
    with pytest.raises(ValueError, match=message):
      tmac.simulate(x, x, **(fine | change))
  with pytest.raises(ValueError, match="shapes"):
    tmac.simulate(x, x[:, :3], **fine)
  with pytest.raises(ValueError, match=r"b holds a magnitude of 256: .* 8 bits"):
    tmac.simulate(x, -256 * x, **fine)
  with pytest.raises(ValueError, match="mantissas"):
    fmac.simulate(x, x, x, x, left_bits=2, right_bits=2)
  mantissa = x[:, None]
  with pytest.raises(ValueError, match=r"right holds a magnitude of 4: .* 2 bits"):
    fmac.simulate(mantissa, x[:, :1], 4 * mantissa, x[:, :1], left_bits=2, right_bits=2)
  with pytest.raises(ValueError, match="at least 1"):
    fmac.simulate(mantissa, x[:, :1], mantissa, x[:, :1], left_bits=0, right_bits=2)


def test_cells_are_vmapped():
  rng = np.random.default_rng(4)
  a, b = rng.integers(-99, 99, (3, 2, 8)), jnp.asarray(rng.integers(-99, 99, (4, 8)))
  run = lambda x: tmac.simulate(x, b, group=8, budget=80, data_terms=9)[0]
  np.testing.assert_array_equal(jax.vmap(run)(jnp.asarray(a)), a @ np.asarray(b).T)
