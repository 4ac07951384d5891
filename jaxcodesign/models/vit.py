"""Vision transformer: patches as tokens, pre-norm blocks stacked and scanned.

  x += o(attention(q(n), k(n), v(n))),  n = norm1(x)
  x += down(gelu(up(n))),               n = norm2(x)

T tokens, D features, L blocks.

References: Dosovitskiy et al. "An Image is Worth 16x16 Words", arXiv:2010.11929;
Touvron et al. "Training data-efficient image transformers", arXiv:2012.12877 (DeiT).
"""

import dataclasses
import math
from typing import Literal, get_args

from flax import nnx
import jax
import jax.numpy as jnp

from jaxcodesign.models.classifier import Classifier, ImageShape, Outputs

Pool = Literal["mean", "class"]


@dataclasses.dataclass(frozen=True)
class Vit(Classifier):
  """Patches, learned positions, `depth` pre-norm blocks, layer norm, a dense layer.

  The default is for images of 28 or 32 pixels; `tiny`, `small` and `base` are for 224.
  There is no dropout and no stochastic depth.

  Its parameters are "patch", "positions" [T, D], "class_token" [1, D] where there is
  one, "blocks", "norm" and "logits". "blocks" has "norm1", "q", "k", "v", "o", "norm2",
  "up" and "down", stacked: a kernel is [L, in, out], a bias or scale [L, out]; heads
  are neighbours in the outputs of q, k and v and in the inputs of o. "patch/kernel" is
  [patch * patch * C, D], channels fastest. Sides that are no multiple of `patch` are
  filled up with zeros below and on the right. Its feature is the normalized tokens.

  Attributes:
    patch: Height and width of a patch.
    width: D, a multiple of `heads`.
    depth: L.
    heads: Of the attention.
    mlp: Units between up and down, in widths.
    pool: What the logits see: the "mean" of all tokens, or a "class" token before them.
    remat: Whether the backward pass computes each block again, from its input alone.
  """

  patch: int = 4
  width: int = 192
  depth: int = 6
  heads: int = 3
  mlp: int = 4
  pool: Pool = "mean"
  remat: bool = False

  def __post_init__(self):
    if min(self.patch, self.width, self.depth, self.heads, self.mlp) < 1:
      raise ValueError(f"a Vit needs positive sizes, not {self}")
    if self.width % self.heads:
      raise ValueError(
        f"heads={self.heads} do not divide width={self.width}; choose one that does"
      )
    if self.pool not in get_args(Pool):
      raise ValueError(f"pool={self.pool!r} is none of {get_args(Pool)}")

  @classmethod
  def tiny(cls, *, remat: bool = False) -> "Vit":
    """DeiT-Ti for 224 pixels, 5.7 M parameters (sizes recalled)."""
    return cls(16, 192, 12, 3, pool="class", remat=remat)

  @classmethod
  def small(cls, *, remat: bool = False) -> "Vit":
    """DeiT-S for 224 pixels, 22 M parameters (sizes recalled)."""
    return cls(16, 384, 12, 6, pool="class", remat=remat)

  @classmethod
  def base(cls, *, remat: bool = False) -> "Vit":
    """DeiT-B and ViT-B/16 for 224 pixels, 86 M parameters (sizes recalled)."""
    return cls(16, 768, 12, 12, pool="class", remat=remat)

  @property
  def reduction(self) -> int:
    return self.patch

  def network(self, shape: ImageShape, classes: int, rngs: nnx.Rngs) -> nnx.Module:
    return _Network(self, shape, classes, rngs=rngs)


