"""Groupers against slow oracles, the packed form against numpy, permuted networks."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.numerics.sparsity import column_combining as cc
from jaxcodesign.numerics.sparsity.patterns import Unstructured


def sparse(rows, columns, density, seed, kind="normal"):
  rng = np.random.default_rng(seed)
  keep = rng.random((rows, columns)) < density
  w = rng.integers(-3, 4, keep.shape) if kind == "ties" else rng.normal(size=keep.shape)
  w = {"equal": np.full(keep.shape, 2.0), "zero": np.zeros(keep.shape)}.get(kind, w)
  return np.where(keep if kind != "equal" else True, w, 0).astype(np.float32)


def score(sets, group, rows, gamma):
  """(rows covered, -conflicts) of a group of sets of rows, None where not legal."""
  covered = len(set().union(*(sets[c] for c in group)))
  conflicts = sum(len(sets[c]) for c in group) - covered
  return (covered, -conflicts) if conflicts <= gamma * rows else None


def oracle(w, alpha, gamma, method):
  """Both groupers on Python sets, every candidate scored anew."""
  sets = [set(np.flatnonzero(column)) for column in w.T]
  filled = [c for c in range(len(sets)) if sets[c]]
  groups = []
  if method == "dense_first":
    for c in sorted(filled, key=lambda c: -len(sets[c])):
      options = [
        (s, -i)
        for i, g in enumerate(groups)
        if len(g) < alpha and (s := score(sets, [*g, c], len(w), gamma))
      ]
      if options:
        groups[-max(options)[1]].append(c)
      else:
        groups.append([c])
    return [sorted(g) for g in groups]
  groups = [[c] for c in filled]
  while options := [
    (s, -i, -j)
    for i in range(len(groups))
    for j in range(i + 1, len(groups))
    if len(groups[i]) + len(groups[j]) <= alpha
    and (s := score(sets, groups[i] + groups[j], len(w), gamma))
  ]:
    _, i, j = max(options)
    groups[-i] += groups.pop(-j)
  return [sorted(g) for g in groups]


prune, unpack = jax.jit(cc.prune_conflicts), jax.jit(cc.unpack)
MOST = (40, 14, 9)  # rows, columns, alpha: the examples lie in these, and compile once


@settings(max_examples=80)
@given(
  st.integers(1, 40), st.integers(1, 14), st.floats(0, 1), st.integers(1, 9),
  st.sampled_from([0, 0.1, 0.29, 0.5, 1.75, 9]),
  st.sampled_from(["normal", "ties", "equal", "zero"]),
  st.sampled_from(["dense_first", "pairs"]), st.sampled_from([None, 1, 5]),
  st.integers(0, 999),
)  # fmt: skip
def test_groupers_pruning_and_packing(
  rows, columns, density, alpha, gamma, kind, method, sections, seed
):
  w = sparse(rows, columns, density, seed, kind)
  groups = cc.group_columns(
    w, alpha=alpha, gamma=gamma, method=method, sections=sections
  )
  width = sections or columns
  parts = [(i, w[:, i : i + width]) for i in range(0, columns, width)]
  assert groups.lists() == [
    [i + c for c in group]
    for i, part in parts
    for group in oracle(part, alpha, gamma, method)
  ]
  assert groups.members.shape == (groups.count, alpha)
  found = sorted(c for group in groups.lists() for c in group)
  assert found == np.flatnonzero(w.any(axis=0)).tolist()
  for group in groups.lists():
    nonzeros = np.count_nonzero(w[:, group])
    assert nonzeros - np.count_nonzero(w[:, group].any(axis=1)) <= gamma * rows

  large, wide = within_most(w, groups)
  pruned = np.array(prune(large, wide))
  np.testing.assert_array_equal(prune(pruned, wide), pruned)
  np.testing.assert_array_equal(unpack(cc.pack(pruned, wide)), pruned)
  pruned = pruned[:rows, :columns]
  np.testing.assert_array_equal(pruned, pruned_by_loops(w, groups))
  packed = cc.pack(pruned, groups)
  assert packed.values.shape == (rows, groups.count)
  assert packed.index_bits == int(np.ceil(np.log2(alpha)))
  assert packed.index.shape == (rows, -(-groups.count * packed.index_bits // 8))
  for g, group in enumerate(groups.lists()):
    assert (np.count_nonzero(pruned[:, group], axis=1) <= 1).all()
    np.testing.assert_array_equal(packed.values[:, g], pruned[:, group].sum(axis=1))


def within_most(w, groups):
  """The same problem with empty rows, columns, groups and members around it."""
  large = np.zeros(MOST[:2], np.float32)
  large[: w.shape[0], : w.shape[1]] = w
  members = np.full(MOST[1:], -1, np.int32)
  members[: groups.count, : groups.alpha] = groups.members
  return large, cc.Groups(members, MOST[1])


def pruned_by_loops(w, groups):
  pruned = w.copy()
  for row in pruned:
    for group in groups.lists():
      best = max(group, key=lambda c: (abs(row[c]), -c))
      for c in group:
        row[c] = row[c] if c == best else 0
  return pruned


@pytest.mark.parametrize("shape", [(12, 10, 4), (1, 10, 3), (7, 1, 8), (9, 20, 1)])
def test_gathering_and_tiling_match_numpy(shape):
  rows, columns, alpha = shape
  w = sparse(rows, columns, 0.5, 3)
  groups = cc.group_columns(w, alpha=alpha, gamma=1.75)
  pruned = pruned_by_loops(w, groups)
  packed = cc.pack(pruned, groups)
  x = np.random.default_rng(0).integers(-128, 128, (2, 3, columns)).astype(np.int8)
  seen = np.array(cc.gather(x, groups))
  assert seen.shape == (2, 3, groups.count, alpha) and seen.dtype == np.int8
  for g, group in enumerate(groups.lists()):
    np.testing.assert_array_equal(seen[..., g, : len(group)], x[..., group])
    assert not seen[..., g, len(group) :].any()

  cut = cc.tiles(packed, 4, 2)
  sums = np.zeros((2, 3, rows))
  for down, across in np.ndindex(cut.values.shape[:2]):
    part = np.zeros((2, 3, 2, alpha), np.int8)
    here = seen[..., across * 2 : across * 2 + 2, :]
    part[..., : here.shape[-2], :] = here
    for r in range(min(4, rows - down * 4)):
      for g in range(2):
        c = cut.channel[down, across, r, g]
        sums[..., down * 4 + r] += part[..., g, c] * np.float64(
          cut.values[down, across, r, g]
        )
  np.testing.assert_allclose(sums, x @ np.float64(pruned).T, rtol=1e-12, atol=1e-12)


def test_pruning_is_traceable_and_stops_gradients_of_what_it_prunes():
  w = sparse(6, 8, 0.7, 0)
  groups = cc.group_columns(w, alpha=4, gamma=2)
  mask = np.array(jax.jit(cc.conflict_mask)(w, groups))
  slope = jax.jit(jax.grad(lambda w: cc.prune_conflicts(w, groups).sum()))(w)
  np.testing.assert_array_equal(slope, mask)
  assert all((mask[:, group].sum(axis=1) == 1).all() for group in groups.lists())
  np.testing.assert_array_equal(jax.jit(cc.conflict_mask)(w * mask, groups), mask)
  stack = jax.vmap(cc.conflict_mask, (0, None))(np.stack([w, -w]), groups)
  np.testing.assert_array_equal(stack, [mask, mask])


def test_unusual_weights():
  groups = cc.Groups(np.array([[0, 2], [3, -1]], np.int32), 5)
  w = np.float32([[2, 1, -2, 0, 5], [9, 1, np.nan, 3, 5]])
  kept = [[2, 1, 0, 0, 5], [0, 1, np.nan, 3, 5]]
  np.testing.assert_array_equal(prune(w, groups), kept)
  low = jnp.array([[-127, 0, -128, 1, 0]], jnp.int8)
  assert prune(low, groups).tolist() == [[0, 0, -128, 1, 0]]
  for dtype in (jnp.bfloat16, jnp.int8, jnp.float32):
    w = np.array([[0, 0, -3, 1, 0], [5, 0, 0, 0, 0]], dtype)
    packed = cc.pack(w, groups)
    assert packed.values.dtype == dtype
    assert packed.nbytes == 4 * w.itemsize + 2  # two weights and two bits a row
    np.testing.assert_array_equal(unpack(packed), w)
  assert float(packed.utilization()) == 0.75


def test_a_permuted_network_is_the_same_function_to_the_last_bit():
  sizes, rng = [11, 16, 13, 6], np.random.default_rng(5)
  weights, groups = [], []
  for i, (columns, rows) in enumerate(itertools.pairwise(sizes)):
    w = sparse(rows, columns, 0.35, i)
    w[:, columns // 2] = 0  # a row before that feeds nothing
    groups.append(cc.group_columns(w, alpha=4, gamma=0.5, method="pairs"))
    weights.append(pruned_by_loops(w, groups[-1]))
  biases = [rng.normal(size=n).astype(np.float32) for n in sizes[1:]]

  def network(x, weights, groups, biases):
    for w, g, b in zip(weights, groups, biases):
      packed = cc.pack(w, g)
      seen = np.pad(x, ((0, 0), (0, 1)))[:, g.members]
      values, channel = np.array(packed.values), np.array(packed.channel)
      total = np.zeros((len(x), len(w)), np.float32)
      for i in range(g.count):  # as the array sums: column by column, in float32
        total += values[:, i] * seen[:, i][:, channel[:, i]]
      x = np.maximum(total + b, 0)
    return x

  moved = cc.permute_rows(weights, groups)
  for g in moved.groups[1:]:
    flat = [c for group in g.lists() for c in group]
    assert flat == list(range(len(flat)))  # side by side, in the order of the groups
  for order, size in zip(moved.orders, sizes[1:]):
    assert sorted(order.tolist()) == list(range(size))
  assert moved.orders[0].tolist() != list(range(16))
  x = rng.normal(size=(5, 11)).astype(np.float32)
  shifted = [b[order] for b, order in zip(biases, moved.orders)]
  np.testing.assert_array_equal(
    network(x, moved.matrices, moved.groups, shifted),
    network(x, weights, groups, biases),
  )
  whole = lambda ws, x: ws[2] @ np.maximum(ws[1] @ np.maximum(ws[0] @ x, 0), 0)
  integers = [np.round(w * 9).astype(np.int32) for w in weights]
  x = rng.integers(-9, 9, (11, 4))
  np.testing.assert_array_equal(
    whole(cc.permute_rows(integers, groups).matrices, x), whole(integers, x)
  )


def test_random_matrices_pack_as_published_and_not_at_all_without_pruning():
  columns, utilization, without = [], [], []
  keep = jax.jit(Unstructured(0.16).mask)
  for seed in range(20):
    w = np.random.default_rng(seed).normal(size=(96, 94)).astype(np.float32)
    w = w * np.array(keep(np.abs(w)))
    groups = cc.group_columns(w, alpha=8, gamma=0.5, method="pairs")
    columns.append(groups.count)
    utilization.append(
      sum(w[:, g].any(axis=1).mean() for g in groups.lists()) / columns[-1]
    )
    without.append(cc.group_columns(w, alpha=8, gamma=0, method="pairs").count)
  assert np.median(columns) <= 12 and np.mean(utilization) >= 0.84
  assert np.mean(without) >= 45


W = np.eye(4, 6, dtype=np.float32)
G = cc.group_columns(W, alpha=2, gamma=0)


def group(w=W, alpha=2, gamma=0.5, **options):
  return cc.group_columns(w, alpha=alpha, gamma=gamma, **options)


@pytest.mark.parametrize(
  ("use", "error", "message"),
  [
    (lambda: group(alpha=0), ValueError, "alpha=0: a group has at least 1"),
    (lambda: group(gamma=-0.1), ValueError, "gamma=-0.1: conflicts per row, 0"),
    (lambda: group(gamma=float("nan")), ValueError, "gamma=nan"),
    (lambda: group(method="best"), ValueError, "method='best' is none of dense_first"),
    (lambda: group(sections=0), ValueError, "sections=0"),
    (lambda: group(np.ones((2, 3, 4))), ValueError, r"\(2, 3, 4\): \[rows, columns\]"),
    (lambda: jax.jit(group)(W), TypeError, "matrix is traced"),
    (lambda: cc.Groups(np.array([[0, 1], [1, -1]]), 4), ValueError, "column 1 is in"),
    (lambda: cc.Groups(np.array([[4]]), 4), ValueError, "column 4 is in"),
    (lambda: cc.Groups(np.ones((2, 1)), 4), ValueError, r"members are float64\[2, 1\]"),
    (lambda: cc.pack(W[:, :5], G), ValueError, r"\(4, 5\) does not end in the 6"),
    (lambda: cc.pack(np.ones((4, 6), np.float32), G), ValueError, "column 4 has nonz"),
    (
      lambda: cc.pack(np.float32([[1, 2, 0, 0, 0, 0]]), G),
      ValueError,
      r"1 conflicts, the first in row 0 of group 0, columns \[0, 1\]; prune_conflicts",
    ),
    (lambda: cc.pack(np.float64(W), G), TypeError, "float64, which jax narrows"),
    (lambda: cc.pack(W[0], G), ValueError, r"\(6,\): \[rows, columns\]"),
    (lambda: jax.jit(cc.pack)(W, G), TypeError, "matrix is traced"),
    (lambda: cc.prune_conflicts(W.T, G), ValueError, r"\(6, 4\) does not end in the 6"),
    (lambda: cc.gather(jnp.ones(()), G), ValueError, "does not end in the 6 columns"),
    (lambda: cc.tiles(cc.pack(W, G), 0, 8), ValueError, "tiles of 0 x 8"),
    (lambda: cc.permute_rows([W], []), ValueError, "1 matrices and 0 groups"),
    (lambda: cc.permute_rows([W, W], [G, G]), ValueError, "matrix 0 has 4 rows, matr"),
    (lambda: cc.permute_rows([W.T], [G]), ValueError, r"matrix 0 has shape \(6, 4\)"),
  ],
)
def test_bad_input(use, error, message):
  with pytest.raises(error, match=message):
    use()
