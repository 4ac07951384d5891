"""A second GGUF file end to end, and what is not understood refused by its name.

The file has a head of its own, biases, rotation of a part of each head, slowed down
and by factors of its own; its logits are those of plain numpy.
"""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.models import gguf as gguf_model
from jaxcodesign.models import llama

D, HEADS, SHARED, HIDDEN, LAYERS, TURNING = 32, 4, 2, 48, 2, 4
TOKENS = [*"helo wrd12", "Ġ", "he", "ll", "hell", "hello", "Ġw", "or", "ld"]
SIZES = {
  "attn_q": (D, D), "attn_k": (D // 2, D), "attn_v": (D // 2, D), "attn_output": (D, D),
  "ffn_gate": (HIDDEN, D), "ffn_up": (HIDDEN, D), "ffn_down": (D, HIDDEN),
}  # fmt: skip
EPSILON, BASE, FACTOR = 1e-5, 1e4, 4.0


def weights(biases=True):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  found = {"token_embd.weight": draw(len(TOKENS), D), "output_norm.weight": draw(D)}
  found |= {"output.weight": draw(len(TOKENS), D)}
  found |= {"rope_freqs.weight": np.float32([1.0, 3.0])}
  for i in range(LAYERS):
    for name, shape in SIZES.items():
      found[f"blk.{i}.{name}.weight"] = draw(*shape) / shape[1] ** 0.5
      if biases:
        found[f"blk.{i}.{name}.bias"] = draw(shape[0])
    for name in ("attn_norm", "ffn_norm"):
      found[f"blk.{i}.{name}.weight"] = 1 + 0.3 * draw(D)
  return found


def write(path, tensors, pre="gpt-2", more=(), **how):
  """A file of these tensors, with keys [(method of the writer, arguments)] besides."""
  writer = gguf.GGUFWriter(path, "llama", **how)
  writer.add_block_count(LAYERS)
  writer.add_head_count(HEADS)
  writer.add_head_count_kv(SHARED)
  writer.add_rope_freq_base(BASE)
  writer.add_layer_norm_rms_eps(EPSILON)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(TOKENS)
  writer.add_token_merges(["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "l d"])
  for method, *arguments in more:
    getattr(writer, method)(*arguments)
  for name, tensor in tensors.items():
    writer.add_tensor(name, tensor)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


SCALED = (
  ("add_rope_dimension_count", TURNING),
  ("add_rope_scaling_type", gguf.RopeScalingType.LINEAR),
  ("add_rope_scaling_factor", FACTOR),
)


def by_hand(w, tokens):
  """[T] tokens -> [T, V] logits in float64, one head after the other."""
  w = {name: np.float64(x) for name, x in w.items()}
  norm = lambda x, name: x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * w[name]
  x, f = w["token_embd.weight"][tokens], D // HEADS
  rates = BASE ** (-np.arange(0, TURNING, 2) / TURNING) / FACTOR / [1.0, 3.0]

  def turned(x):
    pairs = x[:, :TURNING:2] + 1j * x[:, 1:TURNING:2]
    pairs = pairs * np.exp(1j * np.arange(len(x))[:, None] * rates)
    found = x.copy()
    found[:, :TURNING:2], found[:, 1:TURNING:2] = pairs.real, pairs.imag
    return found

  for i in range(LAYERS):
    linear = lambda name, x, b=f"blk.{i}.": (
      x @ w[f"{b}{name}.weight"].T + w[f"{b}{name}.bias"]
    )
    n = norm(x, f"blk.{i}.attn_norm.weight")
    q, k, v = (linear(name, n) for name in ("attn_q", "attn_k", "attn_v"))
    heads = []
    for h in range(HEADS):
      g = h * SHARED // HEADS
      part = lambda a, j: a[:, j * f : (j + 1) * f]
      scores = turned(part(q, h)) @ turned(part(k, g)).T / np.sqrt(f)
      scores[np.triu_indices(len(x), 1)] = -np.inf
      scores = np.exp(scores - scores.max(-1, keepdims=True))
      heads.append(scores / scores.sum(-1, keepdims=True) @ part(v, g))
    x = x + linear("attn_output", np.concatenate(heads, -1))
    n = norm(x, f"blk.{i}.ffn_norm.weight")
    gate = linear("ffn_gate", n)
    x = x + linear("ffn_down", gate / (1 + np.exp(-gate)) * linear("ffn_up", n))
  return norm(x, "output_norm.weight") @ w["output.weight"].T


def test_head_biases_and_scaled_partial_rotation_are_the_files(tmp_path):
  made = weights()
  found = gguf_model.read(write(tmp_path / "a.gguf", made, more=SCALED))
  tokens = np.arange(24) * 7 % len(TOKENS)
  logits = jax.jit(llama.logits, static_argnums=0)(
    found.shape, found.params, jnp.asarray(tokens)[None]
  )
  np.testing.assert_allclose(logits[0], by_hand(made, tokens), rtol=2e-4, atol=2e-4)


def test_usual_rotation_is_that_of_the_base(tmp_path):
  made = weights(biases=False)
  del made["rope_freqs.weight"], made["output.weight"]
  more = [("add_rope_dimension_count", D // HEADS)]
  found = gguf_model.read(write(tmp_path / "a.gguf", made, more=more))
  assert found.shape.rates == () and "head" not in found.params
  assert not any(name.endswith("bias") for name in found.params["blocks"])


@pytest.mark.parametrize(
  ("pre", "words"),
  [
    ("gpt-2", ["hello", "Ġ1234"]),
    ("smollm", ["hello", "Ġ", "1", "2", "3", "4"]),
    ("llama-bpe", ["hello", "Ġ", "123", "4"]),
    ("qwen2", ["hello", "Ġ", "1", "2", "3", "4"]),
  ],
)
def test_text_is_cut_as_the_file_says(tmp_path, pre, words):
  path = write(tmp_path / "a.gguf", weights(), pre, SCALED)
  cut = gguf_model.read(path).tokenizer.pre_tokenizer.pre_tokenize_str("hello 1234")
  assert [word for word, _ in cut] == words


BIG = {"endianess": gguf.GGUFEndian.BIG}


@pytest.mark.parametrize(
  ("how", "message"),
  [
    ({"more": [("add_uint32", "llama.expert_count", 8)]}, "llama.expert_count = 8"),
    ({"more": [("add_sliding_window", 512)]}, "llama.attention.sliding_window = 512"),
    (
      {"more": [("add_rope_scaling_type", gguf.RopeScalingType.YARN)]},
      "llama.rope.scaling.type is 'yarn'; none and linear are read",
    ),
    ({"more": [("add_rope_dimension_count", 9)]}, "dimension_count=9 of 8"),
    ({"more": [("add_key_length", 16)]}, "key_length is 16, its heads have 8"),
    ({"pre": "falcon"}, "tokenizer.ggml.pre is 'falcon'; gpt-2, smollm"),
    ({"more": [("add_add_space_prefix", True)]}, "add_space_prefix is true"),
    (BIG, "big-endian; convert"),
  ],
  ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_key_that_is_not_understood_is_refused(tmp_path, how, message):
  made = weights()
  del made["rope_freqs.weight"]
  with pytest.raises(
    ValueError, match="a.gguf cannot be read as a llama: .*" + message
  ):
    gguf_model.read(write(tmp_path / "a.gguf", made, **how))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda w: w | {"blk.0.attn_q_norm.weight": w["output_norm.weight"]},
      "attn_q_norm",
    ),
    (lambda w: w | {"output.bias": w["output_norm.weight"]}, "understood: output.bias"),
    (
      lambda w: {k: v for k, v in w.items() if k != "blk.1.ffn_up.bias"},
      "no tensor blk.1.ffn_up.bias",
    ),
    (
      lambda w: {k: v for k, v in w.items() if k != "output_norm.weight"},
      "output_norm",
    ),
    (
      lambda w: w | {"rope_freqs.weight": np.ones(3, "f4")},
      "rope_freqs.weight has 3 factors of 2",
    ),
  ],
  ids=["norm of queries", "bias of the head", "bias lost", "norm lost", "factors"],
)
def test_a_tensor_that_is_not_understood_is_refused(tmp_path, change, message):
  with pytest.raises(
    ValueError, match="a.gguf cannot be read as a llama: .*" + message
  ):
    gguf_model.read(write(tmp_path / "a.gguf", change(weights()), more=SCALED))


def test_a_type_that_the_package_cannot_read_is_named(tmp_path, monkeypatch):
  def unknown(*_):
    raise NotImplementedError("no such type")

  monkeypatch.setattr(gguf.quants, "dequantize", unknown)
  path = write(tmp_path / "a.gguf", weights(), more=SCALED)
  with pytest.raises(ValueError, match=r"attn_norm.weight is stored as F32, which"):
    gguf_model.read(path)
