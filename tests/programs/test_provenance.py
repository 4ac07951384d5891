"""A product is named by the parameter that flows into it, whatever happens to it."""

import jax
import jax.numpy as jnp
import pytest

from jaxcodesign import trace
from jaxcodesign.programs import provenance


def array(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


PARAMS = {"w": array(4, 8), "other": array(4, 8), "scale": array(8), "s": array()}
X = array(3, 4)
MASK = array(4, 8, dtype=bool)


def quantize(w):
  return jnp.clip(jnp.round(w / 0.1), -7, 7) * 0.1


def in_loop(w):
  return jax.lax.fori_loop(0, 3, lambda i, v: v * 0.5, w)


def in_branch(p, x):
  return jax.lax.cond(x[0, 0] > 0, lambda: p["w"], lambda: 2 * p["w"])


NAMED = {
  "as it is": lambda p, x, mask: x @ p["w"],
  "cast": lambda p, x, mask: x.astype(jnp.bfloat16) @ p["w"].astype(jnp.bfloat16),
  "transposed twice": lambda p, x, mask: x @ p["w"].T.T,
  "reshaped": lambda p, x, mask: x @ p["w"].reshape(8, 4).reshape(4, 8),
  "quantized": lambda p, x, mask: x @ quantize(p["w"]),
  "masked by a constant": lambda p, x, mask: x @ (p["w"] * jnp.eye(4, 8)),
  "masked by data": lambda p, x, mask: x @ jnp.where(mask, p["w"], 0),
  "scaled by data": lambda p, x, mask: x @ (p["w"] * jnp.max(x)),
  "scaled by a learned scalar": lambda p, x, mask: x @ (p["w"] * p["s"]),
  "stopped": lambda p, x, mask: x @ jax.lax.stop_gradient(p["w"]),
  "on the left": lambda p, x, mask: (p["w"].T @ x.T).T,
  "in a jit": lambda p, x, mask: x @ jax.jit(quantize)(p["w"]),
  "in a loop": lambda p, x, mask: x @ in_loop(p["w"]),
  "in a branch": lambda p, x, mask: x @ in_branch(p, x),
  "rematerialized": lambda p, x, mask: x @ jax.checkpoint(quantize)(p["w"]),
  "vmapped": lambda p, x, mask: jax.vmap(lambda r: r @ p["w"])(x),
  "normalized": lambda p, x, mask: x @ (p["w"] / jnp.linalg.norm(p["w"])),
  "a sum of two": lambda p, x, mask: x @ (p["w"] + p["other"] * 0),
}  # fmt: skip


@pytest.mark.parametrize("how", NAMED)
def test_a_weight_keeps_its_name(how):
  work = trace(NAMED[how], branches="max")(PARAMS, X, MASK)
  (gemm,) = [g for g in work.gemms if g.n == 8]
  assert (gemm.lhs, gemm.rhs, gemm.m, gemm.k) == ("", "w", 3, 4)


def test_an_expert_chosen_by_data_keeps_its_name():
  params = {"experts": array(6, 4, 8), "router": array(4, 6)}

  def fn(p, x):
    return x @ p["experts"][jnp.argmax(jnp.sum(x @ p["router"], axis=0))]

  assert [g.rhs for g in trace(fn)(params, X).gemms] == ["router", "experts"]


def test_a_tied_embedding_names_the_head():
  params = {"wte": array(11, 4), "wpe": array(3, 4)}
  fn = lambda p, ids: (p["wte"][ids] + p["wpe"]) @ p["wte"].T
  (gemm,) = trace(fn)(params, array(3, dtype=jnp.int32)).gemms
  assert (gemm.lhs, gemm.rhs, gemm.n) == ("", "wte", 11)


UNNAMED = {
  "activation times activation": lambda p, x, mask: x @ x.T,
  "after a nonlinearity of both": lambda p, x, mask: jnp.tanh(x + p["w"][:3, :4]) @ x.T,
  "after a bias": lambda p, x, mask: (x + p["scale"][None, :4]) @ x.T,
}


@pytest.mark.parametrize("how", UNNAMED)
def test_what_data_flowed_into_is_an_activation(how):
  (gemm,) = trace(UNNAMED[how])(PARAMS, X, MASK).gemms
  assert (gemm.lhs, gemm.rhs) == ("", "")
  assert gemm.name.startswith("test_provenance.py:")  # the line stands in for a name


def test_an_activation_multiplied_by_weights_is_one():
  fn = lambda p, x: ((x @ p["w"]) * p["scale"][None]) @ p["w"].T
  gemms = trace(fn)(PARAMS, X).gemms
  assert [(g.lhs, g.rhs) for g in gemms] == [("", "w")] * 2


def test_two_weights_are_a_weight():
  params = {"a": array(4, 2), "b": array(2, 8)}
  gemms = trace(lambda p, x: x @ (p["a"] @ p["b"]))(params, X).gemms
  assert [(g.lhs, g.rhs) for g in gemms] == [("a", "b"), ("", "b")]


def test_a_carry_that_starts_from_parameters_and_meets_data_is_data():
  params = {"h": array(3, 4), "w": array(4, 4)}

  def fn(p, xs):
    body = lambda h, x: (jnp.tanh(h @ p["w"] + x), None)
    return jax.lax.scan(body, p["h"], xs)[0]

  (gemm,) = trace(fn)(params, array(5, 3, 4)).gemms
  assert (gemm.lhs, gemm.rhs, gemm.count) == ("", "w", 5)


def test_a_loop_that_swaps_two_weights_names_neither():
  def fn(p, x):
    def body(carry, _):
      a, b, x = carry
      return (b, a, x @ a), None

    return jax.lax.scan(body, (p["w"], p["other"], x), None, length=2)[0][2]

  params = {"w": array(4, 4), "other": array(4, 4)}
  (gemm,) = trace(fn)(params, X).gemms
  assert (gemm.lhs, gemm.rhs) == ("", "")


def test_keyword_data_is_no_parameter():
  fn = lambda p, *, x: x @ p["w"]
  (gemm,) = trace(fn)(PARAMS, x=X).gemms
  assert (gemm.lhs, gemm.rhs) == ("", "w")


def test_a_batch_of_gradients_has_the_names_of_its_parameters():
  known = {"a": {"w": jnp.ones((3, 2))}, "b": jnp.ones(4)}
  batch = jax.tree.map(lambda x: jnp.ones((5, *x.shape)), known)
  assert provenance.gradient_names((jnp.ones(()), batch), known) == ["", "a/w", "b"]
  other = {"a": {"w": jnp.ones((3, 2, 1))}, "b": jnp.ones(3)}
  assert provenance.gradient_names(other, known) == ["", ""]
