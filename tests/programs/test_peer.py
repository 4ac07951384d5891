"""The README's table of what quantizing must reach, run with this library and qwix."""

import pathlib
import re

import equinox as eqx
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

import jaxcodesign
from jaxcodesign.numerics.formats import Fixed
from jaxcodesign.programs.precision import Rule
from tests.programs import cases

README = pathlib.Path(__file__).parents[2] / "README.md"


def table() -> dict[str, tuple[str, str]]:
  """What was tried -> (this library, qwix), as the README says."""
  text = README.read_text().split("| tried |")[1].split("\n\n")[0]
  rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", text, re.M)
  return {name: (ours, theirs) for name, ours, theirs in rows}


def ours(case, run, leaf="*"):
  plain = case(cases.SAME, cases.SAME, cases.SAME)
  quantized = jaxcodesign.quantize(plain, [Rule(leaf, Fixed(8), Fixed(8))])
  loss = lambda fn: lambda p: jnp.sum(fn(p, cases.inputs()) ** 2)
  return [run(loss(fn), cases.params()) for fn in (quantized, plain)]


def theirs(case, run, leaf=".*"):
  rule = qwix.QtRule(module_path=leaf, weight_qtype=jnp.int8, act_qtype=jnp.int8)
  model, x = cases.Holder(case), cases.inputs()
  quantized = qwix.quantize_model(model, qwix.QtProvider([rule]), x)
  results = []
  for module in (quantized, model):
    graph, state = nnx.split(module)
    loss = lambda s, graph=graph: jnp.sum(nnx.merge(graph, s)(x) ** 2)
    results.append(run(loss, state))
  return results


def of_equinox():
  layer = eqx.nn.Linear(cases.WIDTH, 3, key=jax.random.key(0))
  params, rest = eqx.partition(layer, eqx.is_array)
  fn = lambda params, x: jax.vmap(eqx.combine(params, rest))(x)
  return layer, params, fn


def quantize_modules(model):
  return qwix.quantize_model(model, qwix.QtProvider([]), cases.inputs())


def ours_equinox():
  _, params, fn = of_equinox()
  quantized = jaxcodesign.quantize(fn, [Rule("*", Fixed(8), Fixed(8))])
  return [jax.jit(f)(params, cases.inputs()) for f in (quantized, fn)]


VALUE = lambda loss, params: jax.jit(loss)(params)
GRAD = lambda loss, params: jax.jit(jax.grad(loss))(params)
TANGENT = lambda loss, p: jax.jit(lambda p: jax.jvp(loss, (p,), (p,))[1])(p)
C = cases.CASES
TRIED = {
  "a plain function": (
    lambda: ours(C["two layers"], VALUE),
    lambda: quantize_modules(lambda x: x),
  ),
  "an equinox module": (ours_equinox, lambda: quantize_modules(of_equinox()[0])),
  "a jitted helper that was traced earlier in the process": (
    lambda: ours(C["jitted helper, traced before"], VALUE),
    lambda: theirs(C["jitted helper, traced before"], VALUE),
  ),
  "an einsum of three operands": (
    lambda: ours(C["einsum of three operands"], VALUE),
    lambda: theirs(C["einsum of three operands"], VALUE),
  ),
  "a grouped convolution": (
    lambda: ours(C["grouped convolution"], VALUE),
    lambda: theirs(C["grouped convolution"], VALUE),
  ),
  "the gradient of a depthwise convolution": (
    lambda: ours(C["depthwise convolution"], GRAD),
    lambda: theirs(C["depthwise convolution"], GRAD),
  ),
  "forward mode, `jax.jvp`": (
    lambda: ours(C["einsum"], TANGENT),
    lambda: theirs(C["einsum"], TANGENT),
  ),
  "a rule that matches nothing": (
    lambda: ours(C["einsum"], VALUE, "stak"),
    lambda: theirs(C["einsum"], VALUE, "stak"),
  ),
}


def outcome(attempt) -> str:
  """What happened, in the words of the table."""
  try:
    quantized, plain = map(jax.tree.leaves, attempt())
  except Exception as error:  # any: the table says which
    return f"raises {type(error).__name__}"
  finite = all(np.isfinite(leaf).all() for leaf in quantized)
  assert finite
  same = all(map(np.array_equal, quantized, plain))
  return "silent no-op" if same else "rounds"


def test_the_table_has_these_rows():
  assert table().keys() == TRIED.keys() and qwix.__version__ == "0.1.8"


# The peer warns and promotes; what it does is the question here, not how strictly.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRIED)
def test_the_table_is_true(name):
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    assert tuple(map(outcome, TRIED[name])) == table()[name]
