"""A small CNN on Fashion-MNIST, quantized, pruned and combined, priced on five arrays.

  python -m launch.codesign configs/fashion_codesign.py

Expected on 2 CPU cores: under 4 minutes; float32 test accuracy of about 89 % (at least
86 %), int8 within half a point of it, column-combined within about a point. The report
is runs/fashion_codesign/report.html.
"""

import dataclasses

from jaxcodesign.data.image_sets import FashionMnistMini
from jaxcodesign.experiments.codesign import CodesignConfig, Variant
from jaxcodesign.hardware.machines import presets
from jaxcodesign.models import Cnn
from jaxcodesign.numerics.formats import Fixed, Terms
from jaxcodesign.numerics.schedules import Cubic
from jaxcodesign.numerics.sparsity import masks
from jaxcodesign.numerics.sparsity.patterns import NOfM, Pattern, Unstructured
from jaxcodesign.programs.precision import Rule
from jaxcodesign.training.combining import Combine, Layer
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.distillation import Distill
from jaxcodesign.training.masked import Prune

# What is pruned: not the first layer, whose contraction is 9, nor the last, of 10
# outputs.
SPARSE = ("conv[23]/kernel", "dense1/kernel")
ALPHA, GAMMA = 8, 0.5
BEFORE, AFTER = 0.3, 0.19  # part of the weights that stays, conflicts not yet pruned


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
      *sparse(SPARSE, TrainConfig(epochs=6, learning_rate=4e-3, warmup=0.05)),
    ),
    accelerators=(
      parallel,
      presets.bit_serial_45nm(area),
      presets.tmac_45nm(area),
      presets.mx(parallel, ALPHA, array_mm2=area),
      presets.mx(presets.tmac_45nm(area), ALPHA, array_mm2=area),
    ),
  )


def smoke() -> CodesignConfig:
  """The same path in seconds: a small network, one epoch, six variants."""
  full = config()
  return dataclasses.replace(
    full,
    model=Cnn(channels=(8, 8), hidden=16),
    train=TrainConfig(epochs=1, batch_size=500),
    variants=(
      uniform(8),
      terms(16, 3),
      terms(8, 3),
      *sparse(("dense1/kernel",), TrainConfig(epochs=2, batch_size=500))[::2],
    ),
  )


def sparse(leaves: tuple[str, ...], tune: TrainConfig) -> tuple[Variant, ...]:
  """The trained network, trained on under masks: plain, 2:4, combined, taught.

  Args:
    leaves: That are pruned.
    tune: How it is trained on, the schedule of its masks included.
  """
  schedule = Cubic(0, 1 / 3, events=2)
  combine = Combine(tuple(Layer(x, BEFORE, ALPHA, GAMMA) for x in leaves), schedule)
  combined = dataclasses.replace(tune, sparsity=combine)
  taught = dataclasses.replace(combined, distill=Distill(alpha=0.7))

  def pruned(pattern: Pattern) -> TrainConfig:
    rules = tuple(masks.Rule(leaf, pattern) for leaf in leaves)
    return dataclasses.replace(tune, sparsity=Prune(rules, schedule))

  int8, budget = uniform(8).policy, terms(16, 3).policy
  return (
    Variant("pruned int8", int8, pruned(Unstructured(AFTER))),
    Variant("2:4 int8", int8, pruned(NOfM(2, 4, axis=-2))),
    Variant("combined int8", int8, combined),
    Variant("combined TQ 16/8 s3", budget, combined),
    Variant("combined, distilled int8", int8, taught),
    Variant("combined, distilled TQ 16/8 s3", budget, taught),
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
