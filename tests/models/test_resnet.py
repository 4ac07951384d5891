"""ResNet-20 has its published size; shifts and 3x3 convolutions are one network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import models, quantize, trace, tree
from jaxcodesign.models.shift import draw
from jaxcodesign.numerics.formats import Fixed
from jaxcodesign.programs.precision import Rule, describe
from tests.models import numpy_layers

SMALL = models.ResNet(blocks=2, width=4)
SHIFT = dataclasses.replace(SMALL, convolution="shift", expansion=2, seed=3)
SHAPE = (9, 6, 3)


def shapes(model, shape=(32, 32, 3), classes=10):
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), shape, classes))
  return params, jax.ShapeDtypeStruct((1, *shape), jnp.float32)


def trained(params):
  """Parameters without the running statistics."""
  named = tree.named_leaves(params).items()
  return sum(x.size for n, x in named if not n.endswith(("mean", "var")))


def test_resnet_20_has_its_published_size():
  params, _ = shapes(models.ResNet())
  # By hand: a 3x3 kernel and two values a channel for 19 convolutions, a dense layer.
  convs = [(3, 16), *[(16, 16)] * 6, (16, 32), *[(32, 32)] * 5]
  convs += [(32, 64), *[(64, 64)] * 5]
  expected = sum(9 * c * n + 2 * n for c, n in convs) + 64 * 10 + 10
  assert trained(params) == expected == 269_722
  assert models.count(params) == expected + 2 * sum(n for _, n in convs)


@pytest.mark.parametrize("convolution", ["3x3", "shift"])
def test_its_products_by_name_and_formula(convolution):
  model = models.ResNet(blocks=2, width=8, convolution=convolution, expansion=3)
  params, x = shapes(model)
  taps = 9 if convolution == "3x3" else 1
  expected = [("stem/kernel", 32 * 32, 27, 8)]
  channels = 8
  for stage, width in enumerate((8, 16, 32)):
    pixels = (32 >> stage) ** 2
    for block in (1, 2):
      name = f"stage{stage + 1}_{block}/conv"
      expected.append((f"{name}1/kernel", pixels, taps * channels, 3 * width))
      expected.append((f"{name}2/kernel", pixels, taps * 3 * width, width))
      channels = width
  expected.append(("logits/kernel", 1, 32, 10))
  work = trace(model.apply)(params, x)
  assert [(g.rhs, g.m, g.k, g.n) for g in work.gemms] == expected
  assert work.macs == sum(m * k * n for _, m, k, n in expected)
  moves = sum(v.count for v in work.vector_ops if v.op == "gather")
  assert moves == (0 if convolution == "3x3" else 12)


def numpy_apply(model, params, x):
  """Logits and features of a network of 3x3 convolutions."""
  clip = {"relu": np.inf, "relu6": 6}[model.activation]
  relu = lambda x: np.clip(x, 0, clip)
  x = relu(numpy_layers.layer(params["stem"], x))
  features = []
  for stage in (1, 2, 3):
    for block in range(1, model.blocks + 1):
      p = params[f"stage{stage}_{block}"]
      stride = 2 if stage > 1 and block == 1 else 1
      y = relu(numpy_layers.layer(p["conv1"], x, stride=stride))
      y = numpy_layers.layer(p["conv2"], y)
      short = np.zeros_like(y)
      short[..., : x.shape[-1]] = x[:, ::stride, ::stride]
      x = relu(y + short)
    features.append(x)
  return numpy_layers.logits(params["logits"], x), features


def widened(model, params):
  """Parameters of the 3x3 network that a shift network is."""
  wide = dict(params)
  for stage, block in np.ndindex(3, model.blocks):
    name = f"stage{stage + 1}_{block + 1}"
    wide[name] = {}
    for i in (0, 1):
      p = params[name][f"conv{i + 1}"]
      kernel = np.zeros((3, 3, *p["kernel"].shape))
      shifts = draw(p["kernel"].shape[0], (model.seed, stage, block, i))
      for c, (down, right) in enumerate(shifts):
        kernel[1 + down, 1 + right, c] = p["kernel"][c]
      wide[name][f"conv{i + 1}"] = {**p, "kernel": kernel}
  return wide


@pytest.mark.parametrize(
  "model", [SMALL, SHIFT, dataclasses.replace(SMALL, blocks=1, activation="relu6")]
)
def test_apply_matches_numpy(model):
  params = numpy_layers.disturbed(model.init(jax.random.key(1), SHAPE, 5))
  x = 10 * np.random.default_rng(0).random((2, *SHAPE), np.float32)
  found = jax.jit(model.forward)(params, x)
  exact = jax.tree.map(np.float64, params)
  exact = widened(model, exact) if model.convolution == "shift" else exact
  logits, features = numpy_apply(model, exact, np.float64(x))
  np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)
  assert [f.shape for f in found.features] == [
    (2, 9, 6, 4), (2, 5, 3, 8), (2, 3, 2, 16)
  ]  # fmt: skip
  for a, b in zip(found.features, features, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_seed_moves_the_channels_and_not_the_weights():
  others = [dataclasses.replace(SHIFT, blocks=1, seed=s) for s in (0, 0, 1)]
  params = others[0].init(jax.random.key(0), SHAPE, 5)
  same = others[2].init(jax.random.key(0), SHAPE, 5)
  assert jax.tree.all(jax.tree.map(np.array_equal, params, same))
  x = np.random.default_rng(0).random((2, *SHAPE), np.float32)
  first, again, other = (jax.jit(m.apply)(params, x) for m in others)
  np.testing.assert_array_equal(first, again)
  assert not np.allclose(first, other)


def test_its_products_are_quantized_in_training_too():
  model = dataclasses.replace(SHIFT, blocks=1)
  params = model.init(jax.random.key(0), SHAPE, 5)
  x = np.random.default_rng(0).random((4, *SHAPE), np.float32)
  policy = (Rule("stage*/kernel", Fixed(4), Fixed(8)),)

  train = lambda params, x: model.forward(params, x, train=True).logits
  both = jax.jit(lambda *a: (quantize(model.apply, policy)(*a), model.apply(*a)))
  assert not np.allclose(*both(params, x), atol=1e-3)
  for fn in (model.apply, train):
    rows = describe(fn, policy)(params, x).rows
    assert [row.rule for row in rows] == ["-", *["0"] * 6, "-"]
  loss = lambda params: jnp.sum(quantize(train, policy)(params, x))
  roles = trace(jax.grad(loss))(params).gemms
  backward = [g.output for g in roles if g.role == "weight_gradient"]
  assert len(backward) == 8 and all(n.endswith("kernel") for n in backward)


@pytest.mark.parametrize(
  ("fields", "complaint"),
  [
    ({"blocks": 0}, "positive sizes"),
    ({"width": 0}, "positive sizes"),
    ({"expansion": 0}, "positive sizes"),
    ({"seed": -1}, "seed >= 0"),
    ({"convolution": "5x5"}, "convolution='5x5' is none of"),
    ({"activation": "gelu"}, "activation='gelu' is none of"),
    ({"momentum": 1.0}, "momentum=1.0 must be in"),
  ],
)
def test_fields_that_make_no_network_are_refused(fields, complaint):
  with pytest.raises(ValueError, match=complaint):
    models.ResNet(**fields)
