"""Images on disk, a folder for each class: the layout of ImageNet.

  train/n01440764/n01440764_18.JPEG
  train/n01443537/...

Classes are numbered in the order of their folders' names. Files are read when a batch
asks for them; threads do that side by side, as decoding holds no lock of Python's.

Reference: Szegedy et al. "Going Deeper with Convolutions", CVPR 2015, section 6: crops
of 8 to 100 % of the area at aspect ratios of 3/4 to 4/3.
"""

import functools
import math
import pathlib
import threading

import jax
import numpy as np
from PIL import Image

from jaxcodesign.data import content
from jaxcodesign.data.cache import expanded
from jaxcodesign.data.sources import Source

_SUFFIXES = (".jpeg", ".jpg", ".png")
_AREA = (0.08, 1.0)  # of the image, that a random crop has
_RATIO = (3 / 4, 4 / 3)  # width over height of a random crop
_SAMPLE = 64  # files whose bytes tell one folder from another
_TRIES = 10  # before the centre is taken
_MARGIN = 256 / 224  # shorter side over the crop, where nothing is random

Box = tuple[float, float, float, float]


class ImageFolder(Source):
  """{"image": [B, image, image, 3] uint8, "label": [B] int32}.

  With random numbers: a crop of random area, ratio and place, resized, half of them
  mirrored. Without: the shorter side resized to 256/224 of `image`, the centre cropped.
  Pixels are PIL's, a quarter of the bytes of float32: bilinear, rounded to the nearest
  integer along rows and again along columns; 255 is full intensity.
  """

  def __init__(
    self,
    directory: str | pathlib.Path,
    *,
    image: int = 224,
    classes: int = 1000,
    examples: int | None = None,
    augment: bool = False,
    name: str | None = None,
  ):
    """Reads nothing: the folder is listed when examples, or their number, are needed.

    Args:
      directory: Has a folder for each class; `~` is the home folder.
      image: Pixels on each side.
      classes: How many folders there must be.
      examples: How many images there must be; given, the length is known without the
        folder.
      augment: Whether training sees random crops and mirror images, others in each
        epoch; without, what testing sees.
      name: Of the set; the directory by default.

    Raises:
      ValueError: If a number is below 1.
    """
    for what, value in (("image", image), ("classes", classes), ("examples", examples)):
      if value is not None and value < 1:
        raise ValueError(f"{what}={value} must be at least 1")
    self._directory = expanded(directory)
    self._image, self._classes, self._examples = image, classes, examples
    self.name = name or str(directory)
    self.draws = 4 * _TRIES + 1 if augment else 0
    self._listing = threading.Lock()

  def __len__(self) -> int:
    """Number of images.

    Raises:
      FileNotFoundError, ValueError: As `batch`, unless `examples` was given.
    """
    return len(self._listed[0]) if self._examples is None else self._examples

  def batch(
    self, indices: np.ndarray, draws: np.ndarray | None
  ) -> dict[str, np.ndarray]:
    """See `Source`.

    Raises:
      FileNotFoundError: If the folder is missing.
      ValueError: If it has other numbers of classes or images, or a file is broken; the
        message names it.
    """
    with self._listing:  # so that threads do not list it at once
      paths, labels = self._listed
    images = np.empty((len(indices), self._image, self._image, 3), np.uint8)
    drawn = draws if self.draws else None
    for row, index in enumerate(indices):
      images[row] = self._read(paths[index], None if drawn is None else drawn[row])
    return {"image": images, "label": labels[indices]}

  def shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (batch_size, self._image, self._image, 3)
    return {
      "image": jax.ShapeDtypeStruct(shape, np.uint8),
      "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
    }

  def content(self) -> dict[str, int | str]:
    """See `Source`: by names and sizes of all files, and the bytes of 64 of them.

    Raises:
      FileNotFoundError, ValueError: As `batch`.
    """
    with self._listing:
      paths = [pathlib.Path(path) for path in self._listed[0]]
    names = (path.relative_to(self._directory).as_posix() for path in paths)
    sizes = (path.stat().st_size for path in paths)
    some = np.linspace(0, len(paths) - 1, min(_SAMPLE, len(paths))).astype(int)
    sample = (paths[i].read_bytes() for i in some)
    return {
      "examples": len(paths),
      "digest": content.of_files(zip(names, sizes), sample),
    }

  @functools.cached_property
  def _listed(self) -> tuple[list[str], np.ndarray]:
    """Paths, and [N] int32 labels."""
    if not self._directory.is_dir():
      raise FileNotFoundError(
        f"no folder {self._directory}: it holds one folder of JPEG or PNG files for "
        "each class; put it there or name another directory"
      )
    folders = sorted(path for path in self._directory.iterdir() if path.is_dir())
    if len(folders) != self._classes:
      raise ValueError(
        f"{self._directory} has {len(folders)} folders, not one for each of classes="
        f"{self._classes}: correct the number, or the directory"
      )
    files = [
      sorted(str(p) for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
      for folder in folders
    ]
    for folder, inside in zip(folders, files):
      if not inside:
        raise ValueError(f"{folder} has no files with names that end in {_SUFFIXES}")
    paths = [path for inside in files for path in inside]
    if self._examples not in (None, len(paths)):
      raise ValueError(
        f"{self._directory} has {len(paths):,} images, not examples="
        f"{self._examples:,}: correct the number, or fetch what is missing"
      )
    counts = [len(inside) for inside in files]
    return paths, np.repeat(np.arange(len(files), dtype=np.int32), counts)

  def _read(self, path: str, draws: np.ndarray | None) -> np.ndarray:
    """[image, image, 3] uint8 of a file."""
    try:
      with Image.open(path) as file:
        picture = file.convert("RGB")
    except Exception as error:  # of many kinds: each format's decoder has its own
      raise ValueError(
        f"{path} is not a whole image ({error}); replace it, or take it away"
      ) from error
    if draws is None:
      box = centre(*picture.size, margin=_MARGIN)
    else:
      box = random_crop(*picture.size, draws)
    size = (self._image, self._image)
    pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box=box))
    mirrored = draws is not None and draws[-1] < 0.5
    return pixels[:, ::-1] if mirrored else pixels


