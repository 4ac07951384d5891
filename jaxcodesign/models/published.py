"""Networks whose sizes everybody has published, as plain functions to trace.

Each is a `Model`: a function, the shapes of its parameters and of its input. Nothing is
allocated: `trace(fn)(params, inputs)` needs shapes only, `model.init(key)` draws real
parameters. Images are NHWC, kernels HWIO or [in, out], everything float32.

References: Simonyan, Zisserman, arXiv:1409.1556 (VGG-16, configuration D); Howard et
al., arXiv:1704.04861 (MobileNet); He et al., arXiv:1512.03385 (ResNet); Radford
et al., "Language Models are Unsupervised Multitask Learners", 2019 (GPT-2); Grattafiori
et al., arXiv:2407.21783 (LLaMA 3.1).
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcodesign import tree
from jaxcodesign.models import llama as llama_model


class Model(NamedTuple):
  """A network: `outputs = fn(params, inputs)`."""

  fn: Callable[[Any, jax.Array], jax.Array]
  params: Any  # tree of jax.ShapeDtypeStruct
  inputs: jax.ShapeDtypeStruct

  def init(self, key: jax.Array) -> Any:
    """Draws parameters: kernels by fan-in (He), embeddings 0.02, scales 1, biases 0."""
    leaves, structure = jax.tree.flatten(self.params)
    keys = jax.random.split(key, len(leaves))
    drawn = map(_draw, tree.names(self.params), leaves, keys)
    return jax.tree.unflatten(structure, drawn)


def _draw(name: str, leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
  kind = name.rsplit("/", 1)[-1]
  if kind in ("scale", "bias"):
    return jnp.full(leaf.shape, float(kind == "scale"))
  normal = jax.random.normal(key, leaf.shape)
  if kind != "kernel":
    return 0.02 * normal
  # [*window, in, out], or [layers, in, out].
  window = leaf.shape[:-2] if len(leaf.shape) == 4 else ()
  return normal * math.sqrt(2 / math.prod((*window, leaf.shape[-2])))


def _array(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def _affine(*shape: int) -> dict[str, Any]:
  return {"kernel": _array(*shape), "bias": _array(shape[-1])}


def _dense(p: dict[str, Any], x: jax.Array) -> jax.Array:
  y = x @ p["kernel"]
  return y + jnp.broadcast_to(p["bias"], y.shape)


def _conv(
  kernel: jax.Array, x: jax.Array, *, stride: int = 1, groups: int = 1
) -> jax.Array:
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


_VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # filters, convolutions


def vgg16(*, image: int = 224, classes: int = 1000, batch: int = 1) -> Model:
  """VGG-16: 13 convolutions "conv1_1".."conv5_3" and the dense "fc6", "fc7", "fc8".

  Args:
    image: Height and width, a multiple of 32.
    classes: Number of logits.
    batch: Images at once.
  """
  if image % 32:
    raise ValueError(f"image={image} is halved five times; use a multiple of 32")
  layers, channels = {}, 3
  for stage, (width, depth) in enumerate(_VGG16):
    for i in range(depth):
      layers[f"conv{stage + 1}_{i + 1}"] = _affine(3, 3, channels, width)
      channels = width
  features = (image // 32) ** 2 * channels
  dense = {"fc6": _affine(features, 4096), "fc7": _affine(4096, 4096)}
  params = {**layers, **dense, "fc8": _affine(4096, classes)}
  last = {f"conv{stage + 1}_{depth}" for stage, (_, depth) in enumerate(_VGG16)}

  def fn(params: Any, images: jax.Array) -> jax.Array:
    x = images
    for name in layers:
      y = _conv(params[name]["kernel"], x)
      x = jax.nn.relu(y + jnp.broadcast_to(params[name]["bias"], y.shape))
      if name in last:
        window = (1, 2, 2, 1)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    x = x.reshape(x.shape[0], -1)
    for name in dense:
      x = jax.nn.relu(_dense(params[name], x))
    return _dense(params["fc8"], x)

  return Model(fn, params, _array(batch, image, image, 3))


_MOBILENET = (  # filters and stride of each block
  (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
  *((512, 1),) * 5, (1024, 2), (1024, 1),
)  # fmt: skip


def mobilenet(
  *, separable: bool = True, image: int = 224, classes: int = 1000, batch: int = 1
) -> Model:
  """MobileNet-1.0: a convolution "stem", 13 blocks "block01".., a dense "logits".

  A batch normalization is a scale and a bias per channel, as at inference.

  Args:
    separable: Blocks are a depthwise 3x3 and a pointwise 1x1 convolution; False makes
      each one full 3x3 convolution of the same stride, the network it is compared to.
    image: Height and width.
    classes: Number of logits.
    batch: Images at once.
  """
  layer = lambda *shape: {
    "kernel": _array(*shape), "scale": _array(shape[-1]), "bias": _array(shape[-1])
  }  # fmt: skip
  params: dict[str, Any] = {"stem": layer(3, 3, 3, 32)}
  channels, strides = 32, {}
  for i, (filters, stride) in enumerate(_MOBILENET):
    name = f"block{i + 1:02d}"
    strides[name] = stride
    if separable:
      depthwise, pointwise = layer(3, 3, 1, channels), layer(1, 1, channels, filters)
      params[name] = {"depthwise": depthwise, "pointwise": pointwise}
    else:
      params[name] = layer(3, 3, channels, filters)
    channels = filters
  params["logits"] = _affine(channels, classes)

  def fn(params: Any, images: jax.Array) -> jax.Array:
    x = _normalized(params["stem"], images, stride=2)
    for name, stride in strides.items():
      p = params[name]
      if separable:
        x = _normalized(p["depthwise"], x, stride=stride, groups=x.shape[-1])
        x = _normalized(p["pointwise"], x)
      else:
        x = _normalized(p, x, stride=stride)
    return _dense(params["logits"], jnp.mean(x, axis=(1, 2)))

  return Model(fn, params, _array(batch, image, image, 3))


_RESNETS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def resnet(
  depth: int = 50, *, image: int = 224, classes: int = 1000, batch: int = 1
) -> Model:
  """ResNet: a convolution "stem", blocks "stage1_1".."stage4_n", a dense "logits".

  Depths 18 and 34 have blocks of two 3x3 convolutions, 50 and 101 bottlenecks that
  stride in the 3x3 convolution (version 1.5). A block's "convs" are in order;
  "shortcut" is its projection. A batch normalization is a scale and a bias per channel.

  Args:
    depth: 18, 34, 50 or 101.
    image: Height and width.
    classes: Number of logits.
    batch: Images at once.

  Raises:
    ValueError: If there is no such depth.
  """
  if depth not in _RESNETS:
    raise ValueError(f"depth={depth} is none of {', '.join(map(str, _RESNETS))}")
  layer = lambda *shape: {
    "kernel": _array(*shape), "scale": _array(shape[-1]), "bias": _array(shape[-1])
  }  # fmt: skip
  params: dict[str, Any] = {"stem": layer(7, 7, 3, 64)}
  channels, strides = 64, {}
  for stage, count in enumerate(_RESNETS[depth]):
    width = 64 << stage
    out = 4 * width if depth >= 50 else width
    for i in range(count):
      name = f"stage{stage + 1}_{i + 1}"
      strides[name] = 2 if stage and not i else 1
      sizes = [(1, channels, width), (3, width, width), (1, width, out)]
      if depth < 50:
        sizes = [(3, channels, width), (3, width, width)]
      block: dict[str, Any] = {"convs": [layer(k, k, c, n) for k, c, n in sizes]}
      if channels != out:
        block["shortcut"] = layer(1, 1, channels, out)
      params[name], channels = block, out
  params["logits"] = _affine(channels, classes)

  def fn(params: Any, images: jax.Array) -> jax.Array:
    x = jax.nn.relu(_scaled(params["stem"], images, stride=2))
    window, step = (1, 3, 3, 1), (1, 2, 2, 1)
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, step, "SAME")
    for name, stride in strides.items():
      convs, y = params[name]["convs"], x
      for i, p in enumerate(convs):
        y = _scaled(p, y, stride=stride if i == len(convs) - 2 else 1)
        y = y if i == len(convs) - 1 else jax.nn.relu(y)
      short = params[name].get("shortcut")
      x = jax.nn.relu(y + (x if short is None else _scaled(short, x, stride=stride)))
    return _dense(params["logits"], jnp.mean(x, axis=(1, 2)))

  return Model(fn, params, _array(batch, image, image, 3))


def _scaled(p: dict[str, Any], x: jax.Array, **how: int) -> jax.Array:
  y = _conv(p["kernel"], x, **how)
  scale, bias = (jnp.broadcast_to(p[name], y.shape) for name in ("scale", "bias"))
  return y * scale + bias


def _normalized(p: dict[str, Any], x: jax.Array, **how: int) -> jax.Array:
  return jax.nn.relu6(_scaled(p, x, **how))


class Llama(NamedTuple):
  """Sizes of a LLaMA."""

  layers: int
  width: int
  heads: int
  hidden: int
  kv_heads: int = 8
  vocabulary: int = 128256


LLAMA31_8B = Llama(32, 4096, 32, 14336)
LLAMA31_70B = Llama(80, 8192, 64, 28672)
LLAMA31_405B = Llama(126, 16384, 128, 53248)


def llama(size: Llama = LLAMA31_8B, *, tokens: int = 1024, batch: int = 1) -> Model:
  """LLaMA 3.1 over a whole context (prefill): blocks scanned, the head not tied.

  Args:
    size: Of the model.
    tokens: In the context.
    batch: Sequences at once.
  """
  narrow = size.width * size.kv_heads // size.heads
  shapes = {
    "q": (size.width, size.width), "k": (narrow, size.width), "v": (narrow, size.width),
    "o": (size.width, size.width), "gate": (size.hidden, size.width),
    "up": (size.hidden, size.width), "down": (size.width, size.hidden),
    "attention_norm": (size.width,), "mlp_norm": (size.width,),
  }  # fmt: skip
  params = {
    "embed": _array(size.vocabulary, size.width),
    "head": _array(size.vocabulary, size.width),
    "norm": _array(size.width),
    "blocks": {name: _array(size.layers, *shape) for name, shape in shapes.items()},
  }
  shape = llama_model.Shape(size.heads, size.kv_heads, 500_000.0, 1e-5)

  def fn(params: Any, tokens: jax.Array) -> jax.Array:
    return llama_model.logits(shape, params, tokens)

  return Model(fn, params, jax.ShapeDtypeStruct((batch, tokens), jnp.int32))


class Gpt2(NamedTuple):
  """Sizes of a GPT-2."""

  layers: int
  heads: int
  width: int
  vocabulary: int = 50257
  context: int = 1024


GPT2_SMALL = Gpt2(12, 12, 768)
GPT2_MEDIUM = Gpt2(24, 16, 1024)
GPT2_LARGE = Gpt2(36, 20, 1280)
GPT2_XL = Gpt2(48, 25, 1600)


def gpt2(
  size: Gpt2 = GPT2_SMALL, *, tokens: int = 1024, batch: int = 1, scan: bool = True
) -> Model:
  """GPT-2: ids [batch, tokens] -> logits [batch, tokens, vocabulary], the head tied.

  Args:
    size: Layers, heads, width; GPT2_SMALL to GPT2_XL are the published ones.
    tokens: At most `size.context`.
    batch: Sequences at once.
    scan: Layers are one lax.scan over "blocks/...", stacked [layers, ...]; False makes
      them "blocks/0/...", one after the other.
  """
  if tokens > size.context:
    raise ValueError(f"{tokens} tokens do not fit a context of {size.context}")
  width = size.width
  norm = {"scale": _array(width), "bias": _array(width)}
  block = {
    "ln_1": norm,
    "qkv": _affine(width, 3 * width),
    "proj": _affine(width, width),
    "ln_2": norm,
    "up": _affine(width, 4 * width),
    "down": _affine(4 * width, width),
  }
  stacked = jax.tree.map(lambda leaf: _array(size.layers, *leaf.shape), block)
  params = {
    "wte": _array(size.vocabulary, width),
    "wpe": _array(size.context, width),
    "blocks": stacked if scan else [block] * size.layers,
    "ln_f": norm,
  }

  def fn(params: Any, ids: jax.Array) -> jax.Array:
    x = params["wte"][ids]
    x += jnp.broadcast_to(params["wpe"][: ids.shape[1]], x.shape)
    if scan:
      step = lambda x, p: (_block(p, x, size.heads), None)
      x, _ = jax.lax.scan(step, x, params["blocks"])
    else:
      for p in params["blocks"]:
        x = _block(p, x, size.heads)
    return jnp.einsum("btd,vd->btv", _norm(params["ln_f"], x), params["wte"])

  return Model(fn, params, jax.ShapeDtypeStruct((batch, tokens), jnp.int32))


def _block(p: dict[str, Any], x: jax.Array, heads: int) -> jax.Array:
  qkv = _dense(p["qkv"], _norm(p["ln_1"], x))
  x = x + _dense(p["proj"], _attention(qkv, heads))
  hidden = jax.nn.gelu(_dense(p["up"], _norm(p["ln_2"], x)), approximate=True)
  return x + _dense(p["down"], hidden)


def _attention(qkv: jax.Array, heads: int) -> jax.Array:
  """Causal attention of [B, T, 3 D]: queries, keys and values one after the other."""
  batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
  parts = qkv.reshape(batch, tokens, 3, heads, width // heads)
  q, k, v = (parts[:, :, i] for i in range(3))
  scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(width // heads)
  causal = jnp.tril(jnp.ones((tokens, tokens), bool))
  visible = jnp.broadcast_to(causal, scores.shape)
  weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf))
  return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, tokens, width)


def _norm(p: dict[str, Any], x: jax.Array) -> jax.Array:
  """Layer normalization over the last axis."""
  mean = jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
  scale, bias = (jnp.broadcast_to(p[name], x.shape) for name in ("scale", "bias"))
  return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias
