"""Where examples come from: anything that gives the examples of some indices.

A source knows no order, no epochs and no processes: `pipeline` asks it for the rows of
one batch at a time, from many threads, and hands it the random numbers of each example.
"""

import abc

import jax
import numpy as np

from jaxcodesign.data import augment as augmenting
from jaxcodesign.data.content import digest

_PADDING = 4  # pixels by which a crop may move


class Source(abc.ABC):
  """Examples by index. Laws, of every member:

  * row i of a batch depends on `indices[i]` and `draws[i]` alone;
  * `batch` may be called from many threads at once, and changes nothing;
  * `shapes(B)` is what `batch` gives for B indices.

  Attributes:
    name: For tables and messages.
    draws: Random numbers that one example takes; 0 if nothing is random.
  """

  name: str
  draws: int = 0

  @abc.abstractmethod
  def __len__(self) -> int:
    """Number of examples."""

  @abc.abstractmethod
  def batch(
    self, indices: np.ndarray, draws: np.ndarray | None
  ) -> dict[str, np.ndarray]:
    """The examples of `indices`, stacked.

    Args:
      indices: [B] integers in [0, len(self)).
      draws: [B, self.draws] float64, uniform in [0, 1), from which augmentation is
        computed; None for none.
    """

  @abc.abstractmethod
  def shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch; reads nothing."""

  @abc.abstractmethod
  def content(self) -> dict[str, int | str]:
    """{"examples": how many, "digest": of what they are}, see `data.content`.

    Equal for equal examples, however they are augmented and wherever they lie.
    """


class ImageSource(Source):
  """Labelled images in memory: {"image": [B, H, W, C] float32, "label": [B] int32}."""

  def __init__(
    self,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    augment: bool = False,
    name: str = "images",
  ):
    """Images that are held, not copied.

    Args:
      images: [N, H, W, C] float32.
      labels: [N] integers in [0, classes).
      classes: How many there are.
      augment: Whether training sees other crops and mirror images in each epoch, see
        `augment.crop_and_flip`.
      name: Of the set.

    Raises:
      ValueError: If the arrays are of other kinds or lengths, or a label is no class.
    """
    if images.ndim != 4 or images.dtype != np.float32:
      raise ValueError(
        f"images of {name} must be float32 [N, H, W, C], not {images.dtype} "
        f"{list(images.shape)}"
      )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
      raise ValueError(
        f"labels of {name} must be {len(images)} integers, one for each image, not "
        f"{labels.dtype} {list(labels.shape)}"
      )
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
      raise ValueError(
        f"labels of {name} are in [{labels.min()}, {labels.max()}], not in [0, "
        f"{classes}): correct them, or classes"
      )
    self.images, self.labels = images, labels.astype(np.int32)
    self.classes, self.augment, self.name = classes, augment, name
    self.draws = 3 if augment else 0

  def __len__(self) -> int:
    return len(self.images)

  def batch(
    self, indices: np.ndarray, draws: np.ndarray | None
  ) -> dict[str, np.ndarray]:
    images = self.images[indices]
    if self.augment and draws is not None:
      top, left = np.floor(draws[:, :2] * (2 * _PADDING + 1)).astype(int).T
      flipped = draws[:, 2] < 0.5
      images = augmenting.crop(images, top, left, flipped, padding=_PADDING)
    return {"image": images, "label": self.labels[indices]}

  def shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {
      "image": jax.ShapeDtypeStruct((batch_size, *self.images.shape[1:]), np.float32),
      "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
    }

  def content(self) -> dict[str, int | str]:
    return {"examples": len(self), "digest": digest(self.images, self.labels)}


class TokenSource(Source):
  """Windows of a text: {"tokens": [B, T + 1] int32}.

  Windows overlap by one token, so that every token but the first is foreseen once; what
  is left at the end and fills no window is not used.
  """

  def __init__(self, tokens: np.ndarray, length: int, *, name: str = "tokens"):
    """A text that is held, not copied.

    Args:
      tokens: [N] integers that fit int32; a memory map will do.
      length: T, tokens that an example foresees.
      name: Of the text.

    Raises:
      ValueError: If the tokens are none, or fewer than one window.
    """
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
      raise ValueError(
        f"tokens of {name} must be integers [N], not {tokens.dtype} "
        f"{list(tokens.shape)}"
      )
    if not 1 <= length < len(tokens):
      raise ValueError(
        f"length={length} does not fit the {len(tokens)} tokens of {name}; choose 1 to "
        f"{len(tokens) - 1}"
      )
    self.tokens, self.length, self.name = tokens, length, name

  def __len__(self) -> int:
    return (len(self.tokens) - 1) // self.length

  def batch(
    self, indices: np.ndarray, draws: np.ndarray | None
  ) -> dict[str, np.ndarray]:
    at = np.asarray(indices)[:, None] * self.length + np.arange(self.length + 1)
    return {"tokens": self.tokens[at].astype(np.int32)}

  def shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {"tokens": jax.ShapeDtypeStruct((batch_size, self.length + 1), np.int32)}

  def content(self) -> dict[str, int | str]:
    return {"examples": len(self), "digest": digest(self.tokens)}
