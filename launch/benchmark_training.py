"""How much dearer a training step is with all its products in another precision.

Forward, input-gradient and weight-gradient products are rounded, weights and
activations to nearest, gradients stochastically; FAST decides the bits of every tensor
besides, and tells what it decided. A step is what `launch.train` runs, loss and AdamW
included. The floor is the float32 step of the same model, run in turns.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxcodesign import models
from jaxcodesign.numerics import formats
from jaxcodesign.programs.fast import Fast
from jaxcodesign.programs.precision import Rule
from jaxcodesign.training import losses
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.rounded import Precision
from jaxcodesign.training.step import prepare
from jaxcodesign.training.task import Outcome
from launch.timing import Measurement, ratio

BATCH, PIXELS, CLASSES, STEPS = 128, 28, 10, 1000
BFP4 = formats.BlockFloat(4)
PRECISIONS: dict[str, Precision] = {
  "int8": (Rule("*", formats.Fixed(8), formats.Fixed(8), formats.Fixed(8)),),
  "BFP 4 bit": (Rule("*", BFP4, BFP4, BFP4),),
  "FAST": Fast(),
}
Network = tuple[Callable[[Any, jax.Array], jax.Array], Any]
Batch = dict[str, jax.Array]


def training(repetitions: int = 15) -> Iterator[Measurement]:
  """Each model's step in each of PRECISIONS over its float32 step, FAST's over BFP's.

  Args:
    repetitions: Pairs of steps behind each ratio.
  """
  batch = {
    "image": jax.random.normal(jax.random.key(0), (BATCH, PIXELS, PIXELS, 1)),
    "label": jnp.arange(BATCH) % CLASSES,
  }
  for name, network in networks().items():
    plain = stepper(network, None, batch)
    runs = {title: stepper(network, how, batch) for title, how in PRECISIONS.items()}
    for title, run in runs.items():
      value, took = ratio(run, plain, repetitions)
      most = "<= 1.5 x" if name == "ViT" else "<= 1.3 x"
      most = "" if title == "FAST" else most  # asked over fixed BFP, below
      yield Measurement(
        f"training step, {name}, {title}", value, "x", "its float32 step", most, took
      )
    value, took = ratio(runs["FAST"], runs["BFP 4 bit"], repetitions)
    yield Measurement(
      f"training step, {name}, FAST", value, "x", "fixed BFP 4 bit", "<= 1.25 x", took
    )


def stepper(
  network: Network, precision: Precision, batch: Batch
) -> Callable[[], jax.Array]:
  """A function that makes one step from where the last one ended."""
  apply, params = network

  def loss(params: Any, batch: Batch, *, train: bool) -> Outcome:
    del train
    logits = apply(params, batch["image"])
    right = jnp.sum(logits.argmax(-1) == batch["label"], dtype=jnp.float32)
    value = losses.cross_entropy(logits, batch["label"], 0.1)
    return Outcome(value, right, jnp.float32(BATCH), None)

  config = TrainConfig(batch_size=BATCH, precision=precision)
  functions = prepare(loss, config, STEPS, params, batch)
  step = jax.jit(functions.step, donate_argnums=0)
  state = [functions.init(jax.tree.map(jnp.copy, params), jax.random.key(1))]

  def run() -> jax.Array:
    state[0], told = step(state[0], batch, ())
    return told.loss

  return run


def networks() -> dict[str, Network]:
  """An MLP, a CNN and a small vision transformer for [BATCH, 28, 28, 1] images."""
  cnn = models.Cnn()
  key = jax.random.key(2)
  return {
    "MLP": (
      mlp,
      matrices(key, {"in": (784, 512), "mid": (512, 512), "out": (512, 10)}),
    ),
    "CNN": (cnn.apply, cnn.init(key, (PIXELS, PIXELS, 1), CLASSES)),
    "ViT": (vit, vit_params(key)),
  }


def matrices(
  key: jax.Array, shapes: dict[str, tuple[int, ...]]
) -> dict[str, jax.Array]:
  """Gaussian weights of variance 1 / fan-in."""
  keys = jax.random.split(key, len(shapes))
  return {
    name: jax.random.normal(k, shape) / shape[-2] ** 0.5
    for k, (name, shape) in zip(keys, shapes.items())
  }


def mlp(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
  """Two hidden layers of 512."""
  x = jax.nn.relu(images.reshape(len(images), -1) @ params["in"])
  return jax.nn.relu(x @ params["mid"]) @ params["out"]


def vit_params(key: jax.Array, width: int = 128, layers: int = 4) -> dict[str, Any]:
  """Weights of `vit`: patches of 4 x 4, `layers` stacked blocks."""
  ends, blocks = jax.random.split(key)
  shapes = {"qkv": (width, 3 * width), "proj": (width, width),
            "up": (width, 4 * width), "down": (4 * width, width)}  # fmt: skip
  return matrices(
    ends, {"patch": (16, width), "at": (49, width), "head": (width, 10)}
  ) | {"blocks": matrices(blocks, {n: (layers, *s) for n, s in shapes.items()})}


def vit(params: dict[str, Any], images: jax.Array, heads: int = 4) -> jax.Array:
  """A pre-norm vision transformer on 49 patches, its blocks scanned, mean pooled."""
  b = len(images)
  x = images.reshape(b, 7, 4, 7, 4).swapaxes(2, 3).reshape(b, 49, 16)
  x = x @ params["patch"] + params["at"][None]

  def norm(x):
    return jax.nn.standardize(x, axis=-1)

  def block(x, p):
    q, k, v = jnp.split(norm(x) @ p["qkv"], 3, axis=-1)
    q, k, v = (y.reshape(b, 49, heads, -1).swapaxes(1, 2) for y in (q, k, v))
    scores = q @ k.swapaxes(2, 3) / q.shape[-1] ** 0.5
    mixed = (jax.nn.softmax(scores) @ v).swapaxes(1, 2).reshape(x.shape)
    x = x + mixed @ p["proj"]
    return x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"], None

  x, _ = jax.lax.scan(block, x, params["blocks"])
  return norm(x).mean(1) @ params["head"]
