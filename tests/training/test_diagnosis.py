"""The first tensor that is not finite is named."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcodesign.training import diagnosis


class Outcome(NamedTuple):
  loss: jax.Array


PARAMS = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
BATCH = {"image": jnp.ones((2, 4))}


def loss(params, batch, middle=lambda x: x, end=lambda x: x):
  x = middle(batch["image"] @ params["a"])
  return Outcome(end(jnp.sum(x @ params["b"])))


def test_inputs_and_parameters_come_first():
  broken = {"image": BATCH["image"].at[0, 0].set(jnp.nan)}
  assert "the batch's image" in diagnosis.suspect(loss, PARAMS, broken)
  params = PARAMS | {"b": PARAMS["b"] * jnp.inf}
  assert "the parameter b" in diagnosis.suspect(loss, params, BATCH)


def test_a_product_is_named_by_what_flows_into_it():
  log = lambda p, b: loss(p, b, middle=lambda x: jnp.log(x - 100))
  assert diagnosis.suspect(log, PARAMS, BATCH) == (
    "its input is not finite in the product b"
  )
  large = PARAMS | {"a": PARAMS["a"] * 2e38}
  assert diagnosis.suspect(loss, large, BATCH) == (
    "its result is not finite in the product a"
  )


def test_the_loss_and_the_gradient_come_last():
  end = lambda p, b: loss(p, b, end=lambda x: jnp.log(x - 1e6))
  assert "the loss itself" in diagnosis.suspect(end, PARAMS, BATCH)
  root = lambda p, b: loss(p, b, end=lambda x: jnp.sqrt(x - x))
  assert "the gradient of a" in diagnosis.suspect(root, PARAMS, BATCH)


def test_a_scanned_stack_is_seen_into():
  def scanned(params, batch):
    body = lambda x, w: (jnp.exp(x @ w), None)
    x, _ = jax.lax.scan(body, batch["image"], params["w"])
    return Outcome(jnp.sum(x))

  found = diagnosis.suspect(scanned, {"w": jnp.ones((5, 4, 4))}, BATCH)
  assert "in the product w" in found
