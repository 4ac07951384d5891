"""Augmentation on the host: other crops and mirror images of a batch in each epoch."""

import numpy as np


def crop_and_flip(
  images: np.ndarray, rng: np.random.Generator, *, padding: int = 4
) -> np.ndarray:
  """Returns every image moved by up to `padding` pixels, half of them mirrored.

  A crop of the image's own size from the image with zeros around it, at a place drawn
  for each image, then left and right exchanged with probability 1/2: He et al. train
  ResNets on CIFAR-10 with it (arXiv:1512.03385, section 4.2).

  Args:
    images: [B, H, W, C] float32; not changed.
    rng: Decides alone; it is advanced.
    padding: Zeros on each side, 0 or more.

  Returns:
    [B, H, W, C] float32, a new array.

  Raises:
    ValueError: if the images are no float32 [B, H, W, C] or the padding is negative.
  """
  if images.ndim != 4 or images.dtype != np.float32:
    raise ValueError(
      f"images must be float32 [B, H, W, C], not {images.dtype} {list(images.shape)}"
    )
  if padding < 0:
    raise ValueError(f"padding={padding} must be 0 or more")
  batch = len(images)
  top, left = rng.integers(0, 2 * padding + 1, size=(2, batch))
  return crop(images, top, left, rng.random(batch) < 0.5, padding=padding)


def crop(
  images: np.ndarray,
  top: np.ndarray,
  left: np.ndarray,
  flipped: np.ndarray,
  *,
  padding: int,
) -> np.ndarray:
  """Returns the crops that `crop_and_flip` has drawn.

  Args:
    images: [B, H, W, C]; not changed.
    top: [B] integers in [0, 2 padding]: rows that are left out above, zeros included.
    left: [B], the same of columns.
    flipped: [B] bool: left and right exchanged after the crop.
    padding: Zeros on each side.

  Returns:
    [B, H, W, C], a new array.
  """
  batch, height, width, _ = images.shape
  padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(
    padded, (height, width), axis=(1, 2)
  )  # [B, 2 padding + 1, 2 padding + 1, C, H, W], a view
  crops = np.moveaxis(windows, 3, -1)[np.arange(batch), top, left]
  crops[flipped] = crops[flipped, :, ::-1]
  return crops
