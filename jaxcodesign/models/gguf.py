"""A language model and its tokenizer from a GGUF file; weights are dequantized."""

import functools
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.data import gguf_file
from jaxcodesign.models.llama import Shape

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
    FileNotFoundError, ImportError, ValueError: As `gguf_file.reading`.
  """
  with gguf_file.reading(path) as reader:
    import gguf

    field = functools.partial(gguf_file.field, reader)
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
    tree.check_finite(params, "its weights")
    return Model(shape, params, gguf_file.tokenizer(reader))
