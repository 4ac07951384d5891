"""What would fail after hours of training is told before it."""

import dataclasses
import pathlib

import jax
import pytest

from jaxcodesign.data import image_sets
from jaxcodesign.experiments import codesign, preflight
from jaxcodesign.experiments.codesign import Variant
from jaxcodesign.hardware.machines import presets
from jaxcodesign.models import Cnn, ResNet
from jaxcodesign.numerics.schedules import OneShot
from jaxcodesign.numerics.sparsity import masks
from jaxcodesign.numerics.sparsity.patterns import NOfM, Unstructured
from jaxcodesign.runs import command_line
from jaxcodesign.runs.disk import saved
from jaxcodesign.runs.disk.saved import Checkpoint
from jaxcodesign.training.combining import Combine, Layer
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.distillation import Distill
from jaxcodesign.training.masked import Prune

PATH = pathlib.Path(__file__).parents[2] / "configs" / "fashion_codesign.py"
PROGRAM = command_line.load(PATH)
SMOKE = dataclasses.replace(PROGRAM.smoke(), model=Cnn(channels=(8,), hidden=8))
INT8, TERMS = PROGRAM.uniform(8).policy, PROGRAM.terms(16, 3).policy


@pytest.fixture(scope="module")
def images():
  return image_sets.check(SMOKE.data.load())


def with_variant(policy, **tune):
  how = TrainConfig(epochs=1, batch_size=500, **tune)
  variants = (Variant("int8", INT8), Variant("new", policy, how))
  return dataclasses.replace(SMOKE, variants=variants)


def prune(leaf, pattern, at=0.0):
  return Prune((masks.Rule(leaf, pattern),), OneShot(at))


def four_classes(images):
  return images[:, 0, :4, 0]


@pytest.mark.parametrize(
  ("config", "said"),
  [
    (
      with_variant(INT8, sparsity=prune("dens1/*", Unstructured(0.5))),
      "variant 'new': 'dens1/\\*' matches no name",
    ),
    (
      with_variant(INT8, sparsity=Combine((Layer("dense1/*"),), OneShot(0))),
      "variant 'new': dense1/bias has shape",
    ),
    (
      with_variant(INT8, sparsity=prune("dense1/kernel", NOfM(2, 3, axis=-2))),
      "variant 'new': .*m=3 does not divide",
    ),
    (
      with_variant(INT8, sparsity=prune("dense1/kernel", NOfM())),
      "variant 'new': .*the contraction, axis=-2",
    ),
    (
      with_variant(TERMS, sparsity=prune("dense1/kernel", NOfM(axis=-2))),
      "variant 'new': dense1/kernel is stored as n:m",
    ),
    (
      with_variant(INT8, sparsity=prune("dense1/kernel", Unstructured(0.0))),
      "variant 'new': .*with a nonzero is needed",
    ),
    (
      with_variant(INT8, sparsity=prune("dense1/kernel", Unstructured(0.5), at=1.0)),
      "variant 'new': the last event",
    ),
    (
      with_variant(INT8, distill=Distill(four_classes)),
      "variant 'new': .*must know the same classes",
    ),
    (
      dataclasses.replace(SMOKE, train=TrainConfig(batch_size=20_000)),
      "train: batch_size=20000 does not fit the 10,000",
    ),
    (
      dataclasses.replace(
        with_variant(INT8, sparsity=prune("*", Unstructured(0.5))),
        model=ResNet(blocks=1, width=8),
      ),
      "variant 'new': stage1_1/conv1/norm/mean is a running statistic",
    ),
  ],
)
def test_mistakes_are_told_by_the_variant_they_are_in(config, said, images):
  with pytest.raises(ValueError, match=said):
    preflight.check(config, images)


def test_teachers_that_are_nowhere_or_nameless(images, tmp_path):
  missing = Checkpoint(tmp_path / "none", SMOKE.model)
  with pytest.raises(FileNotFoundError, match="variant 'new': no checkpoint in"):
    preflight.check(with_variant(INT8, distill=Distill(missing)), images)
  nameless = Distill(lambda x: x[:, 0, :10, 0])
  with pytest.raises(TypeError, match=r"variant 'new': .*same in every process"):
    preflight.check(with_variant(INT8, distill=nameless), images)


def test_an_array_that_selects_may_come_first(images):
  config = with_variant(INT8, sparsity=Combine((Layer("dense1/kernel"),), OneShot(0)))
  mx = presets.mx(presets.int8_45nm(8, 8), 8)
  preflight.check(dataclasses.replace(config, accelerators=(mx,)), images)


def test_a_teacher_that_was_trained_again_makes_its_students_train_again(tmp_path):
  images = image_sets.check(SMOKE.data.load())
  folder = tmp_path / "teacher"
  first = codesign.initial(SMOKE, images)
  saved.save(folder, first, {})
  how = TrainConfig(distill=Distill(Checkpoint(folder, SMOKE.model)))
  mark = codesign.mark_of(SMOKE, how)
  assert codesign.mark_of(SMOKE, how) == mark
  saved.save(folder, jax.tree.map(lambda x: 2 * x, first), {})
  assert codesign.mark_of(SMOKE, how) != mark
  base = dataclasses.replace(SMOKE, train=how)
  assert codesign.mark_of(base) != codesign.mark_of(SMOKE)
