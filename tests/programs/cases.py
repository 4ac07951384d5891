"""Programs that a quantizing transform must reach into, each with its answer.

A case is written once, with `W` around every weight and `A` around every activation
that enters a product, and `G` around what comes out. With identities it is the plain
function that a user has; with W and A that round, and a G that rounds the gradient on
its way back, it is what quantizing that function must compute.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

Round = Callable[[jax.Array], jax.Array]
Case = Callable[[Round, Round, Round], Callable[[Any, jax.Array], jax.Array]]
SAME: Round = lambda x: x
WIDTH, BATCH = 8, 4


def normal(seed: int, *shape: int) -> np.ndarray:
  """Drawn by numpy: in a jitted function XLA would draw while it compiles, slowly."""
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def params() -> dict[str, jax.Array]:
  return {
    "w": jnp.asarray(normal(3, WIDTH, WIDTH) / 3),
    "v": jnp.asarray(normal(4, WIDTH, WIDTH) / 3),
    "stack": jnp.asarray(normal(5, 3, WIDTH, WIDTH) / 3),
    "kernel": jnp.asarray(normal(6, 3, 3, WIDTH, WIDTH) / 5),
    "depth": jnp.asarray(normal(7, 3, 3, 1, WIDTH) / 5),
  }


def inputs() -> jax.Array:
  return jnp.asarray(normal(1, BATCH, WIDTH))


IMAGES = normal(2, 2, 6, 6, WIDTH)


def convolution(leaf: str, strides: tuple[int, int], groups: int, padding: Any) -> Case:
  def case(W: Round, A: Round, G: Round):
    def fn(p, x):
      kernel = p[leaf][:, :, : WIDTH // groups]
      return G(jax.lax.conv_general_dilated(
        A(IMAGES * x[0, 0]), W(kernel), strides, padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
      ))  # fmt: skip

    return fn

  return case


def two_layers(W: Round, A: Round, G: Round):
  return lambda p, x: G(A(jax.nn.relu(G(A(x) @ W(p["w"])))) @ W(p["v"]))


helper = jax.jit(lambda w, x: x @ w)
helper(jnp.ones((WIDTH, WIDTH)), jnp.ones((BATCH, WIDTH)))  # warm before any test


def warm(W: Round, A: Round, G: Round):
  if W is SAME:
    return lambda p, x: helper(p["w"], x)
  return lambda p, x: G(A(x) @ W(p["w"]))


def scanned(W: Round, A: Round, G: Round):
  def fn(p, x):
    body = lambda c, w: (jnp.tanh(G(A(c) @ W(w))), None)
    return jax.lax.scan(body, x, p["stack"])[0]

  return fn


def looped(W: Round, A: Round, G: Round):
  def fn(p, x):
    body = lambda c: (c[0] + 1, jnp.tanh(G(A(c[1]) @ W(p["w"]))))
    return jax.lax.while_loop(lambda c: c[0] < 3, body, (0, x))[1]

  return fn


def branched(W: Round, A: Round, G: Round):
  def fn(p, x):
    return jax.lax.cond(
      x[0, 0] < 99, lambda: G(A(x) @ W(p["w"])), lambda: G(A(x) @ W(p["v"]))
    )

  return fn


def remat(W: Round, A: Round, G: Round):
  return jax.checkpoint(
    lambda p, x: jnp.sin(G(A(jnp.sin(G(A(x) @ W(p["w"])))) @ W(p["v"])))
  )


def vmapped(W: Round, A: Round, G: Round):
  # Rounded outside: one scale for the batch, as the batched product has.
  def fn(p, x):
    x, w = A(x), W(p["w"])
    return G(jax.vmap(lambda row: row @ w)(x))

  return fn


def attention(W: Round, A: Round, G: Round):
  def fn(p, x):
    q, k, v = (G(A(x) @ W(p["stack"][i])) for i in range(3))
    scores = G(jnp.einsum("qd,kd->qk", A(q), A(k)))
    return G(A(jax.nn.softmax(scores)) @ A(v))

  return fn


def three_operands(W: Round, A: Round, G: Round):
  if W is SAME:
    return lambda p, x: jnp.einsum("bi,ij,jk->bk", x, p["w"], p["v"])
  return lambda p, x: G(A(G(A(x) @ W(p["w"]))) @ W(p["v"]))


def einsum(W: Round, A: Round, G: Round):
  return lambda p, x: G(jnp.einsum("bi,sij->bsj", A(x), W(p["stack"])))


def tied(W: Round, A: Round, G: Round):
  return lambda p, x: G(A(G(A(x) @ W(p["w"]))) @ W(p["w"]).T)


def gathered(W: Round, A: Round, G: Round):
  def fn(p, x):
    return G(A(x) @ W(p["stack"][jnp.argmax(x[0]) % 3]))

  return fn


def own_derivative(W: Round, A: Round, G: Round):
  @jax.custom_vjp
  def product(w, x):
    return A(x) @ W(w)

  def backward(saved, g):
    w, x = saved
    return x.T @ g, 2 * g @ w.T  # not what autodiff would do

  # The residuals are the author's: unrounded.
  product.defvjp(lambda w, x: (A(x) @ W(w), (w, x)), backward)
  return lambda p, x: product(p["w"], x)


MASK = np.float32(np.indices((WIDTH, WIDTH)).sum(0) % 3 > 0)

CASES: dict[str, Case] = {
  "two layers": two_layers,
  "jitted helper, traced before": warm,
  "masked weight": lambda W, A, G: lambda p, x: G(A(x) @ W(p["w"] * MASK)),
  "cast weight": lambda W, A, G: (
    lambda p, x: G(A(x.astype(jnp.bfloat16)) @ W(p["w"].astype(jnp.bfloat16)))
  ),
  "transposed weight": lambda W, A, G: lambda p, x: G(A(x) @ W(p["w"].T)),
  "weight on the left": lambda W, A, G: lambda p, x: G(W(p["w"]) @ A(x.T)).T,
  "reshaped weight": lambda W, A, G: (
    lambda p, x: G(A(x) @ W(p["stack"].reshape(WIDTH, 3 * WIDTH)))
  ),
  "gathered weight": gathered,
  "tied weight": tied,
  "stacked weights, scanned": scanned,
  "while": looped,
  "cond": branched,
  "remat": remat,
  "vmap": vmapped,
  "einsum": einsum,
  "einsum of three operands": three_operands,
  "attention": attention,
  "convolution": convolution("kernel", (1, 1), 1, "SAME"),
  "strided convolution": convolution("kernel", (2, 2), 1, "VALID"),
  "grouped convolution": convolution("kernel", (1, 1), 2, "SAME"),
  "depthwise convolution": convolution("depth", (1, 1), WIDTH, "SAME"),
  "custom_vjp": own_derivative,
}


class Holder(nnx.Module):
  """A case as an nnx module, for tools that take modules only."""

  def __init__(self, case: Case):
    self.fn = case(SAME, SAME, SAME)
    for name, value in params().items():
      setattr(self, name, nnx.Param(value))

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.fn({name: getattr(self, name)[...] for name in params()}, x)
