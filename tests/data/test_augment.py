"""A batch of other crops and mirror images, drawn by a generator alone."""

import numpy as np
import pytest

from jaxcodesign.data import augment


def images(batch=64, shape=(5, 7, 2)):
  # Every value is another one and none is zero, so that a pixel tells where it was.
  size = batch * np.prod(shape)
  return np.arange(1, size + 1, dtype=np.float32).reshape(batch, *shape)


def crops(image, padding):
  """All crops and their mirror images, one by one."""
  h, w, _ = image.shape
  padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
  for i, j in np.ndindex(2 * padding + 1, 2 * padding + 1):
    crop = padded[i : i + h, j : j + w]
    yield (i, j, False), crop
    yield (i, j, True), crop[:, ::-1]


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_every_image_is_a_crop_of_itself(padding):
  x = images()
  y = augment.crop_and_flip(x, np.random.default_rng(0), padding=padding)
  assert (y.shape, y.dtype) == (x.shape, np.float32) and y.flags.c_contiguous
  for before, after in zip(x, y):
    assert any(np.array_equal(after, crop) for _, crop in crops(before, padding))


def test_places_and_mirrors_are_uniform():
  x = images(batch=2000, shape=(3, 4, 1))
  y = augment.crop_and_flip(x, np.random.default_rng(0), padding=1)
  seen = {}
  for before, after in zip(x, y):
    [place] = [p for p, crop in crops(before, 1) if np.array_equal(after, crop)]
    seen[place] = seen.get(place, 0) + 1
  assert len(seen) == 18
  # 2000 / 18 = 111 each, standard deviation 10.
  assert all(60 < n < 165 for n in seen.values())
  assert 900 < sum(n for (*_, mirrored), n in seen.items() if mirrored) < 1100


def test_the_generator_decides_and_the_batch_stays():
  x = images()
  kept = x.copy()
  once = augment.crop_and_flip(x, np.random.default_rng(3))
  np.testing.assert_array_equal(x, kept)
  rng = np.random.default_rng(3)
  np.testing.assert_array_equal(augment.crop_and_flip(x, rng), once)
  assert not np.array_equal(augment.crop_and_flip(x, rng), once)
  assert not np.shares_memory(augment.crop_and_flip(x, rng, padding=0), x)


def test_an_empty_batch_stays_one():
  x = np.zeros((0, 4, 4, 1), np.float32)
  assert augment.crop_and_flip(x, np.random.default_rng(0)).shape == x.shape


@pytest.mark.parametrize(
  ("x", "padding", "complaint"),
  [
    (np.zeros((4, 4, 1), np.float32), 4, "float32 .* not float32 .4, 4, 1."),
    (np.zeros((1, 4, 4, 1), np.uint8), 4, "not uint8"),
    (np.zeros((1, 4, 4, 1), np.float32), -1, "padding=-1 must be 0 or more"),
  ],
)
def test_what_is_no_batch_is_refused(x, padding, complaint):
  with pytest.raises(ValueError, match=complaint):
    augment.crop_and_flip(x, np.random.default_rng(0), padding=padding)
