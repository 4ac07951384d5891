"""A step does what its config says, and nothing when a number is not finite."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcodesign import models
from jaxcodesign.data import image_sets
from jaxcodesign.numerics.formats import BlockFloat
from jaxcodesign.numerics.schedules import Cubic
from jaxcodesign.numerics.sparsity.masks import Rule as Sparse
from jaxcodesign.numerics.sparsity.patterns import Unstructured
from jaxcodesign.programs import fast
from jaxcodesign.programs.policy import Rule
from jaxcodesign.training import fast_method, losses, step
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.masked import Prune
from jaxcodesign.training.method import At
from jaxcodesign.training.optimizer import optimizer_of
from jaxcodesign.training.task import Classification, Outcome

TRAIN = TrainConfig(epochs=1, batch_size=32, learning_rate=1e-2, warmup=0.0)
STEPS = 10


@pytest.fixture(scope="module")
def task():
  return Classification(image_sets.FashionMnistMini(), models.Cnn((4, 8), 16)).load(
    TRAIN
  )


@pytest.fixture(scope="module")
def batch(task):
  found = task.train.batch(np.arange(32), None)
  return {k: jnp.asarray(v) for k, v in found.items()}


def made(task, batch, train=TRAIN, **changes):
  config = dataclasses.replace(train, **changes)
  params = task.init(jax.random.key(0))
  part = jax.tree.map(lambda x: x[:: config.accumulate], batch)
  found = step.prepare(task.loss, config, STEPS, params, part, teach=task.teach)
  return found, found.init(params, jax.random.key(1))


def test_float32_steps_are_those_of_plain_optax(task, batch):
  found, state = made(task, batch)
  model, optimizer = models.Cnn((4, 8), 16), optimizer_of(TRAIN, STEPS)
  params = task.init(jax.random.key(0))
  inside = optimizer.init(params)

  @jax.jit
  def plain(params, inside):
    def loss(params):
      logits = model.apply(params, batch["image"])
      return losses.cross_entropy(logits, batch["label"], TRAIN.label_smoothing)

    value, grads = jax.value_and_grad(loss)(params)
    with jax.numpy_dtype_promotion("standard"):
      changes, inside = optimizer.update(grads, inside, params)
    return optax.apply_updates(params, changes), inside, value

  move = jax.jit(found.step)
  for _ in range(3):
    state, told = move(state, batch, ())
    params, inside, loss = plain(params, inside)
    np.testing.assert_allclose(told.loss, loss, rtol=1e-6)
  # Programs of another shape: a fused sum may differ in its last bit.
  close = lambda a, b: chex.assert_trees_all_close(a, b, rtol=1e-6, atol=1e-8)
  close(state.params, params)
  close(state.optimizer, inside)
  assert int(state.step) == 3


def test_a_step_is_one_adamw_step_of_the_mean_loss():
  x = np.random.default_rng(0).random((16, 4), np.float32)
  y = np.arange(16) % 4

  def loss(params, batch, *, train):
    value = losses.cross_entropy(batch["image"] @ params["w"], batch["label"])
    return Outcome(value, jnp.float32(0), jnp.float32(16), None)

  batch = {"image": x, "label": y.astype(np.int32)}
  start = {"w": jnp.zeros((4, 4))}
  found = step.prepare(loss, TRAIN, STEPS, start, batch)
  state, told = jax.jit(found.step)(found.init(start, jax.random.key(0)), batch, ())
  np.testing.assert_allclose(told.loss, np.log(4), rtol=1e-6)
  # Adam's first step has the size of the learning rate and the gradient's sign.
  gradient = (x.T @ (0.25 - np.eye(4)[y])) / 16
  np.testing.assert_allclose(
    state.params["w"], -TRAIN.learning_rate * np.sign(gradient), rtol=1e-3
  )
  np.testing.assert_allclose(told.gradient, np.linalg.norm(gradient), rtol=1e-5)


@pytest.mark.parametrize("remat", ["none", "dots", "all"])
def test_parts_and_recomputation_change_no_gradient(task, batch, remat):
  sgd = dataclasses.replace(TRAIN, optimizer="sgd")
  whole, state = made(task, batch, train=sgd)
  parts, _ = made(task, batch, train=sgd, accumulate=4, remat=remat)
  a, told = jax.jit(whole.step)(state, batch, ())
  b, other = jax.jit(parts.step)(state, batch, ())
  assert float(told.loss) == pytest.approx(float(other.loss), rel=1e-6)
  assert told.accuracy == other.accuracy
  chex.assert_trees_all_close(a.params, b.params, atol=2e-7)


def test_mixed_precision_keeps_parameters_and_statistics_in_float32(batch):
  model = models.ResNet(blocks=1, width=4)
  task = Classification(image_sets.FashionMnistMini(), model).load(TRAIN)
  exact, state = made(task, batch)
  mixed, _ = made(task, batch, dtype="bfloat16")
  _, told = jax.jit(exact.step)(state, batch, ())
  b, other = jax.jit(mixed.step)(state, batch, ())
  assert {x.dtype for x in jax.tree.leaves(b.params)} == {jnp.dtype("float32")}
  assert told.loss != other.loss
  assert float(told.loss) == pytest.approx(float(other.loss), rel=0.02)
  moved = jax.tree.map(lambda x, y: jnp.any(x != y), state.params, b.params)
  assert all(jax.tree.leaves(moved))
  text = jax.jit(mixed.step).lower(state, batch, ()).as_text()
  assert "bf16" in text


def test_a_step_that_is_not_finite_changes_nothing_and_nor_do_those_after(task, batch):
  found, state = made(task, batch)
  move = jax.jit(found.step)
  state, _ = move(state, batch, ())
  broken, told = move(state, batch | {"image": batch["image"] * jnp.nan}, ())
  assert not told.finite
  after, told = move(broken, batch, ())
  assert not told.finite and np.isfinite(told.loss)
  for found in (broken, after):
    chex.assert_trees_all_equal(found._replace(good=state.good), state)


def test_fast_counts_every_step_and_part_in_one_program(task, batch):
  traces = []

  def loss(*args, **kwargs):
    traces.append(1)
    return task.loss(*args, **kwargs)

  counted = task._replace(loss=loss)
  found, state = made(counted, batch, precision=fast.Fast(), accumulate=2)
  move = jax.jit(found.step)
  state, _ = move(state, batch, ())
  before = len(traces)
  for _ in range(STEPS - 1):
    state, _ = move(state, batch, ())
  assert len(traces) == before
  told = np.asarray(state.kept[0])
  assert told.shape[0] == fast_method.BUCKETS and told.shape[2] == 6
  ran = told[:STEPS]
  assert (told[STEPS:] == 0).all()
  # Two parts a step, each of 2 to 4 bits.
  assert ((ran[:, :, :3] >= 4) & (ran[:, :, :3] <= 8)).all()
  forward = ran[:, :, 3]
  assert ((forward >= 2) & (forward <= 8)).all()
  # The first layer has no input gradient.
  assert (ran[:, 0, 4] == 0).all() and (ran[:, 1:, 4] > 0).all()


def test_rules_and_masks_meet(task, batch):
  bfp = BlockFloat(4)
  rules = (Rule("*", bfp, bfp, bfp),)
  prune = Prune((Sparse("dense1/kernel", Unstructured(0.5)),), Cubic(0.0, 0.5, 2))
  train = dataclasses.replace(TRAIN, sparsity=prune)
  found, state = made(task, batch, train=train, precision=rules)
  move = jax.jit(found.step)
  for _ in range(6):
    state, _ = move(state, batch, ())
  kernel = found.network(state)["dense1"]["kernel"]
  assert float(jnp.mean(kernel != 0)) == pytest.approx(0.5, abs=0.01)
  padded = batch | {"weight": (jnp.arange(32) % 2).astype(jnp.float32)}
  outcome = jax.jit(found.evaluate)(state, padded, ())
  assert float(outcome.counted) == 16 and float(outcome.correct) <= 16


def test_a_part_has_rows_from_all_over_the_batch():
  """Each device has some, as the batch lies over devices in runs of rows."""

  def loss(params, batch, *, train):
    value = (params["w"] * batch["image"].mean()) ** 2
    return Outcome(value, jnp.float32(0), jnp.float32(2), None)

  train = dataclasses.replace(TRAIN, accumulate=2)
  start, half = {"w": jnp.ones(())}, {"image": jnp.zeros((2, 1))}
  found = step.prepare(loss, train, STEPS, start, half)
  batch = {"image": jnp.asarray([[0.0], [0.0], [1.0], [1.0]])}
  _, told = found.step(found.init(start, jax.random.key(0)), batch, ())
  assert float(told.loss) == 0.25  # 0.5 if the parts were 0, 0 and 1, 1


def test_every_step_draws_noise_of_its_own(task, batch):
  bfp = BlockFloat(3)
  rule = Rule("*", bfp, bfp, bfp, stochastic=("gradient",))
  found, state = made(task, batch, precision=(rule,))
  norms = jax.jit(lambda i: found.step(state._replace(step=i), batch, ())[1].gradient)
  assert norms(0) == norms(0) != norms(1)


def test_buckets_cover_the_run():
  for steps in (3, 100, 250, 1001):
    counts = fast_method.bucket_steps(steps)
    assert sum(counts) == steps and len(counts) == fast_method.BUCKETS
    method = fast_method.FastMethod(fast.Fast(), steps=steps)
    zero = jnp.zeros((fast_method.BUCKETS, 1, 6))

    def bucket(i, method=method, zero=zero):
      at = At(i, jnp.float32(0), jax.random.key(0), True)
      return method.keep(zero, 1.0, at)[:, 0, 0].argmax()

    found = np.asarray(jax.vmap(bucket)(jnp.arange(steps)))
    assert np.bincount(found, minlength=fast_method.BUCKETS).tolist() == counts


def test_a_config_refuses_what_cannot_be():
  with pytest.raises(ValueError, match="accumulate=3 must divide"):
    dataclasses.replace(TRAIN, accumulate=3)
  with pytest.raises(ValueError, match="dtype='half'"):
    dataclasses.replace(TRAIN, dtype="half")
