"""Derivatives of rounded gradients are those of the textbook form, written by hand."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import quantize
from jaxcodesign.models.shift import shift
from jaxcodesign.numerics.formats import BlockFloat, Fixed
from jaxcodesign.numerics.precision_schedules import Constant
from jaxcodesign.programs import fast
from jaxcodesign.programs.precision import Rule

KEYS = jax.random.split(jax.random.key(0), 5)
X = jax.random.normal(KEYS[0], (32, 8))
PARAMS = {
  "a": jax.random.normal(KEYS[1], (8, 16)) / 3,
  "b": jax.random.normal(KEYS[2], (16, 8)) / 4,
}
ALONG = {
  "a": jax.random.normal(KEYS[3], (8, 16)),
  "b": jax.random.normal(KEYS[4], (16, 8)),
}


def mlp(params, x):
  return jnp.tanh(x @ params["a"]) @ params["b"]


def loss_of(fn):
  return lambda params: jnp.sum(fn(params, X) ** 2)


def backward(gradient):
  """grad of grad: the transposed Hessian times ALONG."""
  dot = lambda tree: sum(map(jnp.vdot, jax.tree.leaves(tree), jax.tree.leaves(ALONG)))
  return jax.grad(lambda p: dot(gradient(p)))(PARAMS)


WAYS = {
  "grad of grad": backward,
  "jvp of grad": lambda gradient: jax.jvp(gradient, (PARAMS,), (ALONG,))[1],
  "linearize of grad": lambda gradient: jax.linearize(gradient, PARAMS)[1](ALONG),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def second(way, fn):
  return WAYS[way](jax.grad(loss_of(fn)))


def rounded(fmt, gradient=True):
  return quantize(mlp, [Rule("*", fmt, fmt, gradient=fmt if gradient else None)])


def fast_of(mantissa, probe=False):
  scheme = fast.Fast(Constant(mantissa), stochastic=())
  told = fast.plan(mlp, scheme)(PARAMS, X).probe() if probe else None
  return fast.quantize(mlp, scheme, progress=0.5, probe=told)


def by_hand(fmt):
  """The gradient of loss_of(rounded(fmt)), every rounding x + stop(fmt(x) - x)."""

  def along(axis):
    def q(x):
      y = jnp.moveaxis(fmt.quantize(jnp.moveaxis(x, axis, -1)), -1, axis)
      return x + jax.lax.stop_gradient(y - x)

    return q

  row, column = along(1), along(0)  # what is contracted over

  def gradient(params):
    hidden = jnp.tanh(row(X) @ column(params["a"]))
    out = 2 * (row(hidden) @ column(params["b"]))
    inner = row(out) @ row(params["b"]).T * (1 - hidden**2)
    return {
      "a": column(X).T @ column(inner),
      "b": column(hidden).T @ column(out),
    }

  return gradient


@pytest.mark.parametrize(
  ("fmt", "way"),
  [
    (Fixed(4), "grad of grad"),
    (Fixed(4), "jvp of grad"),
    (BlockFloat(3, 8), "jvp of grad"),
  ],
  ids=str,
)
def test_they_are_those_of_the_gradient_written_out(fmt, way):
  both = jax.jit(lambda g: (g(PARAMS), WAYS[way](g)), static_argnums=0)
  found, wanted = both(jax.grad(loss_of(rounded(fmt)))), both(by_hand(fmt))
  # Grids make a last bit of a sum a step: one layer's sum decides the next rounding.
  chex.assert_trees_all_close(found[0], wanted[0], rtol=1e-4, atol=1e-4)
  chex.assert_trees_all_close(found[1], wanted[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
  ("gradient", "way"), [*((True, way) for way in WAYS), (False, "grad of grad")]
)
def test_sixteen_bits_have_those_of_float32(gradient, way):
  fns = rounded(Fixed(16), gradient), mlp
  found, wanted = (second(way, fn) for fn in fns)
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
    assert np.linalg.norm(one - other) < 2e-4 * np.linalg.norm(other)


@pytest.mark.parametrize(
  ("probe", "way"),
  [(True, "grad of grad"), (True, "jvp of grad"), (False, "jvp of grad")],
)
def test_fast_has_those_of_its_rules(probe, way):
  found = second(way, fast_of(4, probe))
  wanted = second(way, rounded(BlockFloat(4, 16)))
  chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-5)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(found))


def test_a_hessian_is_that_of_float32():
  # Of the parameters that every output has a product with.
  whole = lambda fn: lambda b: loss_of(fn)(PARAMS | {"b": b})
  fns = rounded(Fixed(16)), mlp
  found, wanted = (jax.jit(jax.hessian(whole(fn)))(PARAMS["b"]) for fn in fns)
  chex.assert_trees_all_close(found, wanted, rtol=1e-3, atol=1e-2)


def test_forward_mode_through_gradient_formats_stays_refused():
  with pytest.raises(TypeError, match="forward-mode"):
    jax.jvp(loss_of(rounded(Fixed(8))), (PARAMS,), (ALONG,))


@pytest.mark.parametrize("order", [(jax.grad, jax.grad), (jax.jacfwd, jax.grad)])
def test_a_shift_has_those_of_a_sum_of_shifted_images(order):
  outer, inner = order
  shifts = ((0, 1), (-1, 0))
  x, y = jax.random.normal(KEYS[0], (2, 1, 3, 3, 2))

  def slow(x):
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    cut = lambda c, d, r: padded[:, 1 + d : 4 + d, 1 + r : 4 + r, c]
    return jnp.stack([cut(c, d, r) for c, (d, r) in enumerate(shifts)], -1)

  @functools.partial(jax.jit, static_argnums=0)
  def second(fn):
    cubed = lambda x: jnp.sum(y * fn(x) ** 3)
    along = lambda x: jnp.vdot(inner(cubed)(x), y)
    return outer(along)(x)

  found, wanted = second(lambda x: shift(x, shifts)), second(slow)
  chex.assert_trees_all_close(found, wanted)
  assert np.any(wanted)
