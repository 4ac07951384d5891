"""A small MobileNet on Fashion-MNIST: few multiplications, and an array that idles.

  python -m launch.codesign configs/fashion_mobilenet.py

Expected on 2 CPU cores: about 3 minutes; float32 test accuracy of about 82 %. The
report's layers tell what is left of depthwise convolutions on 16 x 16 and on 128 x 128
cells. The network of the paper, untrained, at 224 pixels beside its twin of full
convolutions: python -m launch.simulate mobilenet --array os:128x128 ws:128x128
--against full --kinds kinds.png
"""

import dataclasses

from jaxcodesign.data.image_sets import FashionMnistMini
from jaxcodesign.experiments.codesign import CodesignConfig, Variant
from jaxcodesign.hardware.machines import presets
from jaxcodesign.models import MobileNet
from jaxcodesign.numerics.formats import Fixed
from jaxcodesign.programs.precision import Rule
from jaxcodesign.training.config import TrainConfig

BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1))


def config() -> CodesignConfig:
  """A quarter of the paper's filters, five of its blocks."""
  large = presets.int8_45nm(128, 128)
  return CodesignConfig(
    data=FashionMnistMini(),
    model=MobileNet(width=0.25, stem=(32, 2), blocks=BLOCKS),
    train=TrainConfig(),
    variants=tuple(
      Variant(f"int{bits}", (Rule("*", Fixed(bits, "channel"), Fixed(bits)),))
      for bits in (8, 6)
    ),
    accelerators=(
      presets.int8_45nm(16, 16),
      dataclasses.replace(large, name="int8 128 x 128"),
    ),
  )


def smoke() -> CodesignConfig:
  """The same path in seconds: two blocks, an epoch of large batches."""
  return dataclasses.replace(
    config(),
    model=MobileNet(width=0.25, stem=(32, 2), blocks=((64, 2),)),
    train=TrainConfig(epochs=1, batch_size=500),
  )
