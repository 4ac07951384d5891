"""Patterns and masks of trees: exact counts, ties to the lower index, one trace."""

import pathlib

import chex
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.numerics.sparsity.masks import Rule, apply, masks
from jaxcodesign.numerics.sparsity.patterns import (
  Blocks,
  Channels,
  NOfM,
  Unstructured,
  magnitude,
  saliency,
)

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / "reference/golden_formats.npz")
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


def wanted(pattern, scores):
  """The mask by a stable sort of the sums of each block."""
  scores = np.where(np.isnan(scores), -np.inf, scores.astype(np.float64))
  if isinstance(pattern, Unstructured):
    block = (1,) * scores.ndim
  elif isinstance(pattern, Channels):
    axis = pattern.axis % scores.ndim
    block = tuple(1 if i == axis else n for i, n in enumerate(scores.shape))
  else:
    block = (1,) * (scores.ndim - len(pattern.shape)) + pattern.shape
  sums = np.zeros([n // b for n, b in zip(scores.shape, block)])
  for place in np.ndindex(sums.shape):
    sums[place] = scores[
      tuple(slice(i * b, (i + 1) * b) for i, b in zip(place, block))
    ].sum()
  count = int(np.round(np.float32(pattern.density) * np.float32(sums.size)))
  kept = np.zeros(sums.size, bool)
  kept[np.argsort(-sums.ravel(), kind="stable")[:count]] = True
  return np.kron(kept.reshape(sums.shape), np.ones(block, bool))


PATTERNS = {
  "unstructured": Unstructured,
  "blocks": lambda density: Blocks((2, 3), density),
  "rows": lambda density: Channels(density, axis=0),
  "channels": Channels,
}
densities = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, width=32))


@settings(max_examples=50)
@given(
  st.sampled_from(sorted(PATTERNS)),
  st.sampled_from([(2, 3), (3, 2, 6), (40, 60)]),
  densities,
  st.integers(0, 99),
  st.sampled_from(["ties", "equal", "zero", "normal", "nan"]),
)
def test_the_largest_first_and_exactly_as_many(kind, shape, density, seed, how):
  pattern = PATTERNS[kind](density)
  rng = np.random.default_rng(seed)
  x = rng.integers(-3, 4, shape).astype(np.float32)
  if how == "normal" and kind == "unstructured":
    x = rng.normal(size=shape).astype(np.float32) * 10.0 ** rng.integers(-30, 30)
  x = x * (how != "zero") if how != "equal" else np.full(shape, -2.0, np.float32)
  if how == "nan":
    x.flat[:: x.shape[-1]] = np.nan
  found = np.array(mask(pattern, x))
  np.testing.assert_array_equal(found, wanted(pattern, np.abs(x)))
  positive = np.where(np.isnan(x), 0, np.abs(x) + 1)  # nothing kept is zero ...
  once = np.array(mask(pattern, positive))
  if how != "nan":  # ... so the mask of the masked array is the same
    np.testing.assert_array_equal(mask(pattern, positive * once), once)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "uint8", "int32"])
def test_scores_of_any_type_and_sign(dtype):
  x = jnp.asarray(np.random.default_rng(0).integers(-128, 128, (16, 12)))
  x = jnp.abs(x) if dtype == "uint8" else x
  x = x.astype(dtype)
  found = jax.jit(Unstructured(0.3).mask)(x)
  np.testing.assert_array_equal(found, wanted(Unstructured(0.3), np.array(x)))


def test_unusual_scores():
  inf, nan = np.inf, np.nan
  jitted = jax.jit(lambda pattern, x: pattern.mask(x))
  kept = lambda x, n: np.array(jitted(Unstructured(n / len(x)), jnp.array(x)))
  assert kept([-inf, 1.0, inf, nan], 2).tolist() == [False, True, True, False]
  assert kept([nan, -inf, -1.0, nan], 2).tolist() == [True, False, True, False]
  assert kept([-0.0, 0.0, 1e-40, -1e-40], 2).tolist() == [True, True, False, False]
  assert kept([-3.0, -1.0, -2.0, -9.0], 1).tolist() == [False, True, False, False]
  assert kept([2**31 - 1, -(2**31), 0], 1).tolist() == [True, False, False]
  assert Unstructured(0.5).mask(jnp.zeros((0, 4))).shape == (0, 4)
  assert not jitted(Unstructured(0.5), jnp.ones(1)).any()  # 0.5 goes to the even 0
  assert jax.jit(magnitude)(jnp.array([-128, 3], jnp.int8)).tolist() == [128, 3]


