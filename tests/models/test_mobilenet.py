"""MobileNet has its published size, and is its layers in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import models, trace, tree
from jaxcodesign.models import published
from tests.models import numpy_layers

SMALL = models.MobileNet(width=0.5, stem=(16, 1), blocks=((32, 2), (32, 1), (48, 2)))


def work(model, shape, classes):
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), shape, classes))
  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  return params, trace(model.apply)(params, x)


@pytest.mark.parametrize("separable", [True, False])
def test_the_default_is_the_published_network(separable):
  model = models.MobileNet(separable=separable)
  params, ours = work(model, (224, 224, 3), 1000)
  theirs = published.mobilenet(separable=separable)
  expected = trace(theirs.fn)(theirs.params, theirs.inputs)
  sizes = lambda w: [(g.name, g.batch, g.m, g.k, g.n) for g in w.gemms]
  assert sizes(ours) == sizes(expected)
  assert ours.macs == expected.macs
  named = tree.named_leaves(params).items()
  trained = sum(x.size for n, x in named if not n.endswith(("mean", "var")))
  assert trained == models.count(theirs.params)


def test_separable_convolutions_save_a_factor_of_8_56():
  macs = [
    work(models.MobileNet(separable=s), (224, 224, 3), 1000)[1].macs
    for s in (False, True)
  ]
  assert round(macs[0] / macs[1], 2) == 8.56


def test_width_multiplies_filters_but_leaves_eight():
  params, _ = work(models.MobileNet(width=0.2), (224, 224, 3), 10)
  filters = [params["stem"]["kernel"].shape[-1]]
  filters += [
    params[f"block{i:02d}"]["pointwise"]["kernel"].shape[-1] for i in (1, 2, 13)
  ]
  assert filters == [8, 12, 25, 204]


@pytest.mark.parametrize("separable", [True, False])
def test_apply_matches_numpy(separable):
  model = models.MobileNet(
    width=SMALL.width, stem=SMALL.stem, blocks=SMALL.blocks, separable=separable
  )
  shape = (9, 6, 3)
  init = jax.jit(lambda key: model.init(key, shape, 5))
  params = numpy_layers.disturbed(init(jax.random.key(1)))
  x = np.random.default_rng(0).random((2, *shape), np.float32)
  found = jax.jit(model.forward)(params, x)

  exact = jax.tree.map(np.float64, params)
  relu = lambda x: np.maximum(x, 0)
  y, sizes = relu(numpy_layers.layer(exact["stem"], np.float64(x))), []
  for i, (_, stride) in enumerate(model.blocks, start=1):
    sizes += [y] if stride > 1 else []
    p = exact[f"block{i:02d}"]
    if separable:
      y = relu(numpy_layers.layer(p["depthwise"], y, stride=stride, depthwise=True))
      y = relu(numpy_layers.normalized(p["pointwise"], y @ p["pointwise"]["kernel"]))
    else:
      y = relu(numpy_layers.layer(p, y, stride=stride))
  logits = numpy_layers.logits(exact["logits"], y)
  np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)
  shapes = [(2, 9, 6, 8), (2, 5, 3, 16), (2, 3, 2, 24)]
  assert [f.shape for f in found.features] == shapes
  for a, b in zip(found.features, (*sizes, y), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_strides_are_fields():
  assert models.MobileNet().reduction == 32 and SMALL.reduction == 4
  with pytest.raises(ValueError, match="at least 32 pixels"):
    models.MobileNet().init(jax.random.key(0), (28, 28, 1), 10)
  small = models.MobileNet(stem=(32, 1), blocks=((64, 1), (128, 2), (256, 2)))
  _, products = work(small, (28, 28, 1), 10)
  assert {g.m for g in products.gemms} == {28**2, 14**2, 7**2, 1}


@pytest.mark.parametrize(
  ("fields", "complaint"),
  [
    ({"width": 0.0}, "positive filters, strides and width"),
    ({"width": math.nan}, "positive filters, strides and width"),
    ({"stem": (0, 1)}, "positive filters, strides and width"),
    ({"blocks": ((8, 0),)}, "positive filters, strides and width"),
    ({"activation": "tanh"}, "activation='tanh' is none of"),
    ({"momentum": -0.1}, "momentum=-0.1 must be in"),
  ],
)
def test_fields_that_make_no_network_are_refused(fields, complaint):
  with pytest.raises(ValueError, match=complaint):
    models.MobileNet(**fields)
