"""The language model is the published one, its file is read, its weights prepared."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.experiments import language
from jaxcodesign.experiments.codesign import Variant
from jaxcodesign.experiments.language import Prepared, RandomLlama, Speeches, spread
from jaxcodesign.models import gguf as gguf_model
from jaxcodesign.models import llama
from jaxcodesign.numerics.formats import Fixed
from jaxcodesign.programs.precision import Rule


def by_hand(shape, params, tokens):
  """[T] tokens -> [T, V] logits in plain numpy, float64, one head after the other."""
  p = jax.tree.map(np.float64, params)
  x = p["embed"][tokens]
  norm = lambda w, x: x / np.sqrt((x**2).mean(-1, keepdims=True) + shape.epsilon) * w

  def rotated(x):  # [T, F]
    pairs = x[:, ::2] + 1j * x[:, 1::2]
    f = x.shape[1]
    rates = shape.rope_base ** (-np.arange(0, f, 2) / f)
    turned = pairs * np.exp(1j * np.arange(len(x))[:, None] * rates)
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

  for i in range(len(p["blocks"]["q"])):
    b = {name: leaf[i] for name, leaf in p["blocks"].items()}
    n = norm(b["attention_norm"], x)
    f = b["q"].shape[0] // shape.heads
    heads = []
    for h in range(shape.heads):
      g = h * shape.kv_heads // shape.heads
      q = rotated(n @ b["q"][h * f : (h + 1) * f].T)
      k, v = (n @ b[m][g * f : (g + 1) * f].T for m in "kv")
      scores = q @ rotated(k).T / np.sqrt(f)
      scores[np.triu_indices(len(x), 1)] = -np.inf
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      heads.append(weights / weights.sum(-1, keepdims=True) @ v)
    x = x + np.concatenate(heads, -1) @ b["o"].T
    n = norm(b["mlp_norm"], x)
    gate = n @ b["gate"].T
    x = x + (gate / (1 + np.exp(-gate)) * (n @ b["up"].T)) @ b["down"].T
  return norm(p["norm"], x) @ p["embed"].T


@pytest.fixture(scope="module")
def loaded():
  found = RandomLlama().load()
  rng = np.random.default_rng(0)
  scaled = lambda leaf: leaf * jnp.float32(rng.uniform(0.5, 1.5, leaf.shape))
  return found._replace(params=jax.tree.map(scaled, found.params))


def test_logits_and_perplexity_are_those_of_plain_numpy(loaded):
  tokens = loaded.windows
  got = jax.jit(llama.logits, static_argnums=0)(loaded.shape, loaded.params, tokens)
  wanted = np.stack([by_hand(loaded.shape, loaded.params, t) for t in tokens])
  np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
  before, after = wanted[:, :-1], tokens[:, 1:, None]
  loss = np.log(np.exp(before).sum(-1)) - np.take_along_axis(before, after, -1)[..., 0]
  for batch in (3, 4):  # one that does not divide the windows
    found = language.perplexity(loaded, Variant("float32", ()), batch)
    np.testing.assert_allclose(found, np.exp(loss.mean()), rtol=1e-4)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_prepared_weights_are_near_and_better_than_nearest(loaded, method):
  fmt = Fixed(3, 32)
  variant = Prepared("v", (), method=method, weight=fmt)
  seen = []
  params = language.prepare(loaded, variant, seen.append)
  assert seen == [0, 1]
  x = loaded.params["embed"][jnp.asarray(loaded.calibration)]
  error = lambda blocks: float(
    jnp.sum((run(loaded, blocks, x) - run(loaded, loaded.params["blocks"], x)) ** 2)
  )
  nearest = {
    n: fmt.quantize(w) if n in llama.MATRICES else w
    for n, w in loaded.params["blocks"].items()
  }
  assert error(params["blocks"]) < 0.95 * error(nearest)
  for name in ("attention_norm", "mlp_norm"):
    np.testing.assert_array_equal(params["blocks"][name], loaded.params["blocks"][name])


def run(loaded, blocks, x):
  for i in range(2):
    x = llama.block(loaded.shape, {n: leaf[i] for n, leaf in blocks.items()}, x)
  return x


def test_a_policy_reaches_the_seven_matrices_of_every_block(loaded):
  work = RandomLlama().workload(loaded)
  named = sorted({g.rhs for g in work.gemms if g.rhs.startswith("blocks/")})
  assert named == sorted(f"blocks/{name}" for name in llama.MATRICES)
  plain = language.perplexity(loaded, Variant("float32", ()))
  coarse = Variant(
    "int2", (Rule("blocks/*", Fixed(2, "channel"), Fixed(2, "channel")),)
  )
  assert language.perplexity(loaded, coarse) != plain


def write(path, model="gpt2"):
  """A llama of one block in Q4_1, with a tokenizer that knows a few words."""
  rng = np.random.default_rng(0)
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_block_count(1)
  writer.add_head_count(4)
  writer.add_head_count_kv(2)
  writer.add_rope_freq_base(1e4)
  writer.add_layer_norm_rms_eps(1e-5)
  tokens = [*"helo wrd12", "Ġ", "he", "ll", "hell", "hello", "Ġw", "or", "ld"]
  writer.add_tokenizer_model(model)
  writer.add_tokenizer_pre("smollm")
  writer.add_token_list(tokens)
  writer.add_token_merges(["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "l d"])
  d, stored = 32, {}
  shapes = {"attn_q": (d, d), "attn_k": (16, d), "attn_v": (16, d),
            "attn_output": (d, d), "ffn_gate": (64, d), "ffn_up": (64, d),
            "ffn_down": (d, 64)}  # fmt: skip
  for name, shape in shapes.items():
    blocks = rng.normal(size=shape).astype(np.float32)
    packed = gguf.quants.quantize(blocks, gguf.GGMLQuantizationType.Q4_1)
    key = f"blk.0.{name}.weight"
    writer.add_tensor(key, packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    stored[name] = packed
  for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
    writer.add_tensor(f"{name}.weight", np.ones(d, np.float32))
  embed = rng.normal(size=(len(tokens), d)).astype(np.float32)
  writer.add_tensor("token_embd.weight", embed)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return stored


def test_a_gguf_file_is_read(tmp_path):
  stored = write(tmp_path / "tiny.gguf")
  found = gguf_model.read(tmp_path / "tiny.gguf")
  assert found.shape.heads == 4 and found.shape.kv_heads == 2
  # Q4_1: a block of 32 values is a float16 step, a float16 least, and 16 bytes, the
  # low nibbles first.
  raw = stored["attn_q"].reshape(-1, 20)
  step, least = (raw[:, i : i + 2].copy().view(np.float16) for i in (0, 2))
  codes = np.concatenate([raw[:, 4:] & 15, raw[:, 4:] >> 4], axis=1)
  wanted = codes * np.float32(step) + np.float32(least)
  np.testing.assert_allclose(
    found.params["blocks"]["q"][0], wanted.reshape(32, 32), rtol=1e-6
  )
  ids = found.tokenizer.encode("hello world12").ids
  assert [found.tokenizer.id_to_token(i) for i in ids] == [
    "hello", "Ġw", "or", "ld", "1", "2",
  ]  # fmt: skip
  assert found.tokenizer.decode(ids) == "hello world12"
  logits = llama.logits(found.shape, found.params, jnp.array([ids]))
  assert logits.shape == (1, 6, 18) and np.isfinite(logits).all()


def test_missing_and_foreign_files(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXCODESIGN_DATA", str(tmp_path))
  with pytest.raises(FileNotFoundError, match=r"no model .*smollm2/SmolLM2.*\.gguf"):
    Speeches().load()
  path = tmp_path / "tiny.gguf"
  path.write_bytes(b"GGUX" + bytes(60))
  with pytest.raises(ValueError, match="no GGUF file of a llama"):
    gguf_model.read(path)
  write(path, model="llama")
  with pytest.raises(ValueError, match=r"read as a llama: .*no byte-level BPE"):
    gguf_model.read(path)
  write(path)
  with pytest.raises(FileNotFoundError, match=r"no YEAR_name\.txt"):
    Speeches(model=str(path), directory=str(tmp_path)).load()
  for year in (1990, 2004):
    (tmp_path / f"{year}_someone.txt").write_text("hello world " * 40)
  small = {"model": str(path), "directory": str(tmp_path), "length": 16}
  found = Speeches(**small, windows=3, calibration=2).load()
  assert found.windows.shape == (3, 16) and found.calibration.shape == (2, 16)
  with pytest.raises(ValueError, match="windows of 16, not 99"):
    Speeches(**small, windows=99).load()


def test_windows_are_spread_over_the_text():
  got = spread(list(range(100)), 10, 3)
  np.testing.assert_array_equal(got[:, 0], [0, 40, 90])
  assert spread(list(range(100)), 7, 0).shape == (14, 7)
