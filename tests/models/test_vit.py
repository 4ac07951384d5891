"""The vision transformer has its published sizes, and is its blocks in numpy."""

import dataclasses
import functools
import math
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import models, quantize, trace, tree
from jaxcodesign.numerics.formats import BlockFloat
from jaxcodesign.programs.precision import Rule
from jaxcodesign.training import losses

SMALL = models.Vit(patch=4, width=8, depth=2, heads=2, mlp=3)
TOKEN = dataclasses.replace(SMALL, pool="class")
SHAPE, CLASSES = (8, 7, 3), 5  # a column of zeros makes 2 x 2 patches


@functools.cache
def init(model):
  """Parameters whose biases and scales are no longer zeros and ones."""
  params = jax.jit(lambda key: model.init(key, SHAPE, CLASSES))(jax.random.key(1))
  rng = np.random.default_rng(0)
  noise = lambda p: p + 0.3 * rng.normal(size=p.shape).astype("f4")
  return jax.tree.map(noise, params)


def images(count=3, seed=0):
  return jnp.asarray(np.random.default_rng(seed).random((count, *SHAPE), np.float32))


def loss(apply, params, x):
  return losses.cross_entropy(apply(params, x), jnp.arange(len(x)))


def norm(p, x):
  centred = x - x.mean(-1, keepdims=True)
  return (
    centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]
  )


def dense(p, x):
  return x @ p["kernel"] + p["bias"]


def by_hand(model, params, image):
  """[H, W, C] -> logits and normalized tokens in numpy, head by head."""
  p, size = params, model.patch
  h, w, c = image.shape
  canvas = np.zeros((math.ceil(h / size) * size, math.ceil(w / size) * size, c))
  canvas[:h, :w] = image
  cut = [
    canvas[i : i + size, j : j + size].ravel()
    for i in range(0, h, size)
    for j in range(0, w, size)
  ]
  x = dense(p["patch"], np.stack(cut))
  if model.pool == "class":
    x = np.concatenate([p["class_token"], x])
  x = x + p["positions"]
  for i in range(model.depth):
    b = jax.tree.map(operator.itemgetter(i), p["blocks"])
    n = norm(b["norm1"], x)
    parts = (np.split(dense(b[m], n), model.heads, axis=-1) for m in "qkv")
    mixed = []
    for q, k, v in zip(*parts):
      scores = np.exp(q @ k.T / math.sqrt(q.shape[-1]))
      mixed.append(scores / scores.sum(-1, keepdims=True) @ v)
    x = x + dense(b["o"], np.concatenate(mixed, -1))
    u = dense(b["up"], norm(b["norm2"], x))
    x = x + dense(b["down"], u * (1 + np.vectorize(math.erf)(u / math.sqrt(2))) / 2)
  x = norm(p["norm"], x)
  return dense(p["logits"], x[0] if model.pool == "class" else x.mean(0)), x


@pytest.mark.parametrize("model", [SMALL, TOKEN], ids=["mean", "class"])
def test_forward_and_slope_are_those_of_numpy(model):
  params, x = init(model), images()
  exact = jax.tree.map(np.float64, params)
  found = jax.jit(model.forward)(params, x)
  logits, tokens = zip(*(by_hand(model, exact, image) for image in x))
  np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(found.features[0], tokens, rtol=1e-4, atol=1e-4)

  def exact_loss(p):
    z = np.stack([by_hand(model, p, image)[0] for image in x])
    return np.mean(np.log(np.exp(z).sum(-1)) - np.diagonal(z))

  rng = np.random.default_rng(3)
  way = jax.tree.map(lambda p: rng.normal(size=p.shape), exact)
  moved = lambda h: jax.tree.map(lambda p, d: p + h * d, exact, way)
  rise = (exact_loss(moved(1e-5)) - exact_loss(moved(-1e-5))) / 2e-5
  slope = jax.jit(jax.grad(functools.partial(loss, model.apply)))(params, x)
  chex.assert_trees_all_equal_shapes_and_dtypes(slope, params)
  along = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (slope, way))))
  np.testing.assert_allclose(along, rise, rtol=1e-3)


def test_computing_blocks_again_changes_no_value_and_no_slope():
  again = dataclasses.replace(SMALL, remat=True)
  params, x = init(SMALL), images()
  plain, kept = (
    jax.value_and_grad(functools.partial(loss, apply))
    for apply in (SMALL.apply, jax.checkpoint(again.apply))
  )
  found, wanted = jax.jit(lambda *args: (kept(*args), plain(*args)))(params, x)
  chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-6)
  for slope, repeats in ((plain, False), (kept, True)):
    roles = {g.role for g in trace(slope)(params, x).gemms}
    assert ("recompute" in roles) == repeats


