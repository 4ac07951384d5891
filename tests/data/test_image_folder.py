"""Images are read as they lie in folders, and what is broken is named."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from jaxcodesign import models
from jaxcodesign.data import image_folder, pipeline
from jaxcodesign.data.image_folder import ImageFolder
from jaxcodesign.programs import fast
from jaxcodesign.training import diagnosis
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.step import prepare
from jaxcodesign.training.task import Classification, ImageNet


def write(path, width=40, height=30, color=(200, 100, 50)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (width, height), color).save(path, quality=95)


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / "train"
  write(root / "n02" / "b.JPEG", color=(0, 0, 255))
  write(root / "n02" / "a.png", 64, 20, color=(0, 255, 0))
  write(root / "n01" / "c.jpg", 20, 64, color=(255, 0, 0))
  (root / "n01" / "notes.txt").write_text("not an image")
  (root / "n02" / "gray.png").parent.mkdir(exist_ok=True)
  Image.new("L", (9, 9), 51).save(root / "n02" / "gray.png")
  return root


def test_labels_and_order_follow_the_names(folder):
  source = ImageFolder(folder, image=8, classes=2)
  assert len(source) == 4
  batch = source.batch(np.arange(4), None)
  assert batch["label"].tolist() == [0, 1, 1, 1] and batch["label"].dtype == np.int32
  assert batch["image"].dtype == np.uint8
  wanted = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (51, 51, 51)]
  for image, color in zip(batch["image"].astype(int), wanted):
    np.testing.assert_allclose(image, np.broadcast_to(color, (8, 8, 3)), atol=3)
  shapes = source.shapes(4)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    k: (v.shape, v.dtype) for k, v in shapes.items()
  }


def test_the_centre_is_what_resizing_and_cropping_give(tmp_path):
  # A ramp along the longer side: each column tells where it came from.
  ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (128, 256, 3))
  (tmp_path / "a").mkdir()
  Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "a" / "x.png")
  source = ImageFolder(tmp_path, image=112, classes=1)
  found = source.batch(np.array([0]), None)["image"][0]
  # Shorter side 128 -> 128 (= 112 * 256/224), centre 112 of 256 columns: 72 to 184.
  np.testing.assert_array_equal(found[0, :, 0], np.arange(72, 184))


def test_pixels_are_rounded_along_rows_and_then_along_columns(tmp_path):
  (tmp_path / "a").mkdir()
  pixels = np.array([[0, 1], [0, 0]], np.uint8) * 255
  Image.fromarray(pixels).resize((224, 224), Image.Resampling.NEAREST).save(
    tmp_path / "a" / "x.png"
  )
  source = ImageFolder(tmp_path, image=16, classes=1)
  found = source.batch(np.array([0]), None)["image"][0, :, :, 0]
  # A triangle as wide as two output pixels, of 12.25 pixels each, rounded in between.
  at = 14 + (np.arange(16) + 0.5) * 12.25
  distance = np.abs(np.arange(224) + 0.5 - at[:, None]) / 12.25
  weights = np.maximum(1 - distance, 0)
  weights /= weights.sum(1, keepdims=True)
  image = np.kron(pixels, np.ones((112, 112)))
  rows = np.rint(image @ weights.T)
  np.testing.assert_array_equal(found, np.rint(weights @ rows))


def test_random_crops_are_inside_and_as_large_as_they_may_be():
  rng = np.random.default_rng(0)
  shares, ratios = [], []
  for _ in range(2000):
    left, top, right, bottom = image_folder.random_crop(500, 375, rng.random(41))
    assert 0 <= left < right <= 500 and 0 <= top < bottom <= 375
    shares.append((right - left) * (bottom - top) / (500 * 375))
    ratios.append((right - left) / (bottom - top))
  assert 0.079 < min(shares) < 0.1 and max(shares) > 0.9
  assert 0.74 < min(ratios) < 0.78 and 1.3 < max(ratios) < 1.34
  # Of areas uniform in [0.08, 1], the large ones fit less often.
  assert 0.4 < np.mean(shares) < 0.54


@pytest.mark.parametrize("size", [(1, 1), (1000, 10), (10, 1000)])
def test_no_try_fits_a_narrow_image(size):
  draws = np.full(41, 0.999)
  left, top, right, bottom = image_folder.random_crop(*size, draws)
  assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
  assert (right - left, bottom - top) == {
    (1, 1): (1, 1), (1000, 10): (13, 10), (10, 1000): (10, 13),
  }[size]  # fmt: skip


def test_augmentation_depends_on_the_draws_alone(folder):
  source = ImageFolder(folder, image=16, classes=2, augment=True)
  noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
  Image.fromarray(noise).save(folder / "n01" / "c.png")
  (folder / "n01" / "c.jpg").unlink()
  draws = np.random.default_rng(1).random((2, source.draws))
  draws[:, -1] = 0.7  # not mirrored
  one, other = source.batch(np.array([0, 0]), draws)["image"]
  assert not np.array_equal(one, other)
  np.testing.assert_array_equal(
    source.batch(np.array([1, 0]), draws)["image"][1], other
  )
  draws[:, -1] = 0.2
  mirrored = source.batch(np.array([0, 0]), draws)["image"]
  np.testing.assert_array_equal(mirrored[0], one[:, ::-1])


def test_without_augmentation_training_sees_what_testing_does(folder):
  (folder.parent / "val").symlink_to(folder)
  found = ImageNet(folder.parent, 8, 2, train_images=4, test_images=4)
  train, test = found.sources(augment=False)
  assert train.draws == test.draws == 0
  with (
    pipeline.batches(train, batch_size=4, steps=2, seed=0) as one,
    pipeline.evaluation(test, batch_size=4) as other,
  ):
    wanted = sorted(image.tobytes() for image in next(other)["image"])
    for batch in one:
      assert sorted(image.tobytes() for image in batch["image"]) == wanted
  for augment in (False, True):
    model = models.ResNet(blocks=1, width=4)
    loaded = Classification(found, model).load(TrainConfig(augment=augment))
    assert (loaded.train.draws > 0) == augment and loaded.test.draws == 0


@pytest.mark.parametrize(
  ("model", "dtype", "how"),
  [
    (models.MobileNet(stem=(8, 1), blocks=((8, 2),)), "bfloat16", None),
    (models.Cnn((2,), 8), "float32", fast.Fast()),
  ],
)
def test_bytes_train_as_the_floats_that_they_stand_for(folder, model, dtype, how):
  found = ImageNet(folder.parent, 8, 2, train_images=4)
  train = TrainConfig(batch_size=4, precision=how, dtype=dtype, accumulate=2)
  task = Classification(found, model).load(train)
  batch = jax.tree.map(jnp.asarray, task.train.batch(np.arange(4), None))
  floats = batch | {"image": batch["image"].astype(jnp.float32) / 255}
  half = jax.tree.map(lambda x: x[:2], batch)
  keys = jax.random.split(jax.random.key(0))
  params = jax.eval_shape(task.init, keys[0])
  made = prepare(task.loss, train, 10, params, half)
  state = jax.jit(lambda a, b: made.init(task.init(a), b))(*keys)
  step = jax.jit(made.step)
  (moved, told), (other, wanted) = step(state, batch, ()), step(state, floats, ())
  assert told.finite and float(told.loss) == pytest.approx(float(wanted.loss), rel=1e-6)
  for x, y in zip(jax.tree.leaves(moved.params), jax.tree.leaves(other.params)):
    np.testing.assert_allclose(x, y, atol=1e-6)


def test_a_loss_on_bytes_is_diagnosed(folder):
  found = ImageNet(folder.parent, 8, 2, train_images=4)
  task = Classification(found, models.Cnn((2, 4), 8)).load(TrainConfig())
  params = task.init(jax.random.key(0))
  params["conv2"]["kernel"] *= jnp.float32(3e38)
  loss = functools.partial(task.loss, train=True)
  said = diagnosis.suspect(loss, params, task.train.batch(np.arange(4), None))
  assert said.startswith("its result is not finite in the product conv2/kernel")


def test_batches_come_through_the_pipeline(folder):
  source = ImageFolder(folder, image=8, classes=2, examples=4)
  with pipeline.batches(source, batch_size=2, steps=4, seed=0) as stream:
    labels = [tuple(batch["label"]) for batch in stream]
  assert len(labels) == 4
  assert sorted(labels[0] + labels[1]) == sorted(labels[2] + labels[3]) == [0, 1, 1, 1]


def test_a_dry_run_needs_no_images(tmp_path):
  source = ImageFolder(tmp_path / "nowhere", examples=1_281_167)
  assert len(source) == 1_281_167
  assert source.shapes(256)["image"].shape == (256, 224, 224, 3)
  with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: it holds one"):
    source.batch(np.array([0]), None)


def test_what_does_not_fit_is_refused(folder):
  with pytest.raises(ValueError, match="has 2 folders, not one for each of classes=3"):
    len(ImageFolder(folder, classes=3))
  with pytest.raises(ValueError, match="has 4 images, not examples=5"):
    ImageFolder(folder, classes=2, examples=5).batch(np.array([0]), None)
  with pytest.raises(ValueError, match="image=0 must be"):
    ImageFolder(folder, image=0)
  (folder / "n03").mkdir()
  with pytest.raises(ValueError, match="n03 has no files"):
    len(ImageFolder(folder, classes=3))


@pytest.mark.parametrize("how", ["cut", "text", "png"])
def test_a_broken_file_is_named(folder, how):
  path = folder / "n02" / ("a.png" if how == "png" else "b.JPEG")
  if how == "text":
    path.write_text("no image")
  else:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
  source = ImageFolder(folder, image=8, classes=2)
  stream = pipeline.evaluation(source, batch_size=4)
  with stream, pytest.raises(ValueError, match=f"{path} is not a whole image"):
    next(stream)