class _Network(nnx.Module):
  """The layers of a `Vit`, named as its parameters are."""

  def __init__(self, vit: Vit, shape: ImageShape, classes: int, *, rngs: nnx.Rngs):
    self.vit = vit
    height, width, channels = shape
    tokens = math.ceil(height / vit.patch) * math.ceil(width / vit.patch)
    tokens += vit.pool == "class"
    normal = nnx.initializers.normal(0.02)
    draw = lambda *shape: nnx.Param(normal(rngs.params(), shape))
    self.patch = nnx.Linear(vit.patch**2 * channels, vit.width, rngs=rngs)
    self.positions = draw(tokens, vit.width)
    if vit.pool == "class":
      self.class_token = draw(1, vit.width)

    @nnx.split_rngs(splits=vit.depth)
    @nnx.vmap
    def stack(rngs: nnx.Rngs) -> _Block:
      return _Block(vit, rngs=rngs)

    self.blocks = stack(rngs)
    self.norm = _LayerNorm(vit.width)
    self.logits = nnx.Linear(vit.width, classes, rngs=rngs)

  def __call__(self, x: jax.Array, train: bool) -> Outputs:
    del train
    x = self.patch(_patches(x, self.vit.patch))
    if self.vit.pool == "class":
      token = jnp.broadcast_to(self.class_token[...], (len(x), 1, x.shape[-1]))
      x = jnp.concatenate([token.astype(x.dtype), x], axis=1)
    x = x + jnp.broadcast_to(self.positions[...], x.shape)
    graph, stacked = nnx.split(self.blocks)
    step = lambda x, state: (nnx.merge(graph, state)(x), None)
    if self.vit.remat:
      step = jax.checkpoint(step, prevent_cse=False)
    x, _ = jax.lax.scan(step, x, stacked)
    x = self.norm(x)
    pooled = x[:, 0] if self.vit.pool == "class" else jnp.mean(x, axis=1)
    return self.logits(pooled), (x,)


def _patches(x: jax.Array, size: int) -> jax.Array:
  """[B, H, W, C] -> [B, T, size * size * C], row after row of patches."""
  # A product of these instead of a convolution: its weight gradient is slow on CPU.
  x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, -x.shape[2] % size), (0, 0)))
  b, h, w, c = x.shape
  x = x.reshape(b, h // size, size, w // size, size, c).swapaxes(2, 3)
  return x.reshape(b, -1, size * size * c)


class _Block(nnx.Module):
  """Attention and a perceptron, each beside a shortcut."""

  def __init__(self, vit: Vit, *, rngs: nnx.Rngs):
    self.heads = vit.heads
    glorot = nnx.initializers.glorot_uniform()
    dense = lambda n, m: nnx.Linear(n, m, kernel_init=glorot, rngs=rngs)
    self.norm1 = _LayerNorm(vit.width)
    self.q, self.k, self.v, self.o = (dense(vit.width, vit.width) for _ in range(4))
    self.norm2 = _LayerNorm(vit.width)
    self.up = dense(vit.width, vit.mlp * vit.width)
    self.down = dense(vit.mlp * vit.width, vit.width)

  def __call__(self, x: jax.Array) -> jax.Array:
    n = self.norm1(x)
    split = lambda y: y.reshape(*y.shape[:2], self.heads, -1).swapaxes(1, 2)
    q, k, v = split(self.q(n)), split(self.k(n)), split(self.v(n))
    scores = jnp.einsum("bhqf,bhkf->bhqk", q, k) * q.shape[-1] ** -0.5
    mixed = jnp.einsum("bhqk,bhkf->bhqf", jax.nn.softmax(scores), v)
    x = x + self.o(mixed.swapaxes(1, 2).reshape(x.shape))
    return x + self.down(nnx.gelu(self.up(self.norm2(x)), approximate=False))


class _LayerNorm(nnx.Module):
  """The last axis to mean 0 and variance 1, in float32, then scaled and shifted."""

  # Not flax's: it refuses bfloat16 where promotion is strict, and its variance cancels.

  def __init__(self, width: int):
    self.scale = nnx.Param(jnp.ones(width))
    self.bias = nnx.Param(jnp.zeros(width))

  def __call__(self, x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(wide * wide, axis=-1, keepdims=True)
    y = (wide * jax.lax.rsqrt(variance + 1e-6)).astype(x.dtype)
    scale, bias = (jnp.broadcast_to(p[...], x.shape) for p in (self.scale, self.bias))
    return y * scale + bias
