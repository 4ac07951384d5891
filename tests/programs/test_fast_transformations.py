"""FAST is the same under every transformation, and on a batch spread over devices."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.numerics.precision_schedules import Constant
from jaxcodesign.programs import fast
from jaxcodesign.programs.fast import Fast
from jaxcodesign.runs import preview

NEAREST = Fast(Constant(3), stochastic=())
DEVICES = 8


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def block_float(x, axis, bits=3):
  """`x` in blocks of 16 along an axis, the last one filled with zeros, to nearest."""
  x = np.moveaxis(np.asarray(x), axis, -1)
  size = x.shape[-1]
  lanes = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -size % 16)])
  lanes = lanes.reshape(*x.shape[:-1], -1, 16)
  peak = np.abs(lanes).max(-1, keepdims=True)
  step = 2.0 ** (np.floor(np.log2(np.where(peak == 0, 1, peak))) - (bits - 1))
  whole = np.clip(np.round(lanes / step), 1 - 2**bits, 2**bits - 1) * step
  whole = whole.reshape(*x.shape[:-1], -1)[..., :size]
  return np.moveaxis(whole, -1, axis).astype(np.float32)


def gradients(fn, *args):
  """Of the sum of sines of what `fn` returns, by both arguments."""
  loss = lambda *args: jnp.sum(jnp.sin(fn(*args)))
  run = fast.quantize(loss, NEAREST, progress=0.0)
  return jax.jit(jax.grad(run, (0, 1)))(*args)


def close(found, wanted):
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_both_gradients_of_a_product_of_activations():
  q, k = normal(0, 2, 24, 20), normal(1, 2, 40, 20)
  scores = lambda q, k: jnp.einsum("bqd,bkd->bqk", q, k)
  g = np.cos(block_float(q, -1) @ block_float(k, -1).swapaxes(-1, -2))
  by_q, by_k = gradients(scores, q, k)
  close(by_q, block_float(g, -1) @ block_float(k, -2))
  close(by_k, block_float(g, -2).swapaxes(-1, -2) @ block_float(q, -2))


def merged(x, order, bits=3):
  """`x` rounded in blocks along all axes of `order` but the first, the last fastest."""
  turned = np.transpose(np.asarray(x), order)
  flat = block_float(turned.reshape(turned.shape[0], -1), -1, bits)
  return np.transpose(flat.reshape(turned.shape), np.argsort(order))


def test_both_gradients_of_a_strided_convolution():
  """Images have blocks along their last axis, kernels along taps and channels."""
  w, x = normal(0, 3, 3, 6, 20), normal(1, 17, 5, 5, 6)
  conv = lambda w, x: jax.lax.conv_general_dilated(
    x, w, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  by_w, by_x = gradients(conv, w, x)
  seen = lambda x, u, v: x[:, u : u + 5 : 2, v : v + 5 : 2]  # by tap (u, v)
  padded = lambda axis: np.pad(block_float(x, axis), ((0, 0), (1, 1), (1, 1), (0, 0)))
  taps = list(itertools.product(range(3), range(3)))
  forth = merged(w, (3, 0, 1, 2))
  g = np.cos(sum(seen(padded(-1), *tap) @ forth[tap] for tap in taps))
  # Each pixel of g meets each tap alone in the input gradient; in the weight gradient g
  # is the kernel, whose pixels are the taps and whose images are the channels.
  sliding, wanted = merged(g, (3, 1, 2, 0)), np.zeros((17, 7, 7, 6), np.float32)
  for tap in taps:
    close(by_w[tap], np.einsum("bijc,bijo->co", seen(padded(0), *tap), sliding))
    seen(wanted, *tap)[...] += block_float(g, -1) @ block_float(w, -1)[tap].T
  close(by_x, wanted[:, 1:-1, 1:-1])


PARAMS = {"up": normal(0, 20, 24), "down": normal(1, 24, 16)}
STEPS = 3


def network(params, x):
  """A layer, attention within each example, another layer: [B, T, 20] to a loss."""
  x = jnp.tanh(x @ params["up"])
  weights = jax.nn.softmax(jnp.einsum("btd,bsd->bts", x, jnp.sin(x)) / 24)
  return jnp.mean(jnp.sin(weights @ x @ params["down"]) ** 2)


def told(params, x, number, wrap=lambda fn: fn):
  """Loss, its gradients by parameters and input, and telemetry, of step `number`."""
  scheme, key = Fast(), jax.random.fold_in(jax.random.key(7), number)
  progress = jnp.float32(number) / STEPS

  def loss(params, x, probe):
    run = fast.quantize(network, scheme, progress=progress, key=key, probe=probe)
    return run(params, x)

  probe = fast.plan(network, scheme)(params, x).probe()
  return jax.value_and_grad(wrap(loss), (0, 1, 2))(params, x, probe)


def same(found, wanted):
  """Telemetry to the bit, the rest but for the order of sums."""
  (loss, (*grads, bits)), (wanted_loss, (*others, wanted_bits)) = found, wanted
  np.testing.assert_array_equal(bits, wanted_bits)
  np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), grads, others
  )


@pytest.fixture(scope="module")
def plain():
  """X [128, 6, 20], and what each of the steps tells when it is jitted alone."""
  x, step = normal(2, 16 * DEVICES, 6, 20), jax.jit(told)
  found = [step(PARAMS, x, jnp.int32(i)) for i in range(STEPS)]
  early, late = found[0][1][2], found[-1][1][2]
  assert (early[:, :3] == 2).any() and late[:, :3].sum() > early[:, :3].sum()
  return x, found


def test_a_scan_over_steps_with_rematerialization(plain):
  x, wanted = plain
  body = lambda carry, number: (carry, told(PARAMS, x, number, wrap=jax.checkpoint))
  _, found = jax.jit(lambda n: jax.lax.scan(body, None, n))(jnp.arange(STEPS))
  for i, one in enumerate(wanted):
    same(jax.tree.map(lambda a, i=i: a[i], found), one)


def test_a_vmap_decides_for_each_example_and_sums_what_it_tells(plain):
  x, step, number = plain[0][:4], jax.jit(told), jnp.int32(1)
  each = [step(PARAMS, x[i : i + 1], number) for i in range(4)]
  over = lambda loss: (
    lambda p, x, q: jnp.sum(jax.vmap(lambda x: loss(p, x[None], q))(x))
  )
  found = jax.jit(functools.partial(told, wrap=over))(PARAMS, x, number)
  total = functools.partial(jax.tree.map, lambda *a: np.sum(a, 0))
  values, grads = zip(*each)
  by_params, by_x, bits = zip(*grads)
  same(found, (np.sum(values), (total(*by_params), np.concatenate(by_x), total(*bits))))


def spread(fn, *args):
  """`fn` jitted on eight devices, its last argument split over them; and `args`."""
  mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  everywhere, rows = (jax.NamedSharding(mesh, jax.P(*s)) for s in ((), ("data",)))
  where = (everywhere,) * (len(args) - 1) + (rows,)
  return jax.jit(fn, in_shardings=where), args


def test_a_batch_over_eight_devices(plain):
  x, wanted = plain
  step = lambda params, x: told(params, x, jnp.int32(1))
  run, args = spread(step, PARAMS, x)
  found = run(*args)
  assert len(found[1][1].sharding.device_set) == DEVICES
  same(found, wanted[1])


def mlp(params, x):
  return jnp.mean(jnp.sin(jnp.tanh(x @ params["up"]) @ params["down"]))


def compiled(scheme):
  """The text of the gradient by the parameters, of 16 rows a device."""

  def gradient(params, key, x):
    run = mlp
    if scheme is not None:
      run = fast.quantize(mlp, scheme, progress=0.5, key=key)
    return jax.grad(run)(params, x)

  run, args = spread(gradient, PARAMS, jax.random.key(0), normal(3, 16 * DEVICES, 20))
  return run.lower(*args).compile().as_text()


def reduced(text):
  """Types of what all-reduces carry; there is no other collective."""
  assert set(preview.collectives(text)) == {"all-reduce"}
  lines = re.findall(r"= (.*?) all-reduce\(", text)
  return sorted(re.findall(r"\w+\[[\d,]*\]", " ".join(lines)))


def test_only_the_two_sums_of_a_ratio_are_reduced_over_devices():
  """One pair for each activation and each incoming gradient of the two products."""
  plain, fixed, adaptive = map(
    reduced, map(compiled, (None, Fast(Constant(4)), Fast()))
  )
  assert plain == ["f32[16,24]", "f32[24,20]"]  # the gradients
  assert fixed == plain
  assert adaptive == sorted([*plain, *["f32[2]"] * 4])
