"""The contract every source keeps. Add yours to SOURCES."""

import numpy as np
from PIL import Image
import pytest

from jaxcodesign.data import augment
from jaxcodesign.data.image_folder import ImageFolder
from jaxcodesign.data.sources import ImageSource, TokenSource

RNG = np.random.default_rng(0)
IMAGES = RNG.random((12, 6, 6, 2), np.float32)
LABELS = RNG.integers(0, 3, 12)


def folder(path, augment=False):
  for label in "ab":
    (path / label).mkdir()
    for i in range(3):
      pixels = RNG.integers(0, 256, (20, 30, 3), np.uint8)
      Image.fromarray(pixels).save(path / label / f"{i}.png")
  return ImageFolder(path, image=8, classes=2, augment=augment)


SOURCES = {
  "images": lambda _: ImageSource(IMAGES, LABELS, classes=3),
  "augmented": lambda _: ImageSource(IMAGES, LABELS, classes=3, augment=True),
  "tokens": lambda _: TokenSource(RNG.integers(0, 50, 70).astype(np.uint16), 5),
  "folder": folder,
  "augmented folder": lambda path: folder(path, augment=True),
}


@pytest.fixture(params=SOURCES)
def source(request, tmp_path):
  return SOURCES[request.param](tmp_path)


def same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_batch_has_the_shapes_that_are_promised(source):
  batch = source.batch(np.array([1, 0, 1]), None)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    k: (v.shape, v.dtype) for k, v in source.shapes(3).items()
  }


def test_a_row_depends_on_its_index_and_draws_alone(source):
  draws = np.random.default_rng(1).random((6, source.draws))
  indices = np.arange(6) % len(source)
  whole = source.batch(indices, draws)
  parts = [source.batch(indices[i : i + 2], draws[i : i + 2]) for i in (0, 2, 4)]
  assert same(whole, {k: np.concatenate([p[k] for p in parts]) for k in whole})
  assert same(whole, source.batch(indices, draws))
  assert same(whole, source.batch(indices, None)) == (source.draws == 0)


def test_a_batch_can_be_written_to(source):
  batch = source.batch(np.array([0]), None)
  before = {k: v.copy() for k, v in batch.items()}
  for array in batch.values():
    array[...] = 0
  assert same(source.batch(np.array([0]), None), before)


def test_augmented_images_are_crops_and_mirror_images():
  source = SOURCES["augmented"](None)
  draws = np.random.default_rng(1).random((200, source.draws))
  found = source.batch(np.zeros(200, int), draws)["image"]
  padded = np.pad(IMAGES[0], ((4, 4), (4, 4), (0, 0)))
  crops = {}
  for top in range(9):
    for left in range(9):
      crop = padded[top : top + 6, left : left + 6]
      crops[crop.tobytes()] = (top, left, False)
      crops[crop[:, ::-1].tobytes()] = (top, left, True)
  places = [crops[image.tobytes()] for image in found]
  top, left, mirrored = np.array(places).T
  assert set(top) == set(left) == set(range(9))
  assert 0.4 < mirrored.mean() < 0.6


def test_crop_and_flip_draws_what_crop_cuts():
  found = augment.crop_and_flip(IMAGES, np.random.default_rng(3), padding=2)
  rng = np.random.default_rng(3)
  top, left = rng.integers(0, 5, size=(2, 12))
  flipped = rng.random(12) < 0.5
  for i, image in enumerate(found):
    crop = np.pad(IMAGES[i], ((2, 2), (2, 2), (0, 0)))[top[i] :, left[i] :][:6, :6]
    np.testing.assert_array_equal(image, crop[:, ::-1] if flipped[i] else crop)


def test_every_token_but_the_first_is_foreseen_once():
  tokens = np.arange(100, 133)
  source = TokenSource(tokens, 8)
  assert len(source) == 4
  windows = source.batch(np.arange(4), None)["tokens"]
  np.testing.assert_array_equal(windows[:, 1:].ravel(), tokens[1:33])
  np.testing.assert_array_equal(windows[:, :-1].ravel(), tokens[:32])
  assert len(TokenSource(tokens[:-1], 8)) == 3


def test_what_is_no_set_is_refused():
  bad = [
    (lambda: ImageSource(IMAGES[0], LABELS, classes=3), "float32 .N, H, W, C., not"),
    (lambda: ImageSource(IMAGES.astype("f8"), LABELS, classes=3), "not float64"),
    (lambda: ImageSource(IMAGES, LABELS[:3], classes=3), "must be 12 integers"),
    (lambda: ImageSource(IMAGES, LABELS * 1.0, classes=3), "not float64"),
    (lambda: ImageSource(IMAGES, LABELS, classes=2), r"not in \[0, 2\)"),
    (lambda: TokenSource(np.zeros(5), 2), "integers .N., not float64"),
    (lambda: TokenSource(np.zeros(5, int), 5), "choose 1 to 4"),
    (lambda: TokenSource(np.zeros(5, int), 0), "length=0 does not fit"),
  ]
  for make, words in bad:
    with pytest.raises(ValueError, match=words):
      make()


def test_an_image_is_mirrored_by_a_draw_of_its_own():
  source = SOURCES["augmented"](None)
  draws = np.array([[0.1, 0.1, 0.9], [0.9, 0.9, 0.1]])
  found = source.batch(np.zeros(2, int), draws)["image"]
  padded = np.pad(IMAGES[0], ((4, 4), (4, 4), (0, 0)))
  np.testing.assert_array_equal(found[0], padded[:6, :6])
  np.testing.assert_array_equal(found[1], padded[8:14, 8:14][:, ::-1])
