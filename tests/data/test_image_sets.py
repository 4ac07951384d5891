"""Images come whole and in range from their files, or not at all."""

import dataclasses
import gzip
import struct

import numpy as np
import pytest

from jaxcodesign.data import image_sets

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (7, 6, 5), np.uint8), RNG.integers(0, 10, 7, np.uint8)
TEST = RNG.integers(0, 256, (3, 6, 5), np.uint8), RNG.integers(0, 10, 3, np.uint8)


def idx(array):
  """`array` of bytes in the IDX format."""
  header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
  return header + array.tobytes()


def write_idx(folder, *, gz=False):
  for part, (images, labels) in {"train": TRAIN, "t10k": TEST}.items():
    for name, array in {"images-idx3": images, "labels-idx1": labels}.items():
      content = idx(array)
      path = folder / f"{part}-{name}-ubyte{'.gz' if gz else ''}"
      path.write_bytes(gzip.compress(content) if gz else content)
  return folder


def write_cifar(folder, records=2):
  for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
    pixels = np.random.default_rng(i).integers(0, 256, (records, 3072), np.uint8)
    labels = np.full((records, 1), i, np.uint8)
    (folder / f"{name}.bin").write_bytes(np.hstack([labels, pixels]).tobytes())
  return folder


def tiny(**changes):
  rng = np.random.default_rng(1)
  images = image_sets.Images(
    rng.random((4, 3, 3, 1), np.float32),
    np.arange(4, dtype=np.int32),
    rng.random((2, 3, 3, 1), np.float32),
    np.arange(2, dtype=np.int32),
    name="tiny",
    classes=4,
  )
  return dataclasses.replace(images, **changes)


def test_the_embedded_set_is_whole():
  images = image_sets.FashionMnistMini().load()
  assert images.train_images.shape == (10_000, 28, 28, 1)
  assert images.test_images.shape == (2_000, 28, 28, 1)
  assert (images.image_shape, images.classes) == ((28, 28, 1), 10)
  assert images.train_images.min() == 0 and images.train_images.max() == 1
  assert set(images.train_labels) == set(images.test_labels) == set(range(10))


@pytest.mark.parametrize("gz", [False, True])
def test_idx_files_come_back_as_they_were_written(tmp_path, gz):
  images = image_sets.Idx(write_idx(tmp_path, gz=gz), name="kin").load()
  np.testing.assert_array_equal(np.rint(images.train_images[..., 0] * 255), TRAIN[0])
  np.testing.assert_array_equal(np.rint(images.test_images[..., 0] * 255), TEST[0])
  np.testing.assert_array_equal(images.train_labels, TRAIN[1])
  np.testing.assert_array_equal(images.test_labels, TEST[1])
  assert images.name == "kin" and images.train_images.dtype == np.float32


def test_cifar_records_are_label_then_planes(tmp_path):
  images = image_sets.Cifar10(write_cifar(tmp_path), records=2).load()
  np.testing.assert_array_equal(images.train_labels, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
  record = np.fromfile(tmp_path / "data_batch_2.bin", np.uint8)[1:3073]
  found = np.rint(images.train_images[2] * 255).astype(np.uint8)
  for channel in range(3):
    plane = record[1024 * channel : 1024 * (channel + 1)].reshape(32, 32)
    np.testing.assert_array_equal(found[:, :, channel], plane)


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("part", ["train", "t10k"])
def test_a_missing_idx_file_is_named_with_where_the_set_is(tmp_path, part, gz):
  name = f"{part}-labels-idx1-ubyte"
  (write_idx(tmp_path, gz=gz) / f"{name}{'.gz' if gz else ''}").unlink()
  with pytest.raises(FileNotFoundError, match=f"{name} in {tmp_path}.*zalandoresearch"):
    image_sets.Idx(tmp_path).load()


def test_a_missing_cifar_file_is_named_with_where_the_set_is(tmp_path):
  (write_cifar(tmp_path) / "data_batch_4.bin").unlink()
  with pytest.raises(FileNotFoundError, match=r"data_batch_4.bin in .*kriz/cifar.html"):
    image_sets.Cifar10(tmp_path, records=2).load()


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda b: b[:-1], "has 225 bytes, but its header .* asks for 226"),
    (lambda b: b + b"\0", "has 227 bytes"),
    (lambda b: b[:10], "is not an IDX file"),
    (lambda b: b"", "starts with nothing"),
    (lambda b: b"\0\0\x0d\x03" + b[4:], "starts with 00000d03, expected 00000803"),
    (lambda b: gzip.compress(b), "starts with 1f8b"),
  ],
)
def test_a_damaged_idx_file_is_refused(tmp_path, damage, message):
  path = write_idx(tmp_path) / "train-images-idx3-ubyte"
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(ValueError, match=f"{path}.*{message}"):
    image_sets.Idx(tmp_path).load()


@pytest.mark.parametrize("keep", [0, 4, 11, 60, -9, -3])
def test_a_truncated_gzip_file_is_refused(tmp_path, keep):
  path = write_idx(tmp_path, gz=True) / "train-images-idx3-ubyte.gz"
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match=f"{path}.*fetch it again from"):
    image_sets.Idx(tmp_path).load()