def test_a_density_is_a_leaf_and_a_schedule_traces_once():
  x = jax.random.normal(jax.random.key(0), (30, 20))
  traced = chex.assert_max_traces(lambda p, x: p.mask(magnitude(x)), n=1)
  step = jax.jit(traced)
  for i in range(100):
    density = 1 - 0.9 * (1 - (1 - i / 100) ** 3)
    found = step(Unstructured(density), x)
    assert int(found.sum()) == np.round(np.float32(density) * np.float32(600))
  masks = jax.jit(jax.vmap(lambda p: p.mask(magnitude(x))))
  many = masks(Unstructured(jnp.array([0.1, 0.7])))
  assert many.sum(axis=(1, 2)).tolist() == [60, 420]


ALL = [NOfM(2, 4), NOfM(jnp.int32(1), 8, axis=0), NOfM(3, 3)] + [
  make(0.25) for make in PATTERNS.values()
]


@pytest.mark.parametrize("pattern", ALL, ids=lambda p: type(p).__name__)
def test_a_pattern_at_other_densities_is_itself_with_fewer_or_more(pattern):
  chex.clear_trace_counter()
  x = jax.random.normal(jax.random.key(0), (8, 24))
  density = pattern.density
  np.testing.assert_array_equal(
    mask(pattern.at(jnp.asarray(density, jnp.float32)), x), mask(pattern, x)
  )
  at = jax.jit(chex.assert_max_traces(lambda d: pattern.at(d).mask(jnp.abs(x)), n=1))
  before = np.zeros(x.shape, bool)
  for part in (-1.0, 0.0, 0.3, 0.6, 1.0, 2.0):  # a traced one outside is the nearer end
    found = np.asarray(at(part))
    assert not (before & ~found).any()
    np.testing.assert_array_equal(found, mask(pattern.at(min(max(part, 0), 1)), x))
    before = found
  assert before.all() and not np.asarray(at(0.0)).any()
  with pytest.raises(ValueError, match=r"density=1.5 is outside"):
    pattern.at(1.5)


def test_n_of_m_at_a_density_keeps_the_nearest_count_and_n_is_a_leaf():
  counts = [int(NOfM(2, 4).at(d).n) for d in (0.0, 0.2, 0.5, 0.625, 0.7, 0.9, 1.0)]
  assert counts == [0, 1, 2, 2, 3, 4, 4]  # 2.5 of 4 goes to the even 2
  again = jax.jit(lambda every: every.at(every.density).n)
  for m in (1, 3, 7, 41, 96):  # a density tells n again
    np.testing.assert_array_equal(again(NOfM(jnp.arange(m + 1), m)), np.arange(m + 1))
  x = jax.random.normal(jax.random.key(0), (6, 16))
  masks = jax.jit(jax.vmap(lambda p: p.mask(magnitude(x))))
  many = masks(NOfM(jnp.array([1, 3, 4]), 4))
  assert many.sum(axis=(1, 2)).tolist() == [24, 72, 96]


def test_a_sharded_array_has_the_same_mask():
  x = jax.random.normal(jax.random.key(1), (64, 24))
  mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("rows")))
  for pattern in (Unstructured(0.2), Channels(0.4)):
    np.testing.assert_array_equal(mask(pattern, split), mask(pattern, x))


def test_saliency_is_the_first_order_change_of_the_loss():
  w = jnp.array([[1.0, -2.0], [0.5, 3.0]])
  loss = jax.jit(lambda w: jnp.sum(jnp.sin(w) * jnp.array([[1.0, 2.0], [3.0, 4.0]])))
  found = saliency(w, jax.grad(loss)(w))
  along = lambda i: np.gradient(
    [loss(w.at[i].multiply(1 + s)) for s in (-1e-2, 0, 1e-2)], 1e-2
  )[1]
  by_differences = [[abs(along((r, c))) for c in range(2)] for r in range(2)]
  np.testing.assert_allclose(found, by_differences, rtol=2e-3)
  tiny = jnp.full(2, 1e-30, jnp.bfloat16)
  assert saliency(tiny, jnp.full(2, 1e-5, jnp.float32)).all()


PARAMS = {
  "conv": {"kernel": np.arange(1.0, 25).reshape(4, 6), "bias": np.ones(3)},
  "head": {"kernel": np.arange(8, dtype=np.int8).reshape(4, 2)},
}


