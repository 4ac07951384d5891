"""Perplexity of a language model under number formats, weights prepared block by block.

Held-back text is cut into windows of equal length, spread evenly over it; the score is
exp of the mean negative log-likelihood of every token of a window but its first. The
reference is the model as the file has it, dequantized to float32.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign.data.cache import cache, expanded
from jaxcodesign.experiments.codesign import Variant
from jaxcodesign.models import gguf, llama
from jaxcodesign.models.llama import Shape
from jaxcodesign.numerics import post_training
from jaxcodesign.numerics.formats.format import Format
from jaxcodesign.programs import precision
from jaxcodesign.programs.precision import Policy
from jaxcodesign.programs.rewrite import rewrite_gemms
from jaxcodesign.programs.workload import Workload, trace

Method = Literal["gptq", "awq"]


@dataclasses.dataclass(frozen=True)
class Prepared(Variant):
  """A variant whose weights are rounded with the activations of calibration text.

  Attributes:
    method: "gptq" or "awq".
    weight: Format of the weights of the blocks; rules of the policy leave them as they
      are. The factors of AWQ are folded back, so activations are rounded unscaled.
  """

  method: Method = "gptq"
  weight: Format | None = None


class Loaded(NamedTuple):
  """A model with text."""

  shape: Shape
  params: Any
  windows: np.ndarray  # [N, T] held-back tokens
  calibration: np.ndarray  # [M, T] tokens of other text


@dataclasses.dataclass(frozen=True)
class Speeches:
  """A GGUF model on addresses of American presidents, those since `since` held back.

  Attributes:
    model: GGUF file; default SmolLM2-135M in the cache folder.
    directory: Folder of YEAR_name.txt files; default in the cache folder.
    since: First year that is held back; earlier ones calibrate.
    windows: Held-back windows, spread evenly; 0 takes all.
    length: Tokens of a window.
    calibration: Windows of earlier text for GPTQ and AWQ.
  """

  model: str = ""
  directory: str = ""
  since: int = 2000
  windows: int = 32
  length: int = 256
  calibration: int = 16

  metric = "perplexity"

  def load(self) -> Loaded:
    """Model and token windows.

    Raises:
      FileNotFoundError: Naming what is missing.
      ValueError: If the text is too short for the windows.
    """
    file = self.model or cache() / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    found = gguf.read(file)
    folder = expanded(self.directory or cache() / "sotu")
    texts = sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.txt"))
    if not texts:
      raise FileNotFoundError(
        f"no YEAR_name.txt in {folder}: put the speeches there, or name another folder "
        "with --network.directory"
      )
    late = lambda path: int(path.name[:4]) >= self.since
    parts = []
    for wanted, count in ((True, self.windows), (False, self.calibration)):
      joined = "\n\n".join(
        path.read_text(errors="replace") for path in texts if late(path) is wanted
      )
      parts.append(spread(found.tokenizer.encode(joined).ids, self.length, count))
    return Loaded(found.shape, found.params, *parts)

  def score(self, loaded: Loaded, variant: Variant) -> float:
    """Perplexity of the held-back windows."""
    return perplexity(loaded, variant)

  def workload(self, loaded: Loaded) -> Workload:
    """What one window asks of a machine."""
    fn = functools.partial(llama.logits, loaded.shape)
    return trace(fn)(loaded.params, jnp.asarray(loaded.windows[:1]))


@dataclasses.dataclass(frozen=True)
class RandomLlama:
  """Two small random blocks on random tokens: for tests in seconds.

  Attributes:
    width: Features, a multiple of 32.
    limit: Held-back windows.
  """

  width: int = 32
  limit: int = 4

  metric = "perplexity"

  def load(self) -> Loaded:
    """Everything from fixed seeds."""
    d, layers, vocabulary = self.width, 2, 64
    shapes = {
      "q": (d, d), "k": (d // 2, d), "v": (d // 2, d), "o": (d, d),
      "gate": (2 * d, d), "up": (2 * d, d), "down": (d, 2 * d),
    }  # fmt: skip
    keys = jax.random.split(jax.random.key(0), len(shapes) + 2)
    blocks = {
      name: jax.random.normal(key, (layers, *s)) / s[-1] ** 0.5
      for key, (name, s) in zip(keys, shapes.items())
    }
    blocks |= {n: jnp.ones((layers, d)) for n in ("attention_norm", "mlp_norm")}
    embed = jax.random.normal(keys[-2], (vocabulary, d)) / 4
    tokens = jax.random.randint(keys[-1], (self.limit + 4, 16), 0, vocabulary)
    shape = Shape(4, 2, 1e4, 1e-5)
    params = {"embed": embed, "norm": jnp.ones(d), "blocks": blocks}
    return Loaded(shape, params, np.array(tokens[4:]), np.array(tokens[:4]))

  score = Speeches.score
  workload = Speeches.workload


def spread(tokens: list[int], length: int, count: int) -> np.ndarray:
  """`count` windows [count, length] evenly spaced over the tokens, all of them if 0."""
  most = len(tokens) // length
  if most < max(count, 1):
    raise ValueError(
      f"{len(tokens):,} tokens hold {most} windows of {length}, not {count}; ask for "
      "fewer or shorter windows"
    )
  whole = np.array(tokens[: most * length], np.int32).reshape(most, length)
  return whole[np.linspace(0, most - 1, count or most).round().astype(int)]


def perplexity(loaded: Loaded, variant: Variant, batch: int = 4) -> float:
  """exp of the mean negative log-likelihood of all predicted tokens."""
  params = loaded.params
  if isinstance(variant, Prepared):
    params = prepare(loaded, variant)
  total = 0.0
  for start in range(0, len(loaded.windows), batch):
    tokens = loaded.windows[start : start + batch]
    missing = np.zeros((batch - len(tokens), tokens.shape[1]), tokens.dtype)
    full = np.concatenate([tokens, missing])
    found = _likelihood(loaded.shape, variant.policy, params, full)
    total -= float(np.sum(np.asarray(found, np.float64)[: len(tokens)]))
  predicted = loaded.windows.shape[0] * (loaded.windows.shape[1] - 1)
  return float(np.exp(total / predicted))


@functools.partial(jax.jit, static_argnums=0)
def _likelihood(
  shape: Shape, policy: Policy, params: Any, tokens: jax.Array
) -> jax.Array:
  """Log-likelihood [B] of each window's tokens but the first."""
  fn = functools.partial(llama.logits, shape)
  if policy:
    fn = precision.quantize(fn, policy)
  predicted = jax.nn.log_softmax(fn(params, tokens[:, :-1]))
  chosen = jnp.take_along_axis(predicted, tokens[:, 1:, None], axis=-1)
  return jnp.sum(chosen, axis=(1, 2))


