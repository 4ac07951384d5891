"""A LLaMA-like language model as plain functions; its blocks are stacked and scanned.

  x += o(attention(rope(q(n)), rope(k(n)), v(n))),  n = rms_norm(x)
  x += down(silu(gate(n)) up(n)),                   n = rms_norm(x)

Grouped queries share keys and values. RoPE rotates adjacent pairs, as GGUF files store
q and k. Matrices are [out, in], each with a bias [out] if its block has one, "q_bias";
the head is the embedding unless given. T tokens, D features, L blocks.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Block = dict[str, jax.Array]
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


class Shape(NamedTuple):
  """What the arrays do not tell.

  Attributes:
    heads: Of queries.
    kv_heads: Of keys and values.
    rope_base: Pair i of F / 2 turns by base^(-2 i / F) a position.
    epsilon: Of the normalization.
    rates: By how much each pair turns instead, where these are scaled; features beyond
      the last pair do not turn.
  """

  heads: int
  kv_heads: int
  rope_base: float
  epsilon: float
  rates: tuple[float, ...] = ()


def logits(shape: Shape, params: Any, tokens: jax.Array) -> jax.Array:
  """[B, T] tokens -> [B, T, V] logits.

  Args:
    shape: Of the heads.
    params: {"embed": [V, D], "norm": [D], "blocks": {"attention_norm": [L, D],
      "mlp_norm": [L, D], "q": [L, out, in], ...}}, and "head": [V, D] if untied.
    tokens: [B, T] integers.
  """
  x = params["embed"][tokens]
  x, _ = jax.lax.scan(lambda x, p: (block(shape, p, x), None), x, params["blocks"])
  return norm(shape, params["norm"], x) @ params.get("head", params["embed"]).T


def block(shape: Shape, p: Block, x: jax.Array) -> jax.Array:
  """One block: [B, T, D] -> [B, T, D]."""
  n = norm(shape, p["attention_norm"], x)
  q = _split(_linear(p, "q", n), shape.heads)
  k, v = (_split(_linear(p, name, n), shape.kv_heads) for name in ("k", "v"))
  q, k = rope(shape, q), rope(shape, k)
  groups = shape.heads // shape.kv_heads
  k, v = (jnp.repeat(a, groups, axis=1) for a in (k, v))
  x = x + _linear(p, "o", _merge(attention(q, k, v)))
  n = norm(shape, p["mlp_norm"], x)
  hidden = jax.nn.silu(_linear(p, "gate", n)) * _linear(p, "up", n)
  return x + _linear(p, "down", hidden)


def _linear(p: Block, name: str, x: jax.Array) -> jax.Array:
  y, bias = x @ p[name].T, p.get(f"{name}_bias")
  return y if bias is None else y + bias[None, None]


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Causal attention of [B, H, T, F] heads."""
  scores = jnp.einsum("bhqf,bhkf->bhqk", q, k) * q.shape[-1] ** -0.5
  causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
  scores = jnp.where(causal, scores, -jnp.inf)
  return jnp.einsum("bhqk,bhkf->bhqf", jax.nn.softmax(scores), v)


def rope(shape: Shape, x: jax.Array) -> jax.Array:
  """Rotates adjacent pairs of [B, H, T, F] by their position."""
  f = x.shape[-1]
  if shape.rates:
    turned, still = jnp.split(x, [2 * len(shape.rates)], axis=-1)
    turned = _turned(turned, jnp.asarray(shape.rates, jnp.float32))
    return jnp.concatenate([turned, still], axis=-1)
  return _turned(x, shape.rope_base ** (-jnp.arange(0, f, 2, dtype=jnp.float32) / f))


def _turned(x: jax.Array, rates: jax.Array) -> jax.Array:
  """[..., T, F] with pair i turned by its position times rates[i]."""
  angle = jnp.arange(x.shape[-2], dtype=jnp.float32)[:, None] * rates[None]
  sin, cos = (f(angle)[None, None].astype(x.dtype) for f in (jnp.sin, jnp.cos))
  a, b = x[..., ::2], x[..., 1::2]
  return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)


def norm(shape: Shape, weight: jax.Array, x: jax.Array) -> jax.Array:
  """RMS normalization over the last axis."""
  square = jnp.mean(x * x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(square + shape.epsilon) * weight.reshape(1, 1, -1)


def _split(x: jax.Array, heads: int) -> jax.Array:
  return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _merge(x: jax.Array) -> jax.Array:
  return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
