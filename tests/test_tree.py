"""Names of leaves, frozen pytree dataclasses, globs and finite checks."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import tree


@tree.pytree
class Point:
  x: float
  y: float = 2.0
  kind: str = tree.static(default="cartesian")


def test_what_moves_is_a_leaf_and_what_shapes_is_static():
  leaves, structure = jax.tree.flatten(Point(1.0))
  assert leaves == [1.0, 2.0]
  assert structure == jax.tree.structure(Point(5.0, 6.0))
  assert structure != jax.tree.structure(Point(1.0, kind="polar"))
  assert jax.jit(lambda p: p)(Point(1.0)).kind == "cartesian"


def test_a_pytree_is_frozen_hashable_and_comparable():
  with pytest.raises(dataclasses.FrozenInstanceError):
    Point(1.0).x = 2.0  # pyright: ignore[reportAttributeAccessIssue]
  assert Point(1.0) == Point(1.0) != Point(3.0)
  assert hash(Point(1.0)) == hash(Point(1.0))


def test_gradients_and_vmap_go_over_its_leaves():
  grad = jax.grad(lambda p: p.x**2 * p.y)(Point(3.0))
  assert (float(grad.x), float(grad.y)) == (12.0, 9.0)
  many = jax.vmap(lambda p: p.x + p.y)(Point(jnp.arange(3.0), jnp.ones(3)))
  np.testing.assert_array_equal(many, [1, 2, 3])


@jax.tree_util.register_pytree_with_keys_class
class Variable:
  """As flax nnx has it: a node whose only child is its attribute `value`."""

  def __init__(self, value):
    self.value = value

  def tree_flatten_with_keys(self):
    return ((jax.tree_util.GetAttrKey("value"), self.value),), None

  @classmethod
  def tree_unflatten(cls, aux, children):
    return cls(*children)


@pytest.mark.parametrize(
  ("value", "names"),
  [
    ({"b": 1, "a": {"c": 2}}, ["a/c", "b"]),
    ([1, (2, 3)], ["0", "1/0", "1/1"]),
    (Point(1.0), ["x", "y"]),
    ({"p": Point(1.0)}, ["p/x", "p/y"]),
    ({"dense": {"kernel": Variable(1), "bias": Variable(2)}},
     ["dense/bias", "dense/kernel"]),
    ({"value": 1, "other": {"value": 2}}, ["other/value", "value"]),  # a key, not nnx
    ({"a": Variable(1), "b": 2}, ["a", "b"]),
    (Variable(1), ["params"]),
    (3.0, ["params"]),
    (None, []),
    ({"a/b": 1, "a": {"b": 2}}, ["['a']['b']", "['a/b']"]),
  ],
)  # fmt: skip
def test_names(value, names):
  assert tree.names(value) == names
  assert list(tree.named_leaves(value)) == names
  assert list(tree.named_leaves(value).values()) == jax.tree.leaves(value)


def test_names_are_always_distinct():
  @jax.tree_util.register_pytree_with_keys_class
  class Both(Variable):
    def tree_flatten_with_keys(self):
      key = jax.tree_util.GetAttrKey
      return ((key("value"), self.value), (key("value/value"), self.value)), None

  # Dropping "value" from the first would leave the second's name or none.
  assert len(set(tree.names({"a": Both(1)}))) == 2


def test_kinds_of_leaves():
  shape = jax.ShapeDtypeStruct((2,), jnp.float32)
  assert (
    tree.is_array(jnp.ones(2)) and tree.is_array(np.ones(2)) and tree.is_array(shape)
  )
  assert not tree.is_array(1.0) and not tree.is_array("array")
  assert tree.is_concrete(1.0) and tree.is_concrete(np.float32(1))
  assert tree.is_concrete(jnp.ones(2)) and not tree.is_concrete(shape)
  assert not tree.is_concrete("text")
  assert not jax.jit(lambda x: jnp.array(tree.is_concrete(x)))(1.0)


def test_match_is_a_glob_in_order():
  names = ["conv1/kernel", "conv1/bias", "conv2/kernel", "head/kernel"]
  assert tree.match("conv*/kernel", names) == ["conv1/kernel", "conv2/kernel"]
  assert tree.match("*", names) == names
  assert tree.match("conv[2-9]/*", iter(names)) == ["conv2/kernel"]


KEYS = st.text("ab0[]*?!'/.", min_size=1, max_size=4)
TREES = st.recursive(
  st.just(0), lambda t: st.dictionaries(KEYS, t, min_size=1, max_size=4), max_leaves=9
)


@given(TREES)
def test_every_name_selects_itself(made):
  names = tree.names(made)
  assert len(set(names)) == len(names)
  for name in names:
    assert tree.match(name, names) == [name]


@pytest.mark.parametrize(
  ("pattern", "names", "hint"),
  [
    ("conv1/kernle", ["conv1/kernel", "head/bias"], "nearest: conv1/kernel"),
    ("zzz", ["a", "b"], "nearest: a, b"),
    ("*", [], "nothing to select from"),
    ("Conv*", ["conv1"], "nearest: conv1"),  # case matters
  ],
)
def test_a_glob_that_matches_nothing_names_the_nearest(pattern, names, hint):
  with pytest.raises(ValueError, match=hint):
    tree.match(pattern, names)


@pytest.mark.parametrize(
  "fine",
  [
    {"a": jnp.ones(3), "b": np.arange(3), "c": 2.0, "d": True},
    {"a": jnp.full(2, 1e4, jnp.bfloat16), "b": jnp.ones(2, jnp.float8_e4m3fn)},
    {"a": np.array([1e300])},  # finite in its own dtype
    {"a": "text", "b": 1j, "key": jax.random.key(0)},
  ],
)
def test_finite_leaves_pass(fine):
  tree.check_finite(fine, "model")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_the_first_bad_leaf_is_named(bad, dtype):
  leaf = np.ones((2, 3)).astype(jnp.dtype(dtype))
  leaf[0, 1] = leaf[1, 1] = bad
  params = {"a": jnp.ones(2), "b": {"kernel": leaf}, "c": jnp.full(2, np.nan)}
  with pytest.raises(ValueError, match="the model: b/kernel holds 2 of 6 values"):
    tree.check_finite(params, "the model")
