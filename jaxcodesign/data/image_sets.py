"""Labelled images from files in their official formats, checked before they are used.

A source is a frozen dataclass that says where the files are; `load` reads them whole
and hands back `Images`. What is missing, truncated or out of range raises with the name
of the file, what was expected, and where the set is published.
"""

from collections.abc import Iterator
import dataclasses
import gzip
import importlib.resources
import math
import pathlib
import struct
import zlib

import numpy as np

from jaxcodesign.data import npz
from jaxcodesign.data.cache import expanded
from jaxcodesign.data.content import Content, digest

_PUBLISHED = {
  "idx": "https://github.com/zalandoresearch/fashion-mnist (Fashion-MNIST) or "
  "http://yann.lecun.com/exdb/mnist (MNIST)",
  "cifar": "https://www.cs.toronto.edu/~kriz/cifar.html (CIFAR-10 binary version)",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """A labelled image set in memory.

  Attributes:
    train_images: [N, H, W, C] float32 in [0, 1].
    train_labels: [N] int32 in [0, classes).
    test_images: [M, H, W, C] float32 in [0, 1].
    test_labels: [M] int32 in [0, classes).
    name: Of the set, for tables and folders.
    classes: Number of classes.
  """

  train_images: np.ndarray
  train_labels: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray
  name: str
  classes: int

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of one image."""
    _, height, width, channels = self.train_images.shape
    return height, width, channels

  def content(self) -> Content:
    """What the images and labels are, see `data.content`."""
    train, test = (
      {"examples": len(x), "digest": digest(x, y)}
      for x, y in (
        (self.train_images, self.train_labels),
        (self.test_images, self.test_labels),
      )
    )
    return {"train": train, "test": test}


@dataclasses.dataclass(frozen=True)
class FashionMnistMini:
  """The first-run set inside the package: 10,000 and 2,000 images of Fashion-MNIST."""

  def load(self) -> Images:
    """Returns the set: images 28x28x1, 10 classes.

    Raises:
      FileNotFoundError: if the installation lacks the file.
      ValueError: if the file is damaged.
    """
    folder = importlib.resources.files("jaxcodesign.data") / "fashion_mnist_mini"
    with importlib.resources.as_file(folder / "images.npz") as path:
      if not path.is_file():
        raise FileNotFoundError(
          f"{path} is missing: the installation of jaxcodesign is incomplete; "
          "install it again"
        )
      ndims = {"train_images": 3, "train_labels": 1, "test_images": 3, "test_labels": 1}
      arrays = npz.read(path, ndims, way_out="install jaxcodesign again")
    train, test = (
      (arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in ("train", "test")
    )
    return _images(train, test, "fashion_mnist_mini", 10)


@dataclasses.dataclass(frozen=True)
class Idx:
  """MNIST, Fashion-MNIST and their kin: a folder of four IDX files.

  The files are {train,t10k}-{images-idx3,labels-idx1}-ubyte, plain or with .gz; where
  both are there the plain one is read.

  Attributes:
    directory: Folder of the files; `~` is the home folder.
    name: Of the set, for tables and folders.
    classes: Number of classes.
  """

  directory: str | pathlib.Path
  name: str = "fashion_mnist"
  classes: int = 10

  def load(self) -> Images:
    """Returns the set: images [.., H, W, 1] as the files' headers say.

    Raises:
      FileNotFoundError: naming the first file that is missing.
      ValueError: naming the file that is damaged or disagrees with another.
    """
    folder = expanded(self.directory)
    train, test = self._read(folder, "train"), self._read(folder, "t10k")
    return _images(train, test, self.name, self.classes)

  def _read(self, folder: pathlib.Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    images, _ = _read_idx(folder, f"{part}-images-idx3-ubyte", ndim=3)
    labels, path = _read_idx(folder, f"{part}-labels-idx1-ubyte", ndim=1)
    _check_labels(labels, len(images), self.classes, path)
    return images, labels


@dataclasses.dataclass(frozen=True)
class Cifar10:
  """CIFAR-10 in its binary version: data_batch_1.bin to 5 and test_batch.bin.

  Attributes:
    directory: Folder of the files (cifar-10-batches-bin in the published archive); `~`
      is the home folder.
    records: Images in each file. The files have no header, so that only this tells a
      truncated file from a whole one.
  """

  directory: str | pathlib.Path
  records: int = 10_000

  def load(self) -> Images:
    """Returns the set: images 32x32x3, 10 classes.

    Raises:
      FileNotFoundError: naming the first file that is missing.
      ValueError: naming the file that is damaged.
    """
    folder = expanded(self.directory)
    batches = [self._read(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
    images, labels = (np.concatenate(parts) for parts in zip(*batches))
    return _images(
      (images, labels), self._read(folder / "test_batch.bin"), "cifar10", 10
    )

  def _read(self, path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    content = _read_bytes(path, path.parent, _PUBLISHED["cifar"])
    size = 1 + 3 * 32 * 32
    if len(content) != self.records * size:
      raise ValueError(
        f"{path} has {len(content)} bytes, not {self.records * size} ({self.records} "
        f"records of {size}); fetch it again from {_PUBLISHED['cifar']}"
      )
    records = np.frombuffer(content, np.uint8).reshape(self.records, size)
    labels = records[:, 0]
    _check_labels(labels, self.records, 10, path)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def check(images: Images) -> Images:
  """Returns `images` unchanged if every promise of `Images` holds.

  Raises:
    ValueError: naming the set and the array that has a wrong shape, dtype or range, a
      NaN, an infinity, no images, or not one label for each image.
  """
  for part in ("train", "test"):
    x, y = getattr(images, f"{part}_images"), getattr(images, f"{part}_labels")
    where = f"{part}_images of {images.name}"
    if x.ndim != 4 or x.dtype != np.float32 or 0 in x.shape:
      raise ValueError(f"{where}: expected float32 [N, H, W, C], not {_kind(x)}")
    if not np.isfinite(x).all():
      raise ValueError(
        f"{where}: {np.count_nonzero(~np.isfinite(x))} values are NaN or infinite, the "
        f"first in image {np.argwhere(~np.isfinite(x))[0][0]}; remove or repair them"
      )
    if x.min() < 0 or x.max() > 1:
      raise ValueError(
        f"{where}: values in [{x.min():g}, {x.max():g}], expected [0, 1]; "
        "divide bytes by 255"
      )
    where = f"{part}_labels of {images.name}"
    if y.dtype != np.int32:
      raise ValueError(f"{where}: expected int32 [N], not {_kind(y)}")
    _check_labels(y, len(x), images.classes, where)
  if images.train_images.shape[1:] != images.test_images.shape[1:]:
    raise ValueError(
      f"{images.name}: train images are {_kind(images.train_images)}, "
      f"test images {_kind(images.test_images)}; they must have one shape"
    )
  return images


def batches(
  images: np.ndarray, labels: np.ndarray, batch_size: int, *, seed: int, epoch: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields one epoch in a random order that (seed, epoch) alone determine.

  Every batch is full: the N % batch_size images that remain are left out, other ones in
  each epoch, so that a jitted step compiles for one shape.

  Args:
    images: [N, ...].
    labels: [N].
    batch_size: Images in a batch.
    seed: Non-negative; two seeds give unrelated orders.
    epoch: Non-negative; two epochs give unrelated orders.

  Yields:
    ([batch_size, ...] images, [batch_size] labels), N // batch_size times.

  Raises:
    ValueError: if there is not one label for each image or not one full batch.
  """
  if len(images) != len(labels):
    raise ValueError(f"{len(images)} images but {len(labels)} labels")
  if not 1 <= batch_size <= len(images):
    raise ValueError(
      f"batch_size={batch_size} does not fit {len(images)} images; "
      f"choose 1 to {len(images)}"
    )
  order = np.random.default_rng((seed, epoch)).permutation(len(images))
  for start in range(0, len(order) - batch_size + 1, batch_size):
    chosen = order[start : start + batch_size]
    yield images[chosen], labels[chosen]


def _images(train, test, name: str, classes: int) -> Images:
  """`Images` from pairs of bytes and labels, checked."""
  arrays = []
  for x, y in (train, test):
    x = x if x.ndim == 4 else x[..., None]
    arrays += [np.divide(x, 255, dtype=np.float32), y.astype(np.int32)]
  return check(Images(*arrays, name=name, classes=classes))


def _read_idx(
  folder: pathlib.Path, name: str, *, ndim: int
) -> tuple[np.ndarray, pathlib.Path]:
  """The array in an IDX file of unsigned bytes, and the path that was read."""
  path = folder / name
  if not path.exists():
    path = folder / f"{name}.gz"
  content = _read_bytes(path, folder, _PUBLISHED["idx"])
  way_out = f"fetch it again from {_PUBLISHED['idx']}"
  header = 4 + 4 * ndim
  magic = bytes([0, 0, 8, ndim])
  if len(content) < header or content[:4] != magic:
    raise ValueError(
      f"{path} is not an IDX file of bytes in {ndim} dimensions: it starts with "
      f"{content[:4].hex() or 'nothing'}, expected {magic.hex()} and a header of "
      f"{header} bytes; {way_out}"
    )
  shape = struct.unpack(f">{ndim}I", content[4:header])
  expected = header + math.prod(shape)
  if 0 in shape:
    raise ValueError(f"{path} holds nothing: its header says {shape}; {way_out}")
  if len(content) != expected:
    raise ValueError(
      f"{path} has {len(content)} bytes, but its header {shape} asks for {expected}; "
      f"{way_out}"
    )
  return np.frombuffer(content, np.uint8, offset=header).reshape(shape), path


def _read_bytes(path: pathlib.Path, folder: pathlib.Path, published: str) -> bytes:
  """The content of `path`, unpacked if it ends in .gz."""
  if not path.is_file():
    raise FileNotFoundError(
      f"no {path.name.removesuffix('.gz')} in {folder}; the set is published at "
      f"{published}: put its files there or name another directory"
    )
  content = path.read_bytes()
  if path.suffix != ".gz":
    return content
  try:
    return gzip.decompress(content)
  except (OSError, EOFError, zlib.error, struct.error) as error:
    raise ValueError(
      f"{path} ({len(content)} bytes) is not a whole gzip file ({error}); "
      f"fetch it again from {published}"
    ) from error


def _check_labels(labels: np.ndarray, count: int, classes: int, where) -> None:
  if labels.shape != (count,):
    raise ValueError(
      f"{where}: {_kind(labels)}, expected one label for each of {count} images; "
      "take both files from the same set"
    )
  wrong = (labels < 0) | (labels >= classes)
  if wrong.any():
    at = int(np.argmax(wrong))
    raise ValueError(
      f"{where}: label {labels[at]} at index {at} is not in [0, {classes}); "
      "correct it or the number of classes"
    )


def _kind(x: np.ndarray) -> str:
  return f"{x.dtype} {list(x.shape)}"
