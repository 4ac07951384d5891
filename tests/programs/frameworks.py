"""The same two-layer network, relu between, as plain jax, linen, nnx and equinox."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import equinox as eqx
from flax import linen, nnx
import jax
import jax.numpy as jnp

INPUT, HIDDEN, OUTPUT, BATCH = 4, 8, 3, 16


class Network(NamedTuple):
  fn: Callable[[Any, jax.Array], jax.Array]  # [BATCH, INPUT] -> [BATCH, OUTPUT]
  params: Any
  weights: tuple[str, str]  # names of the two matrices


@functools.cache
def plain() -> Network:
  one, two = jax.random.split(jax.random.key(0))
  params = {
    "first": {"w": jax.random.normal(one, (INPUT, HIDDEN)), "b": jnp.ones(HIDDEN)},
    "second": {"w": jax.random.normal(two, (HIDDEN, OUTPUT)), "b": jnp.ones(OUTPUT)},
  }

  def fn(params, x):
    x = jax.nn.relu(x @ params["first"]["w"] + params["first"]["b"][None])
    return x @ params["second"]["w"] + params["second"]["b"][None]

  return Network(fn, params, ("first/w", "second/w"))


class Linen(linen.Module):
  @linen.compact
  def __call__(self, x):
    x = linen.relu(linen.Dense(HIDDEN)(x))
    return linen.Dense(OUTPUT)(x)


@functools.cache
def of_linen() -> Network:
  params = Linen().init(jax.random.key(0), jnp.ones((1, INPUT)))
  names = ("params/Dense_0/kernel", "params/Dense_1/kernel")
  return Network(Linen().apply, params, names)


class Nnx(nnx.Module):
  def __init__(self, rngs):
    self.first = nnx.Linear(INPUT, HIDDEN, rngs=rngs)
    self.second = nnx.Linear(HIDDEN, OUTPUT, rngs=rngs)

  def __call__(self, x):
    return self.second(nnx.relu(self.first(x)))


@functools.cache
def of_nnx() -> Network:
  graph, state = nnx.split(Nnx(nnx.Rngs(0)))
  fn = lambda state, x: nnx.merge(graph, state)(x)
  return Network(fn, state, ("first/kernel", "second/kernel"))


@functools.cache
def of_equinox() -> Network:
  whole = eqx.nn.MLP(INPUT, OUTPUT, HIDDEN, depth=1, key=jax.random.key(0))
  params, rest = eqx.partition(whole, eqx.is_array)
  fn = lambda params, x: jax.vmap(eqx.combine(params, rest))(x)
  return Network(fn, params, ("layers/0/weight", "layers/1/weight"))


NETWORKS = {
  "plain": plain,
  "linen": of_linen,
  "nnx": of_nnx,
  "equinox": of_equinox,
}


def inputs() -> jax.Array:
  return jax.random.normal(jax.random.key(2), (BATCH, INPUT))