def centre(width: int, height: int, *, margin: float) -> Box:
  """(left, top, right, bottom) of the square in the middle of an image.

  Its side is 1/`margin` of the shorter one: resizing it is resizing the whole image and
  cropping then, without rounding between.
  """
  side = min(width, height) / margin
  left, top = (width - side) / 2, (height - side) / 2
  return left, top, left + side, top + side


def random_crop(width: int, height: int, draws: np.ndarray) -> Box:
  """(left, top, right, bottom) of a crop, in whole pixels.

  Args:
    width: Of the image.
    height: Of the image.
    draws: [4 tries + 1] uniform in [0, 1): area, ratio and place of each try; the last
      one is not used. The first try that fits the image is taken, else the largest crop
      in the middle with a ratio that is allowed.
  """
  tries = draws[:-1].reshape(-1, 4)
  low, high = np.log(_RATIO)
  area = width * height * (_AREA[0] + tries[:, 0] * (_AREA[1] - _AREA[0]))
  ratio = np.exp(low + tries[:, 1] * (high - low))
  wide, tall = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
  fits = (wide >= 1) & (wide <= width) & (tall >= 1) & (tall <= height)
  if fits.any():
    i = int(np.argmax(fits))
    left = math.floor(tries[i, 2] * (width - wide[i] + 1))
    top = math.floor(tries[i, 3] * (height - tall[i] + 1))
    return left, top, left + float(wide[i]), top + float(tall[i])
  across = min(width, max(1, round(height * _RATIO[1])))
  down = min(height, max(1, round(width / _RATIO[0])))
  left, top = (width - across) // 2, (height - down) // 2
  return left, top, left + across, top + down
