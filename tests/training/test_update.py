"""A step does what its recipe says, and nothing when a number is not finite."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import models
from jaxcodesign.data import image_sets
from jaxcodesign.numerics.formats import BlockFloat
from jaxcodesign.numerics.schedules import Cubic
from jaxcodesign.numerics.sparsity.masks import Rule as Sparse
from jaxcodesign.numerics.sparsity.patterns import Unstructured
from jaxcodesign.programs import fast
from jaxcodesign.programs.policy import Rule
from jaxcodesign.training import step, update
from jaxcodesign.training.masked import Prune
from jaxcodesign.training.step import TrainConfig
from jaxcodesign.training.task import Classification

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


def made(task, batch, plan=False, **recipe):
  recipe = update.Recipe(recipe.pop("train", TRAIN), STEPS, **recipe)
  found = update.Update(task.loss, recipe, teach=task.teach)
  params = task.init(jax.random.key(0))
  if plan:
    part = jax.tree.map(lambda x: x[:: recipe.accumulate], batch)
    told = fast.plan(found.plain, recipe.precision)(params, part)
    found = dataclasses.replace(found, plan=told)
  return found, found.init(params, jax.random.key(1))


def test_float32_steps_are_those_of_the_plain_update(task, batch):
  found, state = made(task, batch)
  model = models.Cnn((4, 8), 16)
  init, plain = step.make_update(model.apply, TRAIN, STEPS, forward=model.forward)
  reference = init(task.init(jax.random.key(0)))
  move = jax.jit(found.step)
  for _ in range(3):
    state, told = move(state, batch, ())
    reference, loss, accuracy = plain(reference, batch["image"], batch["label"])
    np.testing.assert_array_equal(told.loss, loss)
    np.testing.assert_array_equal(told.accuracy, accuracy)
  chex.assert_trees_all_equal(state.params, reference.params)
  chex.assert_trees_all_equal(state.optimizer, reference.optimizer)
  assert int(state.step) == 3


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
  found, state = made(counted, batch, plan=True, precision=fast.Fast(), accumulate=2)
  move = jax.jit(found.step)
  state, _ = move(state, batch, ())
  before = len(traces)
  for _ in range(STEPS - 1):
    state, _ = move(state, batch, ())
  assert len(traces) == before
  told = np.asarray(state.telemetry)
  assert told.shape[0] == update.BUCKETS and told.shape[2] == 6
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
  kernel = step.sparse(train, state)["dense1"]["kernel"]
  assert float(jnp.mean(kernel != 0)) == pytest.approx(0.5, abs=0.01)
  padded = batch | {"weight": (jnp.arange(32) % 2).astype(jnp.float32)}
  outcome = jax.jit(found.evaluate)(state, padded, ())
  assert float(outcome.counted) == 16 and float(outcome.correct) <= 16


def test_buckets_cover_the_run():
  for steps in (3, 100, 250, 1001):
    counts = update.bucket_steps(steps)
    assert sum(counts) == steps and len(counts) == update.BUCKETS
    found = [int(update._bucket(jnp.int32(i), steps)) for i in range(steps)]
    assert np.bincount(found, minlength=update.BUCKETS).tolist() == counts


def test_a_recipe_refuses_what_cannot_be():
  with pytest.raises(ValueError, match="accumulate=3 must divide"):
    update.Recipe(TRAIN, STEPS, accumulate=3)
  with pytest.raises(ValueError, match="dtype='half'"):
    update.Recipe(TRAIN, STEPS, dtype="half")
