"""A language model and its tokenizer from a GGUF file; weights are dequantized.

A file says more than a reader may know: another head, biases, scaled or partial
rotation. What is known is read, and every tensor and key that is not is refused by
name, rather than a model run that is not the file's.
"""

import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.data import gguf_file
from jaxcodesign.data.gguf_file import Fields, Refused
from jaxcodesign.models.llama import MATRICES, Shape

_NAMES = {
  "attention_norm": "attn_norm", "mlp_norm": "ffn_norm", "q": "attn_q", "k": "attn_k",
  "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
  "down": "ffn_down",
}  # fmt: skip
# Sizes that the tensors have as well, and what a longer context was trained with.
_TOLD_TWICE = (
  "context_length", "embedding_length", "feed_forward_length", "vocab_size",
  "rope.scaling.original_context_length", "rope.scaling.finetuned",
)  # fmt: skip


class Model(NamedTuple):
  """A file's content."""

  shape: Shape
  params: Any  # see llama.logits
  tokenizer: Any  # a tokenizers.Tokenizer


def read(path: str | pathlib.Path) -> Model:
  """Weights in float32, blocks stacked, and the tokenizer.

  Raises:
    FileNotFoundError, ImportError, ValueError: As `gguf_file.reading`; a ValueError
      names the first tensor or key that is not understood.
  """
  with gguf_file.reading(path) as reader:
    fields, tensors = Fields(reader), _Tensors(reader)
    if fields("general.architecture") != "llama":
      raise Refused(f"its architecture is {fields('general.architecture')}, not llama")
    count = int(fields("llama.block_count"))
    params = _params(tensors, count)
    shape = _shape(fields, tensors, params)
    tokenizer = gguf_file.tokenizer(fields)
    tensors.check()
    fields.check()
    tree.check_finite(params, "its weights")
    return Model(shape, params, tokenizer)


class _Tensors:
  """The tensors of a file; remembers which were read."""

  def __init__(self, reader: Any):
    self.stored = {t.name: t for t in reader.tensors}
    self.read: set[str] = set()

  def __call__(self, name: str) -> np.ndarray:
    """A tensor in float32."""
    import gguf

    if name not in self.stored:
      raise Refused(f"it has no tensor {name}")
    found, kind = self.stored[name].data, self.stored[name].tensor_type
    self.read.add(name)
    try:
      return gguf.quants.dequantize(found, kind).astype(np.float32)
    except NotImplementedError as error:
      raise Refused(
        f"{name} is stored as {kind.name}, which the gguf package does not read; "
        "convert the file to F16 or Q8_0"
      ) from error

  def check(self) -> None:
    """Refuses a file with tensors that were not read."""
    left = [name for name in self.stored if name not in self.read]
    if left:
      raise Refused(f"tensors that are not understood: {', '.join(left[:8])}")


def _params(tensors: _Tensors, count: int) -> dict[str, Any]:
  stacked = lambda part: jnp.stack([tensors(f"blk.{i}.{part}") for i in range(count)])
  blocks = {ours: stacked(f"{theirs}.weight") for ours, theirs in _NAMES.items()}
  for ours in MATRICES:
    part = f"{_NAMES[ours]}.bias"
    if any(f"blk.{i}.{part}" in tensors.stored for i in range(count)):
      blocks[f"{ours}_bias"] = stacked(part)
  params = {
    "embed": jnp.asarray(tensors("token_embd.weight")),
    "norm": jnp.asarray(tensors("output_norm.weight")),
    "blocks": blocks,
  }
  if "output.weight" in tensors.stored:
    params["head"] = jnp.asarray(tensors("output.weight"))
  return params


def _shape(fields: Fields, tensors: _Tensors, params: Any) -> Shape:
  heads = int(fields("llama.attention.head_count"))
  kv_heads = int(fields("llama.attention.head_count_kv"))
  features = params["blocks"]["q"].shape[1] // heads
  for name in ("key_length", "value_length"):
    if (told := int(fields(f"llama.attention.{name}", features))) != features:
      raise Refused(f"llama.attention.{name} is {told}, its heads have {features}")
  for name in _TOLD_TWICE:
    fields(f"llama.{name}", None)
  base = float(fields("llama.rope.freq_base"))
  epsilon = float(fields("llama.attention.layer_norm_rms_epsilon"))
  rates = _rates(fields, tensors, base, features)
  return Shape(heads, kv_heads, base, epsilon, rates)


def _rates(
  fields: Fields, tensors: _Tensors, base: float, features: int
) -> tuple[float, ...]:
  """Radians a position of each pair, () for the usual ones.

  A linear scaling divides all of them; `rope_freqs`, as llama 3's scaling is stored,
  divides each by its own factor.
  """
  turning = int(fields("llama.rope.dimension_count", features))
  kind = fields("llama.rope.scaling.type", "none")
  if kind not in ("none", "linear"):
    raise Refused(f"llama.rope.scaling.type is {kind!r}; none and linear are read")
  factor = float(fields("llama.rope.scaling.factor", 1.0)) if kind == "linear" else 1.0
  if not 0 < turning <= features or turning % 2 or not factor > 0:
    raise Refused(
      f"llama.rope.dimension_count={turning} of {features} and scaling by {factor:g} "
      "are no rotation"
    )
  rates = base ** (-np.arange(0, turning, 2) / turning) / factor
  usual = turning == features and factor == 1
  if "rope_freqs.weight" in tensors.stored:
    divided = tensors("rope_freqs.weight").reshape(-1)
    if divided.shape != rates.shape:
      raise Refused(f"rope_freqs.weight has {divided.size} factors of {rates.size}")
    rates, usual = rates / divided, usual and bool((divided == 1).all())
  return () if usual else tuple(map(float, rates))
