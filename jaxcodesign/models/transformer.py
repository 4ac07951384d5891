"""A decoder-only language model to train: sizes, first weights, logits.

The blocks are those of `llama`: RMS normalization, rotary positions, grouped queries, a
gated perceptron; no biases. B sequences, T tokens, V words, D features, L blocks.

References: Touvron et al. "LLaMA", arXiv:2302.13971; Allal et al. "SmolLM2",
arXiv:2502.02737; Radford et al. "Language Models are Unsupervised Multitask Learners",
2019; Vaswani et al. "Attention Is All You Need", arXiv:1706.03762.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxcodesign.models import llama


@dataclasses.dataclass(frozen=True)
class Transformer:
  """Tokens to the logits of the next ones.

  Its parameters are {"embed": [V, D], "norm": [D], "blocks": {"q": [L, D, D], ...}}
  with the names of `llama.logits`, and "head" [V, D] if it is not tied. Matrices are
  [L, out, in]; heads are neighbours in the outputs of q, k and v and the inputs of o.

  Attributes:
    vocabulary: V; the default is that of bytes.
    width: D, an even multiple of `heads`.
    depth: L.
    heads: Of the queries, a multiple of `kv_heads`.
    kv_heads: Of the keys and values.
    hidden: Units of the gated perceptron, which has three matrices.
    rope_base: Of the rotary positions.
    epsilon: Of the normalizations.
    tied: Whether the embedding is the head, too.
    remat: Whether the backward pass computes each block again, from its input alone.
  """

  vocabulary: int = 256
  width: int = 256
  depth: int = 4
  heads: int = 4
  kv_heads: int = 4
  hidden: int = 704
  rope_base: float = 10_000.0
  epsilon: float = 1e-5
  tied: bool = True
  remat: bool = False

  def __post_init__(self):
    sizes = (self.vocabulary, self.width, self.depth, self.kv_heads, self.hidden)
    if min(*sizes, self.heads, self.rope_base, self.epsilon) <= 0:
      raise ValueError(f"a Transformer needs positive sizes, not {self}")
    if self.width % (2 * self.heads) or self.heads % self.kv_heads:
      raise ValueError(
        f"width={self.width} must be an even multiple of heads={self.heads}, and these "
        f"a multiple of kv_heads={self.kv_heads}"
      )

  @classmethod
  def smollm2_135m(cls, *, remat: bool = False) -> "Transformer":
    """SmolLM2-135M, 134,515,008 parameters, the sizes of its released file."""
    return cls(49_152, 576, 30, 9, 3, 1536, 100_000.0, remat=remat)

  @classmethod
  def gpt2_small(cls, *, remat: bool = False) -> "Transformer":
    """The sizes of GPT-2 small (recalled), in this architecture.

    Vocabulary, width, depth and heads are GPT-2's. Three matrices of 2048 stand for its
    two of 3072, as many parameters; positions are rotary, not learned.
    """
    return cls(50_257, 768, 12, 12, 12, 2048, remat=remat)

  @classmethod
  def vaswani_base(
    cls, *, vocabulary: int = 37_000, remat: bool = False
  ) -> "Transformer":
    """The sizes of the base model of 2017 (recalled), in this architecture.

    Vocabulary, width, depth and heads are those of its decoder; there is no encoder and
    no attention to one. Three matrices of 1376 stand for its two of 2048, up to a
    hundredth as many parameters.
    """
    return cls(vocabulary, 512, 6, 8, 8, 1376, remat=remat)

  def init(self, key: jax.Array) -> Any:
    """Draws float32 parameters; the same key gives the same ones.

    A matrix is Gaussian of variance 1 / inputs, the embedding 1 / D. "o" and "down",
    which add to the stream 2 L times, have it divided by 2 L (Radford et al., 2019), so
    that the stream does not grow with the depth. Scales are one.
    """
    narrow = self.width // self.heads * self.kv_heads
    shapes = {
      "q": (self.width, self.width), "k": (narrow, self.width),
      "v": (narrow, self.width), "o": (self.width, self.width),
      "gate": (self.hidden, self.width), "up": (self.hidden, self.width),
      "down": (self.width, self.hidden),
    }  # fmt: skip
    keys = iter(jax.random.split(key, len(shapes) + 2))

    def draw(name: str, *shape: int) -> jax.Array:
      branches = 2 * self.depth if name in ("o", "down") else 1
      normal = jax.random.normal(next(keys), shape, jnp.float32)
      return normal / math.sqrt(shape[-1] * branches)

    blocks = {name: draw(name, self.depth, *shape) for name, shape in shapes.items()}
    for name in ("attention_norm", "mlp_norm"):
      blocks[name] = jnp.ones((self.depth, self.width))
    ends = {"embed": draw("embed", self.vocabulary, self.width)}
    if not self.tied:
      ends["head"] = draw("head", self.vocabulary, self.width)
    return {**ends, "norm": jnp.ones(self.width), "blocks": blocks}

  def apply(self, params: Any, tokens: jax.Array) -> jax.Array:
    """Returns the logits of the token after each, [B, T, V].

    Args:
      params: What `init` returned.
      tokens: [B, T] integers in [0, V); others give NaN, never a wrong number.

    Raises:
      ValueError: If tokens are no integers [B, T].
    """
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
      raise ValueError(
        f"tokens must be integers [B, T], not {tokens.dtype} {tokens.shape}"
      )
    shape = llama.Shape(self.heads, self.kv_heads, self.rope_base, self.epsilon)
    step = lambda x, p: (llama.block(shape, p, x), None)
    if self.remat:
      step = jax.checkpoint(step, prevent_cse=False)
    x = _embed(params["embed"], tokens)
    x, _ = jax.lax.scan(step, x, params["blocks"])
    head = params["embed"] if self.tied else params["head"]
    return llama.norm(shape, params["norm"], x) @ head.T


def _embed(table: jax.Array, tokens: jax.Array) -> jax.Array:
  # A negative index would count from the end: move it beyond the end instead.
  index = jnp.where(tokens < 0, len(table), tokens.astype(jnp.int32))
  return table.at[index].get(mode="fill", fill_value=jnp.nan)
