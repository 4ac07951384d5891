"""ResNet-18 and ResNet-50 have their published sizes, and are their blocks in numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import models, quantize, trace, tree
from jaxcodesign.models import published
from jaxcodesign.models.imagenet_resnet import max_pool
from jaxcodesign.numerics.formats import BlockFloat
from jaxcodesign.programs.precision import Rule
from jaxcodesign.training import losses
from tests.models import numpy_layers

BASIC = models.ImageNetResNet(blocks=(1, 2), width=4, zero_init=False)
NECK = dataclasses.replace(BASIC, bottleneck=True)
SHAPE, CLASSES = (17, 10, 3), 5


@functools.cache
def init(model):
  params = jax.jit(lambda key: model.init(key, SHAPE, CLASSES))(jax.random.key(1))
  return numpy_layers.disturbed(params)


def images(count=2):
  return jnp.asarray(np.random.default_rng(0).random((count, *SHAPE), np.float32))


@pytest.mark.parametrize(
  # Parameters of the trained networks that torchvision distributes, and its GFLOPS.
  ("depth", "parameters", "gmacs"),
  [(18, 11_689_512, 1.81), (50, 25_557_032, 4.09)],
)
def test_published_sizes(depth, parameters, gmacs):
  model, shape = models.ImageNetResNet.of(depth), (224, 224, 3)
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), shape, 1000))
  named = tree.named_leaves(params).items()
  trained = sum(x.size for n, x in named if not n.endswith(("mean", "var")))
  assert trained == parameters
  work = trace(model.apply)(params, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
  assert work.macs / 1e9 == pytest.approx(gmacs, abs=0.006)
  theirs = published.resnet(depth)
  expected = trace(theirs.fn)(theirs.params, theirs.inputs)
  sizes = lambda work: [(g.m, g.k, g.n) for g in work.gemms]
  assert sizes(work) == sizes(expected)


def convolution(x, kernel, stride, margin):
  """[B, H, W, C] by [K, K, C, N], zeros around, window by window."""
  x = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
  size = len(kernel)
  rows, columns = (range(0, n - size + 1, stride) for n in x.shape[1:3])
  window = lambda i, j: x[:, i : i + size, j : j + size]
  return np.stack(
    [
      np.stack([np.tensordot(window(i, j), kernel, 3) for j in columns], 1)
      for i in rows
    ],
    1,
  )


def normalized(p, x, stride=1):
  """A convolution of any size, [in, out] being 1x1, and its normalization."""
  kernel = p["kernel"] if p["kernel"].ndim == 4 else p["kernel"][None, None]
  return numpy_layers.normalized(p, convolution(x, kernel, stride, len(kernel) // 2))


def by_hand(model, params, x):
  relu = lambda x: np.maximum(x, 0)
  x = relu(normalized(params["stem"], x, 2))
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # nothing is below zero any more
  rows, columns = (range(0, n - 2, 2) for n in x.shape[1:3])
  x = np.stack(
    [
      np.stack([x[:, i : i + 3, j : j + 3].max((1, 2)) for j in columns], 1)
      for i in rows
    ],
    1,
  )
  features = []
  for stage, count in enumerate(model.blocks, start=1):
    for block in range(1, count + 1):
      p = params[f"stage{stage}_{block}"]
      stride = 2 if stage > 1 and block == 1 else 1
      strides = (1, stride, 1) if model.bottleneck else (stride, 1)
      y = x
      for i, step in enumerate(strides, start=1):
        y = normalized(p[f"conv{i}"], y if i == 1 else relu(y), step)
      x = relu(y + (normalized(p["shortcut"], x, stride) if "shortcut" in p else x))
    features.append(x)
  return numpy_layers.logits(params["logits"], x), features


@pytest.mark.parametrize("model", [BASIC, NECK], ids=["basic", "bottleneck"])
def test_forward_is_that_of_numpy(model):
  params, x = init(model), images()
  found = jax.jit(model.forward)(params, x)
  logits, features = by_hand(model, jax.tree.map(np.float64, params), np.float64(x))
  np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)
  for a, b in zip(found.features, features, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 8), (7, 4), (1, 2)])
def test_max_pool_and_its_gradient_are_those_of_reduce_window(shape):
  def window(x):
    edges = ((0, 0), (1, 1), (1, 1), (0, 0))
    sizes = ((1, 3, 3, 1), (1, 2, 2, 1))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *sizes, edges)

  # All below zero: a margin of zeros would win; no two are equal.
  x = np.random.default_rng(0).permutation(2 * 3 * np.prod(shape))
  x = -1 - x.reshape(2, *shape, 3).astype(np.float32)
  cotangent = np.random.default_rng(1).normal(size=window(x).shape).astype("f4")

  @jax.jit
  def both(x):
    (y, back), (other, expected) = jax.vjp(max_pool, x), jax.vjp(window, x)
    return (y, *back(cotangent)), (other, *expected(cotangent))

  found, wanted = both(x)
  np.testing.assert_array_equal(found[0], wanted[0])
  np.testing.assert_allclose(found[1], wanted[1], rtol=1e-6)


def test_a_block_begins_as_its_shortcut():
  model = dataclasses.replace(NECK, zero_init=True)
  params = model.init(jax.random.key(0), SHAPE, CLASSES)
  x = images()
  first, other = jax.jit(lambda p: model.forward(p, x, train=True).features)(params)
  without = jax.tree.map(lambda p: p, params)
  del without["stage2_2"]
  shorter = dataclasses.replace(model, blocks=(1, 1))
  alone = jax.jit(lambda p: shorter.forward(p, x, train=True).features)(without)
  np.testing.assert_array_equal(first, alone[0])
  np.testing.assert_array_equal(other, alone[1])
  last = {n: x for n, x in tree.named_leaves(params).items() if not np.any(x)}
  scales = [n for n in last if n.endswith("scale")]
  assert scales == [f"stage{s}/conv3/norm/scale" for s in ("1_1", "2_1", "2_2")]


def test_block_floating_point_trains_it_again_under_checkpoint():
  model, bfp = dataclasses.replace(NECK, blocks=(1,)), BlockFloat(4)
  apply = lambda params, x: model.forward(params, x, train=True).logits

  def loss(params, x, key):
    noisy = quantize(apply, [Rule("*", bfp, bfp, bfp)], key=key)
    return losses.cross_entropy(noisy(params, x), jnp.arange(2))

  slope_of = jax.jit(jax.grad(jax.checkpoint(loss)))
  slope = slope_of(init(model), images(), jax.random.key(0))
  for name, leaf in tree.named_leaves(slope).items():
    moving = name.endswith(("norm/mean", "norm/var"))
    assert np.all(np.isfinite(leaf)) and np.any(leaf != 0) != moving, name


def test_names_that_a_rule_of_tensor_parallelism_selects():
  params = jax.eval_shape(
    lambda: models.ImageNetResNet.of(50).init(jax.random.key(0), (224, 224, 3), 1000)
  )
  names = tree.names(params)
  kernels = [n for n in names if n.endswith("kernel")]
  globs = ["stem/*", "stage?_*/conv[123]/*", "stage?_*/shortcut/*", "logits/*"]
  found = [n for glob in globs for n in tree.match(f"{glob}kernel", names)]
  assert sorted(found) == sorted(kernels) and len(found) == 54


@pytest.mark.parametrize(
  ("fields", "complaint"),
  [
    ({"blocks": ()}, "positive sizes"),
    ({"blocks": (2, 0)}, "positive sizes"),
    ({"width": 0}, "positive sizes"),
    ({"momentum": 1.0}, "momentum=1.0 must be in"),
  ],
)
def test_fields_that_make_no_network_are_refused(fields, complaint):
  with pytest.raises(ValueError, match=complaint):
    models.ImageNetResNet(**fields)


def test_other_depths_are_refused():
  with pytest.raises(ValueError, match="depth=20 is none of 18, 34, 50, 101"):
    models.ImageNetResNet.of(20)
  with pytest.raises(ValueError, match="at least 32 pixels"):
    models.ImageNetResNet().init(jax.random.key(0), (28, 28, 1), 10)