@pytest.mark.parametrize(
  ("model", "width", "parameters", "gmacs"),
  [
    (models.Vit.tiny(), 192, 5_717_416, 1.25),
    (models.Vit.small(), 384, 22_050_664, 4.60),
    (models.Vit.base(remat=True), 768, 86_567_656, 17.56),
  ],
)
def test_published_sizes(model, width, parameters, gmacs):
  shape = (224, 224, 3)
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), shape, 1000))
  # By hand: patches and 198 learned tokens, 12 blocks of 12 D^2 + 13 D, 1000 classes.
  d = width
  ends = (768 + 1) * d + 198 * d + 2 * d + 1000 * (d + 1)
  assert models.count(params) == parameters == ends + 12 * (12 * d + 13) * d
  work = trace(model.apply)(params, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
  assert work.macs / 1e9 == pytest.approx(gmacs, abs=0.006)


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_its_products_by_name_and_formula(pool):
  model = models.Vit(depth=7, pool=pool)
  shape, d, t = (32, 32, 3), 192, 64 + (pool == "class")
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), shape, 10))
  work = trace(model.apply)(params, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
  blocks = [
    *[(f"blocks/{name}/kernel", 1, 2 * t, d, d) for name in "qkv"],
    ("", 6, t, d // 3, t),
    ("", 6, t, t, d // 3),
    ("blocks/o/kernel", 1, 2 * t, d, d),
    ("blocks/up/kernel", 1, 2 * t, d, 4 * d),
    ("blocks/down/kernel", 1, 2 * t, 4 * d, d),
  ]
  ends = [("patch/kernel", 1, 128, 48, d), ("logits/kernel", 1, 2, d, 10)]
  found = [((g.rhs, g.batch, g.m, g.k, g.n), g.count) for g in work.gemms]
  attention = lambda gemm: (gemm[0] == "", gemm)
  key = lambda hit: attention(hit[0])
  expected = [*[(b, 7) for b in blocks], *[(e, 1) for e in ends]]
  assert sorted(found, key=key) == sorted(expected, key=key)


def test_names_that_a_rule_of_tensor_parallelism_selects():
  names = tree.names(init(TOKEN))
  columns = tree.match("blocks/[qkv]/*", names) + tree.match("blocks/up/*", names)
  rows = tree.match("blocks/[!qkvu]*/kernel", names)
  assert sorted(rows) == ["blocks/down/kernel", "blocks/o/kernel"]
  kernels = [n for n in names if n.startswith("blocks") and n.endswith("kernel")]
  assert sorted(kernels) == sorted([*rows, *(n for n in columns if "kernel" in n)])
  # The outputs of q, k, v and up are cut, the inputs of o and down: no exchange within.
  blocks = init(TOKEN)["blocks"]
  assert blocks["up"]["kernel"].shape == (2, 8, 24)
  assert blocks["down"]["kernel"].shape == (2, 24, 8)


def test_layers_begin_differently():
  kernel = SMALL.init(jax.random.key(0), SHAPE, CLASSES)["blocks"]["q"]["kernel"]
  assert not np.any(kernel[0] == kernel[1])


def test_block_floating_point_trains_it():
  model = dataclasses.replace(TOKEN, remat=True)
  bfp = BlockFloat(4)
  policy = [Rule("*", bfp, bfp, bfp)]
  params, x = init(model), images()

  @jax.jit
  @jax.grad
  def slope_of(params, x, key):
    return loss(quantize(model.apply, policy, key=key), params, x)

  slope = slope_of(params, x, jax.random.key(0))
  for name, leaf in tree.named_leaves(slope).items():
    assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), name


def test_bfloat16_is_near():
  params, x = init(TOKEN), images()
  half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), (params, x))
  found = jax.jit(TOKEN.apply)(*half)
  assert found.dtype == jnp.bfloat16
  wanted = jax.jit(TOKEN.apply)(params, x)
  assert np.max(np.abs(found.astype(jnp.float32) - wanted)) < 0.1 * np.std(wanted)


@pytest.mark.parametrize(
  ("fields", "complaint"),
  [
    ({"patch": 0}, "positive sizes"),
    ({"depth": 0}, "positive sizes"),
    ({"width": 100}, "heads=3 do not divide width=100"),
    ({"pool": "max"}, "pool='max' is none of"),
  ],
)
def test_fields_that_make_no_network_are_refused(fields, complaint):
  with pytest.raises(ValueError, match=complaint):
    models.Vit(**fields)
