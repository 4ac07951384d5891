"""A teacher's word counts as Hinton has it, and its network stays outside the step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import models
from jaxcodesign.data import image_sets
from jaxcodesign.runs.disk import saved
from jaxcodesign.runs.disk.saved import Checkpoint
from jaxcodesign.runs.fitting import fit
from jaxcodesign.training import losses, scores, step, task
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.distillation import Distill, Teacher

CNN = models.Cnn(channels=(8,), hidden=8)
SHAPE, CLASSES = (4, 4, 1), 3


def some_images(classes=CLASSES):
  rng = np.random.default_rng(0)
  draw = lambda n: (
    rng.random((n, *SHAPE), np.float32),
    rng.integers(0, classes, n).astype("i4"),
  )
  return image_sets.check(
    image_sets.Images(*draw(48), *draw(9), name="noise", classes=classes)
  )


def logits(seed, scale=3.0):
  return scale * jax.random.normal(jax.random.key(seed), (5, CLASSES))


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 50.0])
def test_distillation_is_the_divergence_of_softened_outputs(temperature):
  student, teacher = logits(0), logits(1)
  found = losses.distillation(student, teacher, temperature)
  p, q = (softmax(np.float64(x) / temperature) for x in (teacher, student))
  wanted = temperature**2 * np.mean(np.sum(p * np.log(p / q), -1))
  assert found == pytest.approx(wanted, rel=1e-4)
  shifted = losses.distillation(teacher + 7.0, teacher, temperature)
  assert shifted == pytest.approx(0, abs=1e-5 * temperature**2)


def test_gradient_is_hintons_and_none_reaches_the_teacher():
  student, teacher = logits(0), logits(1)
  for temperature in (1.0, 4.0):
    to_student, to_teacher = jax.grad(losses.distillation, argnums=(0, 1))(
      student, teacher, temperature
    )
    p, q = (softmax(np.asarray(x) / temperature) for x in (teacher, student))
    wanted = temperature * (q - p) / len(student)  # T^2 times 1/T
    np.testing.assert_allclose(to_student, wanted, rtol=1e-4, atol=1e-6)
    assert not np.any(np.asarray(to_teacher))


def test_narrow_logits_are_compared_in_float32():
  student, teacher = (logits(i).astype(jnp.bfloat16) for i in range(2))
  wide = [x.astype(jnp.float32) for x in (student, teacher)]
  found = losses.distillation(student, teacher, 4.0)
  assert found.dtype == jnp.float32 and found == losses.distillation(*wide, 4.0)
  labels = jnp.zeros(5, int)
  assert losses.cross_entropy(student, labels) == losses.cross_entropy(wide[0], labels)


def test_gradient_at_a_high_temperature_is_that_of_matching_centred_logits():
  student, teacher = logits(0), logits(1)
  found = jax.grad(losses.distillation)(student, teacher, 1e3)
  centred = lambda x: x - x.mean(-1, keepdims=True)
  wanted = (centred(student) - centred(teacher)) / (student.size)
  np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=2e-4)


def test_feature_matching_is_scale_free_and_survives_zeros():
  x, y = (jax.random.normal(jax.random.key(i), (4, 3, 2)) for i in range(2))
  assert losses.feature_matching([x, y], [5.0 * x, 0.1 * y]) == pytest.approx(
    0, abs=1e-6
  )
  assert losses.feature_matching([x], [-x]) == pytest.approx(4, rel=1e-5)
  unit = lambda a: (
    np.asarray(a).reshape(4, -1)
    / np.linalg.norm(np.asarray(a).reshape(4, -1), axis=-1, keepdims=True)
  )
  wanted = np.mean(np.sum((unit(x) - unit(y)) ** 2, -1))
  assert losses.feature_matching([x], [y]) == pytest.approx(wanted, rel=1e-5)
  slope = jax.grad(lambda a: losses.feature_matching([a], [y]))(jnp.zeros_like(x))
  assert np.isfinite(np.asarray(slope)).all()


@pytest.mark.parametrize(
  ("call", "said"),
  [
    (lambda: losses.distillation(jnp.ones((2, 3)), jnp.ones((2, 4)), 1.0), r"\(2, 4\)"),
    (lambda: losses.feature_matching([], []), r"\[\]"),
    (lambda: losses.feature_matching([jnp.ones(2)], [jnp.ones(3)]), "must be equal"),
    (lambda: Distill(alpha=1.5), "alpha must be in"),
    (lambda: Distill(temperature=0.0), "temperature above 0"),
    (lambda: Distill(features=-1.0), "features=-1.0"),
    (lambda: Distill("runs/x"), "is no network"),
    (lambda: Distill().resolve(some_images()), "name a Checkpoint or a function"),
    (
      lambda: Distill(four_classes).resolve(some_images()),
      "must know the same classes",
    ),
  ],
)
def test_errors_say_what_is_wrong(call, said):
  with pytest.raises(ValueError, match=said):
    call()


def four_classes(images):
  return jnp.zeros((len(images), 4))


def mean_teacher(images):
  bright = images.mean(axis=(1, 2, 3))
  return 60.0 * jnp.stack([bright - 0.5, 0.5 - bright, 0 * bright], axis=-1)


def test_a_teacher_is_a_function_the_start_or_a_checkpoint(tmp_path):
  images = some_images()
  params = CNN.init(jax.random.key(0), SHAPE, CLASSES)
  x = images.test_images
  function = Distill(mean_teacher).resolve(images)
  np.testing.assert_array_equal(
    function.forward(function.params, x).logits, mean_teacher(x)
  )
  start = Teacher(CNN.forward, params)
  assert Distill().resolve(images, start) is start
  where = Checkpoint(tmp_path / "teacher", CNN)
  with pytest.raises(FileNotFoundError, match="no checkpoint of a teacher"):
    Distill(where).resolve(images)
  saved.save(tmp_path / "teacher", params, {})
  loaded = Distill(where).resolve(images)
  np.testing.assert_array_equal(
    loaded.forward(loaded.params, x).logits, CNN.apply(params, x)
  )
  with pytest.raises(ValueError, match="is of another model"):
    Distill(where).resolve(some_images(classes=5))


def test_the_step_is_that_of_the_mixed_loss_and_traces_the_teacher_once():
  images = some_images()
  start = CNN.init(jax.random.key(0), SHAPE, CLASSES)
  other = CNN.init(jax.random.key(1), SHAPE, CLASSES)
  distill = Distill(alpha=0.7, temperature=3.0, features=0.5)
  config = TrainConfig(optimizer="sgd", weight_decay=0.0, warmup=0.0, distill=distill)
  x, y = images.train_images[:16], images.train_labels[:16]
  batch = {"image": x, "label": y}
  loaded = task.classify(CNN, images, config, Teacher(CNN.forward, other))
  functions = step.prepare(
    loaded.loss, config, 10, start, batch, teach=loaded.teach, frozen=other
  )
  update = jax.jit(chex.assert_max_traces(functions.step, n=1))

  def loss(params):
    student, told = CNN.forward(params, x), CNN.forward(other, x)
    hard = losses.cross_entropy(student.logits, y, config.label_smoothing)
    soft = losses.distillation(student.logits, told.logits, 3.0)
    near = losses.feature_matching(student.features, told.features)
    return 0.3 * hard + 0.7 * soft + 0.5 * near

  value, grads = jax.value_and_grad(loss)(start)
  state, told = update(functions.init(start, jax.random.key(0)), batch, other)
  assert told.loss == pytest.approx(float(value), rel=1e-5)
  wanted = jax.tree.map(lambda p, g: p - config.learning_rate * g, start, grads)
  chex.assert_trees_all_close(state.params, wanted, rtol=1e-4, atol=1e-6)
  update(state, batch, other)  # no second trace


def test_training_from_a_teacher_follows_it_rather_than_the_labels():
  images = some_images()
  start = CNN.init(jax.random.key(0), SHAPE, CLASSES)
  config = TrainConfig(
    epochs=150, batch_size=16, learning_rate=0.02, distill=Distill(mean_teacher, 1.0)
  )
  fitted = fit(CNN, start, images, config)
  said = mean_teacher(jnp.asarray(images.train_images)).argmax(-1)
  agree = np.mean(CNN.apply(fitted.params, images.train_images).argmax(-1) == said)
  right = scores.evaluate_accuracy(
    CNN.apply, fitted.params, images.train_images, images.train_labels
  )
  assert agree > 0.9 > right + 0.2


def test_a_teacher_is_asked_for_where_training_starts_from_noise():
  config = TrainConfig(distill=Distill())
  with pytest.raises(ValueError, match="name a Checkpoint or a function"):
    task.classify(CNN, some_images(), config)


def test_a_teacher_learns_nothing_from_its_features():
  x, y = (jax.random.normal(jax.random.key(i), (4, 6)) for i in range(2))
  of = lambda x, y: losses.feature_matching([x], [y])
  student, teacher = jax.grad(of, (0, 1))(x, y)
  assert np.any(student) and not np.any(teacher)
