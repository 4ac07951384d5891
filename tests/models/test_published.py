"""Published networks have their published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import trace
from jaxcodesign.models import published

# n x k @ m: filters, window times channels, pixels (im2col).
VGG16 = [
  (64, 27, 50176), (64, 576, 50176), (128, 576, 12544), (128, 1152, 12544),
  (256, 1152, 3136), *[(256, 2304, 3136)] * 2, (512, 2304, 784),
  *[(512, 4608, 784)] * 2, *[(512, 4608, 196)] * 3,
  (4096, 25088, 1), (4096, 4096, 1), (1000, 4096, 1),
]  # fmt: skip


def workload(model):
  return trace(model.fn)(model.params, model.inputs)


def weights(model):
  """Parameters without biases and normalization."""
  return sum(x.size for x in jax.tree.leaves(model.params) if len(x.shape) > 1)


def test_vgg16_is_these_16_matrices():
  work = workload(published.vgg16())
  assert [(g.n, g.k, g.m) for g in work.gemms] == VGG16
  assert all(g.rhs.endswith("/kernel") and not g.lhs for g in work.gemms)
  assert work.parameters == 138_357_544
  assert work.macs == 15_470_264_320


def test_a_batch_multiplies_rows_only():
  one, three = (workload(published.vgg16(image=32, batch=b)) for b in (1, 3))
  assert [3 * g.m for g in one.gemms] == [g.m for g in three.gemms]
  assert one.parameters == three.parameters


def test_mobilenet():
  separable, full = published.mobilenet(), published.mobilenet(separable=False)
  work, other = workload(separable), workload(full)
  # By hand from table 1 of the paper: 3x3x3x32 on 112 x 112 first, 1024x1000 last, and
  # for each block from C to N channels on P pixels 9 C P + C N P against 9 C N P.
  blocks = [
    (32, 64, 112), (64, 128, 56), (128, 128, 56), (128, 256, 28), (256, 256, 28),
    (256, 512, 14), *[(512, 512, 14)] * 5, (512, 1024, 7), (1024, 1024, 7),
  ]  # fmt: skip
  ends = 27 * 32 * 112**2 + 1024 * 1000
  assert work.macs == ends + sum((9 * c + c * n) * p * p for c, n, p in blocks)
  assert other.macs == ends + sum(9 * c * n * p * p for c, n, p in blocks)
  assert round(work.macs / 1e6, 1) == 568.7 and round(other.macs / 1e6) == 4867
  assert round(other.macs / work.macs, 2) == 8.56
  assert work.parameters == 4_231_976  # trainable, batch normalization included
  assert round(weights(separable) / 1e6, 2) == 4.21
  assert round(weights(full) / 1e6, 1) == 29.3


def test_a_depthwise_layer_is_a_batch_of_single_columns():
  work = workload(published.mobilenet())
  depthwise = [g for g in work.gemms if "/depthwise/" in g.rhs]
  assert len(depthwise) == 13
  assert all((g.k, g.n) == (9, 1) and g.batch in (32, 64, 128, 256, 512, 1024)
             for g in depthwise)  # fmt: skip


@pytest.mark.parametrize(
  # Parameters of the trained networks that torchvision distributes, and its GFLOPS.
  ("depth", "parameters", "gmacs"),
  [(18, 11_689_512, 1.81), (34, 21_797_672, 3.66), (50, 25_557_032, 4.09),
   (101, 44_549_160, 7.80)],
)  # fmt: skip
def test_resnet(depth, parameters, gmacs):
  work = workload(published.resnet(depth))
  assert work.parameters == parameters
  assert work.macs / 1e9 == pytest.approx(gmacs, abs=0.006)


def test_resnet_runs_and_refuses_other_depths():
  model = published.resnet(50, image=32, classes=10, batch=2)
  params = jax.eval_shape(model.init, jax.random.key(0))
  assert jax.eval_shape(model.fn, params, model.inputs).shape == (2, 10)
  with pytest.raises(ValueError, match="depth=19 is none of 18"):
    published.resnet(19)


def nanogpt_flops(size, t):
  """Forward FLOP as nanoGPT's transformer_sizing counts them: 2 a multiplication."""
  d = size.width
  attention = t * d * 3 * d + t * t * d + t * t * d + t * d * d
  mlp = 2 * t * d * 4 * d
  return 2 * (size.layers * (attention + mlp) + t * d * size.vocabulary)