def test_masks_follow_the_first_rule_and_the_rest_stays_dense():
  params = jax.tree.map(jnp.asarray, PARAMS)
  rules = [Rule("head/*", NOfM(1, 2, axis=0)), Rule("*/kernel", Unstructured(0.25))]
  found = jax.jit(masks)(params, rules)
  assert found["conv"]["bias"] is None
  assert found["conv"]["kernel"].tolist() == (PARAMS["conv"]["kernel"] > 18).tolist()
  assert found["head"]["kernel"].tolist() == [[False] * 2, [True] * 2] * 2
  sparse = jax.jit(apply)(found, params)
  assert sparse["conv"]["kernel"].sum() == 19 + 20 + 21 + 22 + 23 + 24
  assert sparse["head"]["kernel"].dtype == jnp.int8
  dense = jax.jit(masks)(params, [Rule("conv/*"), Rule("*", Unstructured(0.5))])
  assert dense["conv"] == {"kernel": None, "bias": None}
  upside_down = jax.jit(
    lambda p: masks(p, rules[1:], scores=jax.tree.map(jnp.negative, p))
  )
  backward = upside_down(params)
  assert backward["conv"]["kernel"].tolist() == (PARAMS["conv"]["kernel"] < 7).tolist()
  slope = jax.jit(
    jax.grad(lambda w: apply({"w": found["head"]["kernel"]}, {"w": w})["w"].sum())
  )
  assert slope(jnp.ones((4, 2))).tolist() == [[0, 0], [1, 1]] * 2


def kernel_mask(mask):
  return lambda: apply(
    {"conv": {"kernel": mask, "bias": None}, "head": {"kernel": None}}, PARAMS
  )


@pytest.mark.parametrize(
  ("use", "error", "message"),
  [
    (lambda: NOfM(5, 4), ValueError, "n=5 of m=4"),
    (lambda: NOfM(2.0), TypeError, "n=2.0 is no integer; NOfM.at"),
    (lambda: NOfM(jnp.array([1, 5])), ValueError, r"of m=4: 0 <= n"),
    (
      lambda: NOfM(jnp.ones(2, int)).mask(jnp.ones(4)),
      ValueError,
      r"n has shape \(2,\)",
    ),
    (lambda: NOfM().mask(jnp.ones((3, 6))), ValueError, "m=4 does not divide axis -1"),
    (lambda: NOfM(axis=2).mask(jnp.ones((4, 4))), ValueError, "axis=2 is out of range"),
    (lambda: NOfM().mask(jnp.ones(4, jnp.complex64)), TypeError, "complex64; pass"),
    (lambda: Unstructured(1.01), ValueError, "density=1.01 is outside"),
    (lambda: Blocks((2,), float("nan")), ValueError, "density=nan is outside"),
    (lambda: Channels(jnp.array(1j)), TypeError, "density has dtype complex64"),
    (
      lambda: Unstructured(jnp.ones(2)).mask(jnp.ones(2)),
      ValueError,
      r"density has shape \(2,\)",
    ),
    (lambda: Unstructured(1).mask(jnp.ones(1, complex)), TypeError, "complex64; pass"),
    (lambda: Blocks((0, 2), 1), ValueError, r"shape=\(0, 2\) of a block"),
    (lambda: Blocks((2, 2), 1).mask(jnp.ones((4, 3))), ValueError, r"\(4, 3\); pad"),
    (lambda: Blocks((2, 2), 1).mask(jnp.ones(4)), ValueError, "do not divide shape"),
    (lambda: Channels(1, 1).mask(jnp.ones(4)), ValueError, "axis=1 is out of range"),
    (lambda: saliency(jnp.ones(2), jnp.ones(3)), ValueError, r"\(2,\) and g \(3,\)"),
    (lambda: saliency(jnp.ones(2), jnp.arange(2)), TypeError, "g is int32"),
    (lambda: masks(PARAMS, [Rule("*/kern")]), ValueError, "nearest: .*conv/kernel"),
    (
      lambda: masks(PARAMS, [Rule("*"), Rule("head/*")]),
      ValueError,
      "rule 1 .* decides nothing",
    ),
    (
      lambda: masks(PARAMS, [Rule("conv/kernel", NOfM())]),
      ValueError,
      "conv/kernel: m=4 does not divide axis -1",
    ),
    (lambda: masks(PARAMS, [Rule("*")], scores=[1]), ValueError, "scores are no tree"),
    (kernel_mask(np.ones((6, 4), bool)), ValueError, r"conv/kernel has shape \(6, 4\)"),
    (kernel_mask(np.ones((4, 6))), TypeError, "conv/kernel is float32; pass bool"),
    (lambda: apply({"conv": None}, PARAMS), ValueError, "masks are no tree like"),
  ],
)
def test_bad_input(use, error, message):
  with pytest.raises(error, match=message):
    use()
