"""Weights are rounded and priced in the form that the array holds them in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import models, trace, tree
from jaxcodesign.data.image_sets import FashionMnistMini
from jaxcodesign.experiments import networks, payoff, storage
from jaxcodesign.experiments.codesign import CodesignConfig, Variant
from jaxcodesign.hardware.machines import presets
from jaxcodesign.numerics.formats import Fixed, Terms, terms
from jaxcodesign.numerics.schedules import OneShot
from jaxcodesign.numerics.sparsity import masks as masking
from jaxcodesign.numerics.sparsity.patterns import NOfM, Unstructured
from jaxcodesign.programs import precision
from jaxcodesign.programs.precision import Rule
from jaxcodesign.training import combining
from jaxcodesign.training.combining import Combine, Layer
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.masked import Prune

CNN = models.Cnn(channels=(8, 16), hidden=16)
SHAPE = (8, 8, 1)
INT8 = (Rule("*", Fixed(8, "channel"), Fixed(8)),)
TERMS = (
  Rule("conv1/*", Fixed(8, "channel"), Fixed(8)),
  Rule("*", Terms(10, share="channel"), Terms(3, group=1)),
)
COMBINE = Combine((Layer("conv2/kernel", 0.2), Layer("dense1/kernel", 0.2)), OneShot(0))
HALVES = Prune((masking.Rule("dense1/kernel", NOfM(2, 4, axis=0)),), OneShot(0))
FEW = Prune(
  tuple(
    masking.Rule(leaf, Unstructured(0.2)) for leaf in ("conv2/kernel", "dense1/kernel")
  ),
  OneShot(0),
)


@pytest.fixture(scope="module")
def params():
  return CNN.init(jax.random.key(0), SHAPE, 10)


@pytest.fixture(scope="module")
def work(params):
  return trace(CNN.apply)(params, jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32))


def made(params, sparsity):
  """The network that one round without training leaves."""
  return networks.expected(params, TrainConfig(sparsity=sparsity))


def run(policy, params, x):
  return np.asarray(precision.quantize(CNN.apply, policy)(params, x))


def test_scales_of_channels_do_not_see_the_packing(params, work):
  found = made(params, COMBINE)
  x = jax.random.uniform(jax.random.key(1), (3, *SHAPE))
  policy, rounded = storage.rounded(INT8, found, work)
  np.testing.assert_array_equal(run(policy, rounded, x), run(INT8, found.params, x))
  assert not np.array_equal(
    rounded["dense1"]["kernel"], found.params["dense1"]["kernel"]
  )


def test_a_budget_of_terms_is_of_packed_neighbours(params, work):
  found = made(params, COMBINE)
  policy, rounded = storage.rounded(TERMS, found, work)
  groups = found.groups["dense1/kernel"]
  packed = storage.pack_leaf(found.params["dense1"]["kernel"], groups, Terms(10))
  assert packed.groups.count % 8 == 0 <= packed.groups.count - groups.count < 8
  wanted = Terms(10, share="channel").quantize(packed.values)
  kernel = combining.as_matrix(rounded["dense1"]["kernel"])
  again = storage.pack_leaf(rounded["dense1"]["kernel"], groups, Terms(10))
  np.testing.assert_array_equal(again.values, wanted)
  # By hand: at most 10 signed powers of two in any 8 neighbours of the packed row.
  scale = np.abs(np.asarray(packed.values)).max(1, keepdims=True) / 127
  whole = np.round(np.asarray(again.values) / scale).astype(np.int32)
  used = np.asarray(terms.count(jnp.asarray(whole)))
  assert used.reshape(len(whole), -1, 8).sum(-1).max() <= 10
  assert np.count_nonzero(kernel) <= np.count_nonzero(found.params["dense1"]["kernel"])
  # Rules that no product is left for are gone; activations are still rounded.
  left = precision.assign(policy, work.gemms)
  assert [right for _, right in left][1:3] == [None, None]
  assert all(activation is not None for activation, _ in left)


def test_what_is_stored_is_what_is_executed(params, work):
  dense = storage.stored(INT8, networks.expected(params, TrainConfig()), work)
  assert dense == {}
  combined = made(params, COMBINE)
  for policy, whole in ((INT8, 1), (TERMS, 8)):
    found = storage.stored(policy, combined, work)
    assert set(found) == {"conv2/kernel", "dense1/kernel"}
    for name, one in found.items():
      count = combined.groups[name].count
      assert one.columns == -(-count // whole) * whole
      leaf = tree.named_leaves(combined.params)[name]
      kept = np.count_nonzero(leaf)
      assert float(one.columns * one.density) * leaf.shape[-1] == pytest.approx(kept)
  halves = storage.stored(INT8, made(params, HALVES), work)["dense1/kernel"]
  assert (halves.columns, halves.inputs, halves.index_bits) == (32, 4, 2)
  few = storage.stored(INT8, made(params, FEW), work)
  assert few["dense1/kernel"].columns == 64
  assert few["dense1/kernel"].density == pytest.approx(0.2, abs=1e-3)


def test_groups_of_a_format_across_n_of_m_are_refused(params, work):
  with pytest.raises(ValueError, match="dense1/kernel is stored as n:m"):
    storage.rounded(TERMS, made(params, HALVES), work)
  policy, same = storage.rounded(INT8, made(params, HALVES), work)
  assert policy == INT8 and same["dense1"]["kernel"].shape == (64, 16)


def test_payoff_tells_what_pruning_gains_on_one_array(params, work):
  tune = lambda sparsity: TrainConfig(sparsity=sparsity)
  variants = (
    Variant("int8", INT8),
    Variant("pruned", INT8, tune(FEW)),
    Variant("2:4", INT8, tune(HALVES)),
    Variant("combined", INT8, tune(COMBINE)),
    Variant("other formats", TERMS, tune(COMBINE)),
  )
  machine = presets.int8_45nm(8, 8)
  config = CodesignConfig(FashionMnistMini(), CNN, TrainConfig(), variants, (machine,))
  found = {v.tune: networks.expected(params, v.tune or config.train) for v in variants}
  accuracies = {v.name: 0.5 for v in variants}
  result = payoff.payoff(config, work, found, accuracies)
  rows = {row["title"]: row for row in result["rows"]}
  loose = "pruned, packed with gamma = 0"
  assert list(rows) == ["int8", "pruned", loose, "2:4", "combined"]
  assert rows["int8"]["density"] == 1
  for key in ("tiles", "cycles"):
    assert rows["pruned"][key] == rows["int8"][key]  # pruning alone gains nothing
    assert rows["combined"][key] < rows[loose][key] <= rows["pruned"][key]
  for row in rows.values():
    assert row["tiles"] == sum(layer["tiles"] for layer in row["layers"])
    for layer, g in zip(row["layers"], work.gemms):
      high = -(-round(layer["columns"]) // 8)
      assert layer["tiles"] == high * -(-g.n // 8)
  share = rows["pruned"]["utilization"] / rows["int8"]["utilization"]
  assert 0.2 < share < 0.6  # layers that stay dense are in it
  (packing,) = result["packing"]
  assert packing["layer"] == "conv2/kernel" and packing["array"] == 8
  drawn = sum(row.count("1") for row in packing["kept"])
  assert drawn == sum(len(row) - row.count(".") for row in packing["channel"])
  assert drawn == np.count_nonzero(found[tune(COMBINE)].params["conv2"]["kernel"])


def test_nothing_sparse_has_no_rows(params, work):
  machine = presets.int8_45nm(8, 8)
  config = CodesignConfig(
    FashionMnistMini(), CNN, TrainConfig(), (Variant("int8", INT8),), (machine,)
  )
  found = {None: networks.expected(params, config.train)}
  result = payoff.payoff(config, work, found, {"int8": 0.5})
  assert result["rows"] == result["packing"] == []
