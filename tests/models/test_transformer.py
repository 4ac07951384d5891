"""A language model to train: llama's function, sound first weights, an honest loss."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import optax
import pytest

from jaxcodesign import quantize, trace, tree
from jaxcodesign.data.text import tokens_of
from jaxcodesign.models import llama
from jaxcodesign.models.transformer import Transformer
from jaxcodesign.numerics.formats import BlockFloat
from jaxcodesign.programs.precision import Rule
from jaxcodesign.training.losses import next_token_loss
from tests.experiments.test_language import write

SMALL = Transformer(
  vocabulary=24, width=16, depth=2, heads=4, kv_heads=2, hidden=24, remat=True
)


@functools.cache
def init(model):
  """Parameters whose scales are not one."""
  factor = lambda p: p * np.float32(np.random.default_rng(0).uniform(0.5, 1.5, p.shape))
  return jax.tree.map(factor, model.init(jax.random.key(0)))


def tokens(shape=(3, 7), vocabulary=24, seed=0):
  return np.random.default_rng(seed).integers(0, vocabulary, shape, np.int32)


def loss(apply, params, batch):
  return next_token_loss(apply(params, batch[:, :-1]), batch)[0]


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_llama(tied):
  model = dataclasses.replace(SMALL, tied=tied)
  params, batch = init(model), tokens()
  shape = llama.Shape(4, 2, 10_000.0, 1e-5)  # which the tests of language models check
  both = lambda p, t: (model.apply(p, t), llama.logits(shape, p, t))
  found, wanted = jax.jit(both)(params, batch)
  assert found.shape == (3, 7, 24) and ("head" in params) == (not tied)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_future_changes_nothing():
  batch, later = tokens(), tokens()
  later[:, 4:] = tokens(seed=1)[:, 4:]
  apply = jax.jit(SMALL.apply)
  found, other = apply(init(SMALL), batch), apply(init(SMALL), later)
  np.testing.assert_array_equal(found[:, :4], other[:, :4])
  assert np.all(np.any(found[:, 4:] != other[:, 4:], axis=(1, 2)))


def test_gradients_with_and_without_computing_blocks_again():
  params, batch = init(SMALL), tokens()
  plain = dataclasses.replace(SMALL, remat=False)
  slopes = [jax.grad(functools.partial(loss, model.apply)) for model in (SMALL, plain)]
  found, wanted = jax.jit(lambda *args: [slope(*args) for slope in slopes])(
    params, batch
  )
  chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-6)
  for slope, repeats in zip(slopes, (True, False)):
    roles = {g.role for g in trace(slope)(params, batch).gemms}
    assert ("recompute" in roles) == repeats
  check_grads(
    jax.jit(lambda p: loss(plain.apply, p, batch)),
    (params,),
    order=1,
    modes=["rev"],
    rtol=2e-2,
  )


def test_block_floating_point_trains_it():
  bfp = BlockFloat(4)

  @jax.jit
  @jax.grad
  def slope_of(params, batch, key):
    noisy = quantize(SMALL.apply, [Rule("*", bfp, bfp, bfp)], key=key)
    return loss(noisy, params, batch)

  slope = slope_of(init(SMALL), tokens(), jax.random.key(0))
  for name, leaf in tree.named_leaves(slope).items():
    assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), name


@pytest.mark.parametrize(
  ("model", "parameters"),
  [
    # Elements of all tensors of the released file.
    (Transformer.smollm2_135m(), 134_515_008),
    # An embedding, 12 blocks of 12 D^2 + 2 D, a norm: GPT-2 without positions, biases.
    (
      Transformer.gpt2_small(remat=True),
      50_257 * 768 + 12 * (12 * 768 + 2) * 768 + 768,
    ),
  ],
)
def test_published_sizes(model, parameters):
  params = jax.eval_shape(model.init, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(params)) == parameters
  shape = jax.ShapeDtypeStruct((1, 64), jnp.int32)
  named = tree.named_leaves(params).items()
  matrices = sum(x.size for name, x in named if not name.endswith("norm"))
  attention = 2 * 64 * 64 * model.width * model.depth
  assert trace(model.apply)(params, shape).macs == 64 * matrices + attention


def test_the_base_model_has_the_products_of_its_decoder():
  model = Transformer.vaswani_base(vocabulary=10_000)
  blocks = jax.eval_shape(model.init, jax.random.key(0))["blocks"]
  assert model.vocabulary == 10_000
  assert {blocks[name].shape for name in "qkvo"} == {(6, 512, 512)}
  gated = sum(blocks[name].size for name in ("gate", "up", "down"))
  assert 1 <= gated / (6 * 2 * 512 * 2048) < 1.01


def test_the_stream_does_not_grow_with_the_depth():
  sizes = []
  for depth in (2, 24):
    model = Transformer(width=64, depth=depth, hidden=128)
    params = model.init(jax.random.key(0))
    spread = {name: float(jnp.std(p)) for name, p in params["blocks"].items()}
    assert spread["up"] == pytest.approx(64**-0.5, rel=0.05)
    assert spread["down"] == pytest.approx((128 * 2 * depth) ** -0.5, rel=0.05)
    assert spread["o"] == pytest.approx((64 * 2 * depth) ** -0.5, rel=0.05)
    shape, x = llama.Shape(4, 4, 1e4, 1e-5), params["embed"][tokens((2, 32), 256)]
    step = lambda x, p, shape=shape: (llama.block(shape, p, x), None)
    last, _ = jax.lax.scan(step, x, params["blocks"])
    sizes.append(float(jnp.std(last)))
  assert sizes[1] < 1.3 * sizes[0]


def test_the_loss_is_its_definition():
  rng = np.random.default_rng(0)
  logits, batch = rng.normal(size=(4, 5, 6)).astype("f4"), tokens((4, 6), 6)
  logits[2, 3] = 0.5  # a tie
  batch[2, 4] = 0
  for weight in (None, [1, 0, 1, 1], [0, 0, 0, 0]):
    summed = hits = count = 0
    for b in range(4):
      if weight is not None and not weight[b]:
        continue
      for t in range(5):
        p = np.exp(np.float64(logits[b, t]))
        summed -= math.log(p[batch[b, t + 1]] / p.sum())
        hits += np.argmax(p) == batch[b, t + 1]
        count += 1
    given = None if weight is None else jnp.float32(weight)
    found = next_token_loss(jnp.asarray(logits), jnp.asarray(batch), given)
    assert {x.dtype for x in found} == {jnp.dtype("float32")}
    np.testing.assert_allclose(found, (summed / max(count, 1), hits, count), rtol=1e-5)


@pytest.mark.parametrize("wrong", [-1, 24])
def test_a_token_out_of_range_is_never_a_number(wrong):
  batch = tokens()
  batch[1, 2] = wrong
  logits = SMALL.apply(init(SMALL), batch)
  assert np.all(np.isnan(logits[1, 2:])) and np.all(np.isfinite(logits[::2]))
  assert np.isnan(next_token_loss(jnp.zeros((3, 6, 24)), batch)[0])


def test_names_that_a_rule_of_tensor_parallelism_selects():
  params = init(SMALL)
  names = tree.names(params)
  outputs = {
    name
    for glob in ("blocks/[qkv]", "blocks/gate", "blocks/up")
    for name in tree.match(glob, names)
  }
  inputs = {"blocks/o", "blocks/down"}
  matrices = {f"blocks/{name}" for name in llama.MATRICES}
  assert outputs | inputs == matrices and matrices <= set(names)
  assert params["blocks"]["up"].shape == (2, 24, 16)  # [L, out, in]
  assert params["blocks"]["down"].shape == (2, 16, 24)


def grammar(sentences):
  """Sentences of one form whose words are drawn: most letters follow from the last."""
  rng = np.random.default_rng(0)
  words = ("old red small wise", "fox crow king river", "sees finds loves")
  drawn = [[*rng.choice(kind.split(), sentences)] for kind in (*words, words[1])]
  return "".join(f"the {a} {n} {v} the {o}. " for a, n, v, o in zip(*drawn))


def test_a_small_model_learns_a_small_language(tmp_path):
  (tmp_path / "text.txt").write_text(grammar(1000))
  text = tokens_of(tmp_path, vocabulary=256)
  share = np.unique(text, return_counts=True)[1] / len(text)
  unigram = -np.sum(share * np.log(share))
  model = Transformer(width=32, depth=2, heads=2, kv_heads=1, hidden=64)
  optimizer = optax.adam(1e-2)

  @jax.jit
  def step(params, state, batch):
    value, slope = jax.value_and_grad(functools.partial(loss, model.apply))(
      params, batch
    )
    with jax.numpy_dtype_promotion("standard"):
      updates, state = optimizer.update(slope, state, params)
    return optax.apply_updates(params, updates), state, value

  params = model.init(jax.random.key(0))
  state, rng, losses = optimizer.init(params), np.random.default_rng(1), []
  for _ in range(150):
    starts = rng.integers(len(text) - 33, size=16)
    batch = np.stack([text[at : at + 33] for at in starts]).astype(np.int32)
    params, state, value = step(params, state, batch)
    losses.append(float(value))
  assert losses[0] > unigram > 2.5
  # 0.18 nats a letter are the words that are drawn: nobody foresees them.
  assert 0.18 < np.mean(losses[-10:]) < 0.15 * unigram


def test_text_is_bytes_in_the_order_of_names(tmp_path):
  (tmp_path / "b.txt").write_bytes(b"\xff\x00z")
  (tmp_path / "a.txt").write_text("né")
  (tmp_path / "notes.md").write_text("not text")
  found = tokens_of(tmp_path)
  assert found.dtype == np.uint8 and found.tobytes() == "né\n\n".encode() + b"\xff\x00z"
  assert tokens_of(str(tmp_path / "b.txt"), vocabulary=256).tolist() == [255, 0, 122]


def test_text_is_encoded_by_the_tokenizer_of_a_file(tmp_path):
  text, model = tmp_path / "text.txt", tmp_path / "tiny.gguf"
  text.write_text("hello world12")
  write(model)  # "hello", " w", "or", "ld", "1", "2"
  found = tokens_of(text, model, vocabulary=18)
  assert found.dtype == np.int32 and found.tolist() == [14, 15, 16, 17, 8, 9]
  with pytest.raises(ValueError, match="token 17, too large for vocabulary=17"):
    tokens_of(text, model, vocabulary=17)
  text.write_bytes(b"\xff")
  with pytest.raises(ValueError, match="not UTF-8"):
    tokens_of(text, model)


def test_no_text_is_refused(tmp_path):
  for path in (tmp_path, tmp_path / "missing.txt"):
    with pytest.raises(FileNotFoundError, match="no text in"):
      tokens_of(path)
  (tmp_path / "empty.txt").touch()
  with pytest.raises(ValueError, match="is empty"):
    tokens_of(tmp_path)


@pytest.mark.parametrize(
  ("fields", "complaint"),
  [
    ({"depth": 0}, "positive sizes"),
    ({"epsilon": 0.0}, "positive sizes"),
    ({"width": 12}, "width=12 must be an even multiple of heads=4"),
    ({"kv_heads": 3}, "a multiple of kv_heads=3"),
  ],
)
def test_fields_that_make_no_model_are_refused(fields, complaint):
  with pytest.raises(ValueError, match=complaint):
    dataclasses.replace(SMALL, **fields)


def test_shapes_that_do_not_fit_are_refused():
  params, batch = init(SMALL), tokens()
  for wrong in (batch[0], batch.astype(np.float32)):
    with pytest.raises(ValueError, match=r"tokens must be integers \[B, T\]"):
      SMALL.apply(params, wrong)
  logits = jnp.zeros((3, 6, 24))
  with pytest.raises(ValueError, match=r"need tokens \(3, 7\)"):
    next_token_loss(logits, batch[:, 1:])
  with pytest.raises(ValueError, match=r"weight must be \[3\]"):
    next_token_loss(logits, batch, jnp.ones((3, 6)))