def test_a_flipped_byte_in_a_gzip_file_is_refused(tmp_path):
  path = write_idx(tmp_path, gz=True) / "train-images-idx3-ubyte.gz"
  content = bytearray(path.read_bytes())
  content[60] ^= 0xFF
  path.write_bytes(content)
  with pytest.raises(ValueError, match="is not a whole gzip file"):
    image_sets.Idx(tmp_path).load()


@pytest.mark.parametrize("change", [-1, 1, -3073])
def test_a_cifar_file_of_another_size_is_refused(tmp_path, change):
  path = write_cifar(tmp_path) / "test_batch.bin"
  content = path.read_bytes() + b"\0"
  path.write_bytes(content[: 6146 + change])
  with pytest.raises(ValueError, match=f"{path} has {6146 + change} bytes, not 6146"):
    image_sets.Cifar10(tmp_path, records=2).load()


def test_labels_out_of_range_name_their_file(tmp_path):
  path = write_idx(tmp_path) / "t10k-labels-idx1-ubyte"
  path.write_bytes(idx(np.array([3, 10, 1], np.uint8)))
  with pytest.raises(ValueError, match=f"{path}: label 10 at index 1"):
    image_sets.Idx(tmp_path).load()
  path = write_cifar(tmp_path) / "data_batch_1.bin"
  path.write_bytes(b"\x0b" + path.read_bytes()[1:])
  with pytest.raises(ValueError, match=f"{path}: label 11 at index 0"):
    image_sets.Cifar10(tmp_path, records=2).load()


def test_counts_that_disagree_name_the_labels_file(tmp_path):
  path = write_idx(tmp_path) / "train-labels-idx1-ubyte"
  path.write_bytes(idx(TRAIN[1][:-1]))
  with pytest.raises(ValueError, match=f"{path}.* each of 7 images"):
    image_sets.Idx(tmp_path).load()


def test_an_empty_set_is_refused(tmp_path):
  write_idx(tmp_path)
  for name, array in {"images-idx3": TEST[0][:0], "labels-idx1": TEST[1][:0]}.items():
    (tmp_path / f"t10k-{name}-ubyte").write_bytes(idx(array))
  with pytest.raises(ValueError, match="t10k-images-idx3-ubyte holds nothing"):
    image_sets.Idx(tmp_path).load()


def test_check_lets_a_right_set_through():
  images = tiny()
  assert image_sets.check(images) is images


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_check_refuses_what_is_not_finite(bad):
  broken = tiny().train_images.copy()
  broken[2, 1, 1, 0] = bad
  with pytest.raises(ValueError, match=r"train_images of tiny: 1 values .* image 2"):
    image_sets.check(tiny(train_images=broken))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"train_images": tiny().train_images * 255}, r"expected \[0, 1\]"),
    ({"test_images": tiny().test_images - 1}, r"test_images.*expected \[0, 1\]"),
    ({"test_images": tiny().test_images.astype("f8")}, "not float64"),
    ({"train_images": tiny().train_images[..., 0]}, r"\[N, H, W, C\]"),
    ({"train_labels": np.arange(4, dtype="i8")}, "train_labels.*int32"),
    ({"train_labels": np.arange(3, dtype="i4")}, "one label for each of 4"),
    ({"test_labels": np.array([0, -1], "i4")}, "label -1 at index 1"),
    ({"classes": 3}, r"label 3 at index 3 is not in \[0, 3\)"),
    ({"test_images": np.zeros((2, 3, 4, 1), "f4")}, "must have one shape"),
  ],
)
def test_check_refuses_what_breaks_a_promise(changes, message):
  with pytest.raises(ValueError, match=message):
    image_sets.check(tiny(**changes))


def test_an_epoch_visits_each_image_at_most_once_and_leaves_out_the_rest():
  x = np.arange(10)
  for epoch in range(3):
    seen = list(image_sets.batches(x, -x, 4, seed=0, epoch=epoch))
    assert [len(a) for a, _ in seen] == [4, 4]
    images, labels = (np.concatenate(parts) for parts in zip(*seen))
    assert len(set(images)) == 8
    np.testing.assert_array_equal(labels, -images)


def test_seed_and_epoch_alone_determine_the_order():
  x = np.arange(64)
  order = lambda seed, epoch: next(
    image_sets.batches(x, x, 64, seed=seed, epoch=epoch)
  )[0]
  np.testing.assert_array_equal(order(1, 2), order(1, 2))
  orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
  assert len({tuple(o) for o in orders}) == 4


@pytest.mark.parametrize("size", [0, 11, -1])
def test_a_batch_that_does_not_fit_is_refused(size):
  with pytest.raises(ValueError, match="does not fit 10 images"):
    next(image_sets.batches(np.zeros(10), np.zeros(10), size, seed=0))
  with pytest.raises(ValueError, match="10 images but 9 labels"):
    next(image_sets.batches(np.zeros(10), np.zeros(9), 5, seed=0))
