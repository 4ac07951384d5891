"""The first images of a set, where a test needs some and not all."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Few:
  """The first `count` of some images to train on, and `scored` to score on."""

  images: Any
  count: int
  scored: int

  def load(self):
    whole, n, m = self.images.load(), self.count, self.scored
    return dataclasses.replace(
      whole,
      train_images=whole.train_images[:n],
      train_labels=whole.train_labels[:n],
      test_images=whole.test_images[:m],
      test_labels=whole.test_labels[:m],
    )
