"""What every network promises. Add yours to MODELS, write nothing else."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import models, tree
from jaxcodesign.training import losses

pytestmark = pytest.mark.unoptimized

BLOCKS = {"width": 0.25, "stem": (32, 1), "blocks": ((32, 2), (64, 1))}
MODELS = [
  models.Cnn(channels=(8,), hidden=8),
  models.ResNet(blocks=1, width=4),
  models.ResNet(blocks=1, width=4, convolution="shift", expansion=2, seed=5),
  models.MobileNet(**BLOCKS),
  models.MobileNet(**BLOCKS, separable=False, activation="relu6"),
]
SHAPE, CLASSES = (8, 7, 3), 5

each = pytest.mark.parametrize("model", MODELS, ids=lambda m: repr(m)[:40])


@functools.cache
def init(model, seed=0):
  return model.init(jax.random.key(seed), SHAPE, CLASSES)


def images(count=3, seed=0):
  return np.random.default_rng(seed).random((count, *SHAPE), np.float32)


def statistics(params):
  return [n for n in tree.names(params) if n.endswith(("norm/mean", "norm/var"))]


@each
def test_shapes(model):
  params = init(model)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  out = jax.eval_shape(model.forward, params, images())
  assert isinstance(out, models.Forward) and out.logits.shape == (3, CLASSES)
  assert out.features and all(len(x) == 3 for x in out.features)
  assert out.stats is None


@each
def test_keys_determine_the_weights(model):
  chex.assert_trees_all_equal(init(model), init.__wrapped__(model))
  one, other = (tree.named_leaves(init(model, seed)) for seed in (0, 1))
  kernels = [name for name in one if name.endswith("kernel")]
  assert kernels and not any(np.array_equal(one[n], other[n]) for n in kernels)


@each
def test_a_training_step_is_traced_once_and_moves_every_leaf(model):
  params = init(model)

  traces = []

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def step(params, x):
    traces.append(x)
    out = model.forward(params, x, train=True)
    return losses.cross_entropy(out.logits, jnp.arange(3)), out.stats

  for seed in range(2):
    grads, stats = step(params, images(seed=seed))
  assert len(traces) == 1
  chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
  moving = statistics(params)
  for name, slope in tree.named_leaves(grads).items():
    assert np.any(slope != 0) == (name not in moving), name
  if not moving:
    assert stats is None
    return
  # None holds a place: every other leaf is there, and has moved.
  merge = lambda new, p: p if new is None else new
  merged = jax.tree.map(merge, stats, params, is_leaf=lambda x: x is None)
  chex.assert_trees_all_equal_shapes_and_dtypes(merged, params)
  assert tree.names(stats) == moving
  before, after = tree.named_leaves(params), tree.named_leaves(merged)
  for name in before:
    assert np.array_equal(before[name], after[name]) == (name not in moving), name


@each
def test_an_image_is_classified_alone(model):
  params = init(model)

  @jax.jit
  def both(params, x):
    apart = jax.vmap(lambda image: model.apply(params, image[None])[0])(x)
    return model.apply(params, x), apart

  together, apart = both(params, images())
  np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-5)


@each
def test_other_parameters_are_refused(model):
  params = init(model)
  first = next(iter(params))
  renamed = {("other" if k == first else k): v for k, v in params.items()}
  for wrong in (renamed, params[first], {}):
    with pytest.raises(ValueError, match="needs parameters"):
      model.apply(wrong, images())
  leaves, structure = jax.tree.flatten(params)
  for i, name in enumerate(tree.names(params)):
    if not name.startswith(model.head):
      # One that would broadcast, or be contracted, without a complaint.
      wider = [x[None] if j == i else x for j, x in enumerate(leaves)]
      with pytest.raises(ValueError, match=f"needs {name} of shape"):
        model.apply(jax.tree.unflatten(structure, wider), images())


@each
def test_sizes_that_do_not_fit_are_refused(model):
  key = jax.random.key(0)
  with pytest.raises(ValueError, match=f"at least {model.reduction} pixels"):
    model.init(key, (model.reduction - 1, 9, 3), CLASSES)
  for shape, classes in (((8, 8), 5), ((8, 8, 0), 5), ((8, 8, 3), 0)):
    with pytest.raises(ValueError, match=r"must be \(H, W, C\) and classes"):
      model.init(key, shape, classes)


@each
def test_the_smallest_image_is_enough(model):
  shape = (model.reduction, model.reduction, 1)
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), shape, 2))
  out = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((1, *shape), "f4"))
  assert out.shape == (1, 2)