def prepare(
  loaded: Loaded, variant: Prepared, on_block: Callable[[int], None] | None = None
) -> Any:
  """Parameters with every matrix rounded for the activations that reach it.

  Block after block: calibration text runs through the blocks already rounded.
  """
  assert variant.weight is not None
  x = loaded.params["embed"][jnp.asarray(loaded.calibration)]
  stacked = loaded.params["blocks"]
  done: list[llama.Block] = []
  for i in range(len(stacked["q"])):
    p = {name: leaf[i] for name, leaf in stacked.items()}
    inputs = _inputs(loaded.shape, p, x)
    for name in llama.MATRICES:
      p[name] = _rounded(variant.method, variant.weight, p[name], inputs[name])
    x = _block(loaded.shape, p, x)
    done.append(p)
    if on_block is not None:
      on_block(i)
  return loaded.params | {"blocks": jax.tree.map(lambda *a: jnp.stack(a), *done)}


def _rounded(method: Method, fmt: Format, weight: Any, inputs: jax.Array) -> jax.Array:
  if method == "gptq":
    return post_training.gptq(fmt, weight, inputs)
  factors, rounded = post_training.awq(fmt, weight, inputs)
  return rounded / factors[None]


_block = jax.jit(llama.block, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _inputs(shape: Shape, p: llama.Block, x: jax.Array) -> dict[str, jax.Array]:
  """What each matrix of a block multiplies: name -> [tokens, in]."""
  seen: dict[str, jax.Array] = {}

  def rule(gemm: Any, lhs: jax.Array, rhs: jax.Array, dot: Any) -> jax.Array:
    if gemm.rhs:
      seen[gemm.rhs] = lhs[0]
    return dot(lhs, rhs)

  rewrite_gemms(functools.partial(llama.block, shape), rule)(p, x)
  return seen
