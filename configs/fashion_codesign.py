"""A small CNN on Fashion-MNIST, quantized eleven ways, priced on three arrays.

  python -m launch.codesign configs/fashion_codesign.py

Expected on 2 CPU cores: under 3 minutes; float32 test accuracy of about 89 % (at least
86 %), int8 within half a point of it. The report is runs/fashion_codesign/report.html.
"""

import dataclasses

from jaxcodesign.hardware import presets
from jaxcodesign.numerics.formats import Fixed, Terms
from jaxcodesign.programs.precision import Rule
from jaxcodesign.training.codesign import CodesignConfig, Variant
from jaxcodesign.training.data import FashionMnistMini
from jaxcodesign.training.models import Cnn
from jaxcodesign.training.step import TrainConfig


def config() -> CodesignConfig:
  """About 100,000 parameters; a bit-parallel 16 x 16 array and its serial twins."""
  parallel = presets.int8_45nm(16, 16)
  area = float(parallel.array_mm2())
  return CodesignConfig(
    data=FashionMnistMini(),
    model=Cnn(channels=(16, 32, 64), hidden=128),
    train=TrainConfig(),
    variants=(
      *(uniform(bits) for bits in (8, 6, 4)),
      *(terms(budget, s) for budget, s in BUDGETS),
    ),
    accelerators=(
      parallel,
      presets.bit_serial_45nm(area),
      presets.tmac_45nm(area),
    ),
  )


def smoke() -> CodesignConfig:
  """The same path in seconds: a small network, one epoch, three variants."""
  full = config()
  return dataclasses.replace(
    full,
    model=Cnn(channels=(8,), hidden=16),
    train=TrainConfig(epochs=1, batch_size=500),
    variants=(uniform(8), terms(16, 3), terms(8, 3)),
  )


BUDGETS = ((24, 4), (24, 3), (20, 3), (16, 3), (12, 3), (10, 3), (16, 2), (8, 3))


def uniform(bits: int) -> Variant:
  """Integers for everything; weights scaled per output channel."""
  return Variant(f"int{bits}", (Rule("*", Fixed(bits, "channel"), Fixed(bits)),))


def terms(budget: int, s: int) -> Variant:
  """Term quantization: `budget` terms for 8 weights, `s` for an activation.

  The first layer has one input channel, so its contraction of 9 holds no group of 8;
  it keeps 2 terms a weight on average (6 for the 3 weights of a kernel row).
  """
  data = Terms(s, group=1)
  return Variant(
    f"TQ {budget}/8 s{s}",
    (
      Rule("conv1/*", Terms(6, group=3, share="channel"), data),
      Rule("*", Terms(budget, share="channel"), data),
    ),
  )
