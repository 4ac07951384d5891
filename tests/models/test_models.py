"""The CNN is a pure function of plainly named parameters."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import models
from jaxcodesign.training import losses

pytestmark = pytest.mark.unoptimized

SMALL = models.Cnn(channels=(8, 8), hidden=8)


def images(shape, count=3, seed=0):
  return np.random.default_rng(seed).random((count, *shape), np.float32)


def test_leaves_are_named_by_layer_and_kind():
  params = jax.eval_shape(lambda: models.Cnn().init(jax.random.key(0), (28, 28, 1), 10))
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype.name), params)
  kinds = lambda *shape: {
    "kernel": (shape, "float32"),
    "bias": (shape[-1:], "float32"),
  }
  assert shapes == {
    "conv1": kinds(3, 3, 1, 16),
    "conv2": kinds(3, 3, 16, 32),
    "dense1": kinds(7 * 7 * 32, 128),
    "dense2": kinds(128, 10),
  }
  assert models.count(params) == 206_922


def test_groups_of_8_never_mix_two_kernel_taps():
  params = jax.eval_shape(lambda: models.Cnn().init(jax.random.key(0), (28, 28, 1), 10))
  depths = {name: layer["kernel"].shape[-2] for name, layer in params.items()}
  assert depths.pop("conv1") == 1
  assert all(depth % 8 == 0 for depth in depths.values())


def numpy_apply(params, x):
  """The network in loops: an answer that shares no code with the model."""
  features = []
  for name in ("conv1", "conv2"):
    kernel, bias = params[name]["kernel"], params[name]["bias"]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    b, h, w, _ = x.shape
    out = np.zeros((b, h, w, kernel.shape[-1])) + bias
    for i in range(3):
      for j in range(3):
        out += padded[:, i : i + h, j : j + w] @ kernel[i, j]
    out = np.maximum(out, 0)
    corners = [
      out[:, i : h // 2 * 2 : 2, j : w // 2 * 2 : 2] for i, j in np.ndindex(2, 2)
    ]
    x = np.max(corners, axis=0)
    features.append(x)
  x = x.reshape(len(x), -1)
  x = np.maximum(x @ params["dense1"]["kernel"] + params["dense1"]["bias"], 0)
  return x @ params["dense2"]["kernel"] + params["dense2"]["bias"], *features


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 7, 3)])
def test_apply_matches_numpy(shape):
  params = SMALL.init(jax.random.key(1), shape, 5)
  noise = np.random.default_rng(2)
  params = jax.tree.map(lambda p: p + noise.normal(size=p.shape).astype("f4"), params)
  found = jax.jit(SMALL.forward)(params, images(shape))
  expected = numpy_apply(jax.tree.map(np.float64, params), images(shape))
  for a, b in zip((found.logits, *found.features), expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_keys_determine_the_weights():
  init = lambda seed: SMALL.init(jax.random.key(seed), (8, 8, 1), 4)
  chex.assert_trees_all_equal(init(0), init(0))
  assert not np.array_equal(init(0)["dense1"]["kernel"], init(1)["dense1"]["kernel"])


def test_apply_is_traced_once_and_differentiates_every_leaf():
  params = SMALL.init(jax.random.key(0), (8, 8, 1), 4)

  def loss(params, x):
    return losses.cross_entropy(SMALL.apply(params, x), jnp.arange(3))

  grad = jax.jit(jax.grad(chex.assert_max_traces(loss, n=1)))
  for seed in range(2):
    grads = grad(params, images((8, 8, 1), seed=seed))
  chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
  assert all(np.any(g != 0) for g in jax.tree.leaves(grads))


def test_other_parameters_are_refused():
  params = SMALL.init(jax.random.key(0), (8, 8, 1), 4)
  renamed = {("conv9" if k == "conv2" else k): v for k, v in params.items()}
  for wrong in (renamed, params["conv1"], {}):
    with pytest.raises(ValueError, match="needs parameters"):
      SMALL.apply(wrong, images((8, 8, 1)))


def test_sizes_that_make_no_network_are_refused():
  with pytest.raises(ValueError, match="positive sizes"):
    models.Cnn(channels=())
  with pytest.raises(ValueError, match="positive sizes"):
    dataclasses.replace(SMALL, hidden=0)
  with pytest.raises(ValueError, match=r"too small for Cnn.*at least 4 pixels"):
    SMALL.init(jax.random.key(0), (3, 8, 1), 4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_its_definition(smoothing):
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(5, 4)).astype("f4"), np.array([0, 3, 1, 1, 2])
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  target = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
  expected = -(target * np.log(p)).sum(-1).mean()
  found = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_out_of_range_is_never_a_number(label):
  loss = losses.cross_entropy(jnp.zeros((2, 4)), jnp.array([0, label]))
  assert np.isnan(loss)


def test_accuracy_counts_rows_and_gives_ties_to_the_earlier_class():
  logits = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [3.0, 3.0]])
  assert losses.accuracy(logits, jnp.array([0, 0, 0, 1])) == 0.5


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.accuracy])
def test_labels_of_another_kind_are_refused(loss):
  for labels in (jnp.zeros(3, int), jnp.zeros(2), jnp.zeros((2, 1), int)):
    with pytest.raises(ValueError, match="need integer labels"):
      loss(jnp.zeros((2, 4)), labels)
