"""Training descends, repeats itself to the bit, and stops at a loss that is none."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcodesign import models
from jaxcodesign.data import image_sets, pipeline
from jaxcodesign.data.sources import ImageSource
from jaxcodesign.runs.fitting import fit
from jaxcodesign.training import scores
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.losses import cross_entropy
from jaxcodesign.training.optimizer import optimizer_of, schedule

CONFIG = TrainConfig(epochs=3, batch_size=16, learning_rate=0.05, warmup=0.2)


def quadrants(count=72, seed=0):
  """Images of noise with one bright quarter: its place is the label."""
  rng = np.random.default_rng(seed)

  def draw(count):
    labels = rng.integers(0, 4, count).astype("i4")
    images = rng.random((count, 4, 4, 1), np.float32) * 0.5
    for image, label in zip(images, labels):
      row, column = divmod(label, 2)
      image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 0.5
    return images, labels

  return image_sets.check(
    image_sets.Images(*draw(count), *draw(25), name="quadrants", classes=4)
  )


def linear(params, images):
  x = images.reshape(images.shape[0], -1)
  return x @ params["w"] + params["b"][None]


def start():
  return {"w": jnp.zeros((16, 4)), "b": jnp.zeros(4)}


def test_training_learns_what_can_be_learned():
  config = dataclasses.replace(CONFIG, epochs=10)
  params, history, _ = fit(linear, start(), quadrants(), config)
  assert [e.epoch for e in history] == list(range(1, 11))
  assert history[-1].loss < history[0].loss < np.log(4)
  assert history[-1].test_accuracy == 1
  assert all(e.seconds > 0 for e in history)
  images = quadrants()
  again = scores.evaluate_accuracy(
    linear, params, images.test_images, images.test_labels
  )
  assert again == history[-1].test_accuracy


def test_the_cnn_trains():
  cnn = models.Cnn(channels=(8,), hidden=8)
  params = cnn.init(jax.random.key(0), (4, 4, 1), 4)
  config = dataclasses.replace(CONFIG, learning_rate=0.02, epochs=20)
  trained, history, _ = fit(cnn, params, quadrants(), config)
  assert history[-1].test_accuracy > 0.9
  chex.assert_trees_all_equal_shapes_and_dtypes(trained, params)


def test_the_same_arguments_give_the_same_bits_and_leave_the_parameters_alone():
  params = start()
  first, _, _ = fit(linear, params, quadrants(), CONFIG)
  second, _, _ = fit(linear, params, quadrants(), CONFIG)
  chex.assert_trees_all_equal(first, second)
  chex.assert_trees_all_equal(params, start())
  other = dataclasses.replace(CONFIG, seed=1)
  third, _, _ = fit(linear, params, quadrants(), other)
  assert not np.array_equal(first["w"], third["w"])


def test_means_are_those_of_the_steps():
  losses = []
  config = dataclasses.replace(CONFIG, epochs=2)
  _, history, _ = fit(linear, start(), quadrants(), config)
  # By hand: the same batches, in their order, through a plain optax loop.
  images = quadrants()
  source = ImageSource(images.train_images, images.train_labels, classes=4)
  optimizer = optimizer_of(config, 8)
  params, state = start(), optimizer.init(start())
  loss = lambda p, x, y: cross_entropy(linear(p, x), y, config.label_smoothing)
  with pipeline.batches(source, batch_size=16, steps=8, seed=0, threads=0) as stream:
    for batch in stream:
      value, grads = jax.value_and_grad(loss)(params, batch["image"], batch["label"])
      with jax.numpy_dtype_promotion("standard"):
        changes, state = optimizer.update(grads, state, params)
      params = optax.apply_updates(params, changes)
      losses.append(value)
  means = np.mean(np.reshape(losses, (2, 4)), axis=1)
  np.testing.assert_allclose([e.loss for e in history], means, rtol=1e-5)


def test_the_learning_rate_rises_then_falls_to_zero():
  rates = [float(schedule(CONFIG, 100)(jnp.float32(i))) for i in range(101)]
  assert rates[0] == 0 and np.argmax(rates) == 20 and abs(rates[100]) < 1e-9
  assert np.isclose(max(rates), CONFIG.learning_rate)
  assert np.all(np.diff(rates[:21]) > 0) and np.all(np.diff(rates[20:]) < 0)


def test_a_loss_that_is_no_number_stops_the_run_at_its_step():
  def diverges(params, x):  # as soon as the first step has moved the bias
    return linear(params, x) / jnp.where(params["b"].max() > 0, 0.0, 1.0)

  config = dataclasses.replace(CONFIG, warmup=0.0)
  rate = float(schedule(config, 12)(jnp.float32(1)))
  message = (
    rf"loss is \S+, gradient \S+ in step 2 of 12 at learning rate {rate:.3g}; "
    "suspected: .*lower learning_rate=0.05"
  )
  with pytest.raises(FloatingPointError, match=message):
    fit(diverges, start(), quadrants(), config)


def test_a_set_smaller_than_a_batch_is_refused():
  config = dataclasses.replace(CONFIG, batch_size=100)
  with pytest.raises(ValueError, match="batch_size=100 does not fit the 72 examples"):
    fit(linear, start(), quadrants(), config)


@pytest.mark.parametrize("batch_size", [1, 7, 25, 1000])
def test_accuracy_is_over_all_images_whatever_the_batch(batch_size):
  images = quadrants(seed=3)
  params = {"w": jax.random.normal(jax.random.key(0), (16, 4)), "b": jnp.zeros(4)}
  x, y = images.test_images, images.test_labels
  expected = np.mean(np.argmax(x.reshape(25, -1) @ params["w"], axis=-1) == y)
  found = scores.evaluate_accuracy(linear, params, x, y, batch_size)
  assert found == expected
  # Padding is of zeros: a bias that calls every zero right must not raise the score.
  always = {"w": jnp.zeros((16, 4)), "b": jnp.arange(4.0)[::-1]}
  assert scores.evaluate_accuracy(linear, always, x, y, batch_size) == np.mean(y == 0)


def test_evaluation_compiles_once_across_calls():
  apply = chex.assert_max_traces(lambda p, x: linear(p, x), n=1)
  images = quadrants()
  for scale in (1.0, 2.0):
    params = jax.tree.map(lambda x, s=scale: x + s, start())
    scores.evaluate_accuracy(apply, params, images.test_images, images.test_labels, 8)


def test_what_cannot_be_scored_is_refused():
  images = quadrants()
  for x, y in [(images.test_images[:0],) * 2, (images.test_images, np.zeros(3, "i4"))]:
    with pytest.raises(ValueError, match="cannot score"):
      scores.evaluate_accuracy(linear, start(), x, y)


@pytest.mark.parametrize(
  "changes",
  [
    {"epochs": 0},
    {"batch_size": 0},
    {"seed": -1},
    {"learning_rate": 0.0},
    {"learning_rate": float("nan")},
    {"weight_decay": -1.0},
    {"warmup": 1.0},
    {"label_smoothing": 1.5},
  ],
)
def test_settings_out_of_range_are_refused_by_name(changes):
  with pytest.raises(ValueError, match=next(iter(changes))):
    dataclasses.replace(CONFIG, **changes)
