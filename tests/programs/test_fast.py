"""Fixed precision is that of rules; decisions are those of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.numerics.formats import BlockFloat, noise
from jaxcodesign.numerics.precision_schedules import Adaptive, Constant
from jaxcodesign.programs import fast
from jaxcodesign.programs.fast import Fast
from jaxcodesign.programs.policy import OPERANDS, Rule
from jaxcodesign.programs.precision import quantize

KEYS = jax.random.split(jax.random.key(0), 3)
PARAMS = {
  "a": jax.random.normal(KEYS[0], (48, 32)),
  "b": jax.random.normal(KEYS[1], (32, 16)),
}
X = jax.random.normal(KEYS[2], (24, 48))


def loss(params, x):
  return jnp.sum(jnp.sin(jax.nn.relu(x @ params["a"]) @ params["b"]))


@pytest.mark.parametrize("stochastic", [(), ("gradient",), OPERANDS])
@pytest.mark.parametrize("bits", [5, 8])
def test_fixed_precision_is_that_of_rules_bit_for_bit(stochastic, bits):
  bfp = BlockFloat(4)
  rule = Rule("*", bfp, bfp, bfp, stochastic=stochastic)
  scheme = Fast(Constant(4), stochastic=stochastic, noise_bits=bits)

  def rules(params, x, key):
    noisy = noise.Counter(key, bits) if stochastic else None
    return quantize(loss, (rule,), key=noisy)(params, x)

  def fixed(params, x, key):
    key = key if stochastic else None
    return fast.quantize(loss, scheme, progress=0.5, key=key)(params, x)

  # The key is an argument: XLA draws the noise of a constant while it compiles.
  both = [jax.jit(jax.value_and_grad(f))(PARAMS, X, KEYS[1]) for f in (rules, fixed)]
  jax.tree.map(np.testing.assert_array_equal, *both)


def block_float(x, bits):
  """[.., K] in blocks of 16 along the last axis, to nearest, plainly."""
  lanes = x.reshape(*x.shape[:-1], -1, 16)
  peak = np.abs(lanes).max(-1, keepdims=True)
  step = 2.0 ** (np.floor(np.log2(peak)) - (bits - 1))
  return (np.clip(np.round(lanes / step), 1 - 2**bits, 2**bits - 1) * step).reshape(
    x.shape
  )


def test_backward_products_cut_blocks_along_their_own_contractions():
  scheme = Fast(Constant(3), stochastic=())
  run = fast.quantize(lambda w, x: jnp.sum(jnp.sin(x @ w)), scheme, progress=0.0)
  w, x = np.asarray(PARAMS["a"]), np.asarray(X)
  by_w, by_x = jax.jit(jax.grad(run, argnums=(0, 1)))(PARAMS["a"], X)
  y = block_float(x, 3) @ block_float(w.T, 3).T
  g = np.cos(y)
  # Weight gradient: contracted over the 24 rows; 8 zeros fill the second block.
  rows = lambda z: block_float(np.pad(z.T, ((0, 0), (0, 8)), constant_values=0), 3)
  np.testing.assert_allclose(by_w, rows(x) @ rows(g).T, rtol=1e-5, atol=1e-5)
  outputs = block_float(g, 3) @ block_float(w, 3).T
  np.testing.assert_allclose(by_x, outputs, rtol=1e-5, atol=1e-5)


def test_telemetry_sums_over_a_scan_and_is_not_doubled_by_recomputation():
  stack = jnp.stack([jnp.eye(16), 2 * jnp.eye(16), jnp.ones((16, 16))])
  x = X[:, :16]

  def stacked(params, x):
    body = lambda x, w: (jnp.tanh(x @ w), None)
    return jnp.sum(jax.lax.scan(jax.checkpoint(body), x, params)[0])

  scheme = Fast(Constant(4), stochastic=())
  plan = fast.plan(stacked, scheme)(stack, x)
  assert plan.counts.tolist() == [3]
  run = lambda params, probe: fast.quantize(stacked, scheme, progress=0.0, probe=probe)(
    params, x
  )
  _, told = jax.jit(jax.grad(run, argnums=(0, 1)))(stack, plan.probe())
  np.testing.assert_array_equal(told, [[12, 12, 12, 12, 12, 12]])
  assert float(plan.share(told)) == 1.0


def ratio(x):
  high, low = (block_float(np.asarray(x, np.float64), bits) for bits in (4, 2))
  return np.abs(high - low).sum() / np.abs(low).sum()


@pytest.mark.parametrize("shift", [-0.02, 0.02])
def test_a_tensor_gets_more_bits_where_its_ratio_is_above_the_threshold(shift):
  threshold = ratio(np.asarray(X)) + shift
  scheme = Fast(Adaptive(alpha=threshold, beta=0.0))
  plan = fast.plan(loss, scheme)(PARAMS, X)
  assert plan.names == ("a", "b")

  def told(probe):
    run = fast.quantize(loss, scheme, progress=0.0, key=KEYS[0], probe=probe)
    return run(PARAMS, X)

  bits = np.asarray(jax.jit(jax.grad(told))(plan.probe()))
  assert bits[0, 1] == (4 if shift < 0 else 2)
  weight = 4 if ratio(np.asarray(PARAMS["a"]).T) > threshold else 2
  assert bits[0, 0] == weight
  assert bits[0, 3] == bits[0, 0] // 2 * (bits[0, 1] // 2)


def test_every_product_takes_the_passes_of_its_own_two_operands():
  """W is of signs alone, which 2 bits hold; A needs 4, and so does G."""
  signs = jax.tree.map(jnp.sign, PARAMS)
  scheme = Fast(Adaptive(alpha=0.02, beta=0.0))
  plan = fast.plan(loss, scheme)(signs, X)

  def run(params, x, probe):
    made = fast.quantize(loss, scheme, progress=0.0, key=KEYS[0], probe=probe)
    return made(params, x)

  _, _, told = jax.jit(jax.grad(run, (0, 1, 2)))(signs, X, plan.probe())
  w, a, g = told[:, :3].T // 2
  assert (w == 1).all() and (a == 2).all() and (g == 2).all()
  np.testing.assert_array_equal(told[:, 3:], jnp.stack([w * a, g * w, g * a], 1))


def test_the_threshold_falls_with_progress_in_one_program():
  scheme = Fast(Adaptive())
  plan = fast.plan(loss, scheme)(PARAMS, X)
  traces = []

  @jax.jit
  def told(probe, progress):
    traces.append(1)
    run = lambda q: fast.quantize(
      loss, scheme, progress=progress, key=KEYS[0], probe=q
    )(PARAMS, X)
    return jax.grad(run)(probe)

  early, late = (np.asarray(told(plan.probe(), p)) for p in (0.0, 1.0))
  assert len(traces) == 1
  assert early[:, :3].sum() < late[:, :3].sum()
  assert float(plan.share(jnp.asarray(late))) > float(plan.share(jnp.asarray(early)))


def test_what_matches_nothing_or_lacks_a_key_is_refused():
  with pytest.raises(ValueError, match="pass key"):
    fast.quantize(loss, Fast(), progress=0.0)
  with pytest.raises(ValueError, match="draws no noise"):
    fast.quantize(loss, Fast(stochastic=()), progress=0.0, key=KEYS[0])
  with pytest.raises(ValueError, match="noise_bits=25"):
    Fast(noise_bits=25)
  with pytest.raises(ValueError, match="'bias' is none of"):
    Fast(stochastic=("bias",))  # pyright: ignore[reportArgumentType]
  with pytest.raises(ValueError, match="none"):
    fast.plan(loss, Fast(leaf="none"))(PARAMS, X)