@pytest.mark.parametrize(
  ("size", "tera", "parameters"),
  [
    (published.GPT2_SMALL, 0.292, 124_439_808),
    (published.GPT2_MEDIUM, 0.827, 354_823_168),
    (published.GPT2_LARGE, 1.775, 774_030_080),
    (published.GPT2_XL, 3.507, 1_557_611_200),
  ],
)
def test_gpt2_at_1024_tokens(size, tera, parameters):
  work = workload(published.gpt2(size))
  assert 2 * work.macs == nanogpt_flops(size, 1024)
  assert round(2 * work.macs / 1e12, 3) == tera
  assert work.parameters == parameters
  assert {g.count for g in work.gemms} == {size.layers, 1}


def test_gpt2_small_to_the_last_flop():
  work = workload(published.gpt2())
  assert 2 * work.macs == 291_648_307_200
  # Two products of activations per layer, all others have a weight; the head is tied.
  named = [g.rhs for g in work.gemms]
  blocks = [f"blocks/{n}/kernel" for n in ("qkv", "proj", "up", "down")]
  assert named == [blocks[0], "", "", *blocks[1:], "wte"]


def test_a_training_step_is_three_forward_passes():
  model = published.gpt2(published.Gpt2(3, 2, 8, vocabulary=11, context=6), tokens=6)
  loss = lambda params, ids: jnp.sum(model.fn(params, ids))
  assert trace(jax.grad(loss))(model.params, model.inputs).macs == (
    3 * workload(model).macs
  )


TINY = published.Gpt2(layers=3, heads=2, width=8, vocabulary=11, context=6)


def test_scanned_and_unrolled_layers_are_the_same():
  scanned = published.gpt2(TINY, tokens=5, batch=2)
  unrolled = published.gpt2(TINY, tokens=5, batch=2, scan=False)
  one, other = workload(scanned), workload(unrolled)
  assert (one.macs, one.parameters) == (other.macs, other.parameters)
  work = lambda w: sum(v.elements * v.count for v in w.vector_ops if v.op == "exp")
  assert work(one) == work(other) == 3 * 2 * 2 * 5 * 5

  params = jax.jit(scanned.init)(jax.random.key(0))
  layer = lambda i: jax.tree.map(lambda leaf: leaf[i], params["blocks"])
  apart = {**params, "blocks": [layer(i) for i in range(3)]}
  ids = jnp.arange(10).reshape(2, 5)
  np.testing.assert_allclose(
    jax.jit(scanned.fn)(params, ids),
    jax.jit(unrolled.fn)(apart, ids),
    rtol=1e-4,
    atol=1e-6,
  )


def test_gpt2_is_causal():
  model = published.gpt2(TINY, tokens=6)
  params, fn = jax.jit(model.init)(jax.random.key(0)), jax.jit(model.fn)
  ids = jnp.arange(6)[None]
  before, after = (fn(params, x) for x in (ids, ids.at[0, 4].set(10)))
  changed = jnp.abs(before - after).max(axis=(0, 2)) > 0
  assert changed.tolist() == [False] * 4 + [True] * 2


@pytest.mark.parametrize(
  ("model", "classes"),
  [
    (published.vgg16(image=32, classes=3, batch=2), (2, 3)),
    (published.mobilenet(image=32, classes=3, batch=2), (2, 3)),
    (published.mobilenet(separable=False, image=32, classes=3), (1, 3)),
    (published.gpt2(TINY, tokens=4), (1, 4, 11)),
  ],
)
def test_init_fits_the_function(model, classes):
  params = jax.eval_shape(model.init, jax.random.key(0))
  same = lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype)
  assert jax.tree.all(jax.tree.map(same, params, model.params))
  out = jax.eval_shape(model.fn, params, model.inputs)
  assert (out.shape, out.dtype) == (classes, jnp.float32)


def test_a_drawn_mobilenet_keeps_its_signal():
  model = published.mobilenet(image=32, classes=10)
  params = jax.jit(model.init)(jax.random.key(0))
  out = jax.jit(model.fn)(params, jax.random.normal(jax.random.key(1), (1, 32, 32, 3)))
  assert 0.01 < jnp.std(out) < 100


@pytest.mark.parametrize(
  ("build", "complaint"),
  [
    (lambda: published.vgg16(image=100), "multiple of 32"),
    (lambda: published.gpt2(tokens=2000), "context of 1024"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(build, complaint):
  with pytest.raises(ValueError, match=complaint):
    build()
