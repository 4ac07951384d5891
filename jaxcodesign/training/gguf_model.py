"""A language model and its tokenizer from a GGUF file; weights are dequantized.

Needs the packages of `jaxcodesign[llm]`: gguf reads the file, tokenizers the text.
"""

import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxcodesign.training.llama import Shape

_NAMES = {
  "attention_norm": "attn_norm", "mlp_norm": "ffn_norm", "q": "attn_q", "k": "attn_k",
  "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
  "down": "ffn_down",
}  # fmt: skip


class Model(NamedTuple):
  """A file's content."""

  shape: Shape
  params: Any  # see llama.logits
  tokenizer: Any  # a tokenizers.Tokenizer


def read(path: str | pathlib.Path) -> Model:
  """Weights in float32, blocks stacked, and the tokenizer.

  Raises:
    FileNotFoundError: Naming the file.
    ImportError: If the packages are missing.
    ValueError: If the file is no GGUF file of a llama with a byte-level BPE.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise FileNotFoundError(
      f"no model {path}: put the GGUF file there, name another with --network.model, "
      "or set $JAXCODESIGN_DATA to the folder of all data"
    )
  try:
    import gguf
  except ImportError as error:
    raise ImportError(
      "reading GGUF files needs more packages: pip install 'jaxcodesign[llm]'"
    ) from error
  try:
    reader = gguf.GGUFReader(path)
    field = lambda name: _field(reader, name)
    if field("general.architecture") != "llama":
      raise ValueError(f"its architecture is {field('general.architecture')}")
    shape = Shape(
      int(field("llama.attention.head_count")),
      int(field("llama.attention.head_count_kv")),
      float(field("llama.rope.freq_base")),
      float(field("llama.attention.layer_norm_rms_epsilon")),
    )
    count = int(field("llama.block_count"))
    tensors = {t.name: t for t in reader.tensors}
    weight = lambda name: gguf.quants.dequantize(
      tensors[f"{name}.weight"].data, tensors[f"{name}.weight"].tensor_type
    ).astype(np.float32)
    stacked = lambda part: jnp.stack([weight(f"blk.{i}.{part}") for i in range(count)])
    params = {
      "embed": jnp.asarray(weight("token_embd")),
      "norm": jnp.asarray(weight("output_norm")),
      "blocks": {ours: stacked(theirs) for ours, theirs in _NAMES.items()},
    }
    return Model(shape, params, _tokenizer(reader))
  except (ValueError, KeyError, IndexError) as error:
    raise ValueError(
      f"{path} is no GGUF file of a llama that can be read ({error}); fetch it again"
    ) from error


def _field(reader: Any, name: str) -> Any:
  found = reader.get_field(name)
  if found is None:
    raise KeyError(f"it has no {name}")
  return found.contents()


def _tokenizer(reader: Any) -> Any:
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers

  if _field(reader, "tokenizer.ggml.model") != "gpt2":
    raise ValueError("its tokenizer is no byte-level BPE")
  tokens = _field(reader, "tokenizer.ggml.tokens")
  merges = [tuple(m.split(" ")) for m in _field(reader, "tokenizer.ggml.merges")]
  found = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
  # The "smollm" rule: digits stand alone, the rest is cut as GPT-2 cuts it.
  found.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  )
  found.decoder = decoders.ByteLevel()
  return found
