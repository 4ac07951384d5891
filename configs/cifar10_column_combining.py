"""A ResNet-20 of shift convolutions on CIFAR-10, combined by published schedules.

  python -m launch.codesign configs/cifar10_column_combining.py

Expected on one GPU: hours; not run in full here. The released code plots 93.96 % dense
and 93.10 % combined for its ResNet. "combined" has that code's schedule, ten rounds in
the first half, from which weights may return, but starts from the trained network and
has no L1 penalty; "by rounds" is the loop of the paper. For a CPU: --model.width 16
--train.epochs 3, and for each variant that is tuned, 1 to 7, --variants.1.tune.epochs 2
and so on; schedules are shares of the run. Needs CIFAR-10's binary version in
$JAXCODESIGN_DATA/cifar10 (default ~/.cache/jaxcodesign), or named by --data.directory.
"""

import dataclasses

from jaxcodesign.data.cache import cache
from jaxcodesign.data.image_sets import Cifar10, FashionMnistMini
from jaxcodesign.experiments.codesign import CodesignConfig, Variant
from jaxcodesign.hardware.machines import presets
from jaxcodesign.models import ResNet
from jaxcodesign.numerics.formats import Fixed, Terms
from jaxcodesign.numerics.schedules import Cubic, Iterative, OneShot, Schedule
from jaxcodesign.numerics.sparsity import masks
from jaxcodesign.numerics.sparsity.patterns import NOfM, Pattern, Unstructured
from jaxcodesign.programs.precision import Rule
from jaxcodesign.training.combining import Combine, Layer
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.distillation import Distill
from jaxcodesign.training.masked import Prune

EPOCHS = 300  # of the released code
ALPHA, GAMMA = 8, 0.5
DENSITY = 1 - 0.8 * (1 - 1 / ALPHA)  # before conflicts, as the released code has it
LEFT = 0.2  # where the paper's loop stops, and of the network pruned without structure
# A fifth of what is left each time, less and less: the decay is recalled.
ROUNDS = Iterative(0, 0.05, rounds=12, rate=0.2, decay=0.9)
SPARSE = "stage*/conv*/kernel"  # the first convolution and the classifier are dense


def config() -> CodesignConfig:
  """About as many weights as a ResNet-20 of 3 x 3 convolutions has."""
  parallel = presets.int8_45nm(32, 32, dataflow="ws")
  area = float(parallel.array_mm2())
  train = TrainConfig(
    epochs=EPOCHS,
    batch_size=128,
    learning_rate=0.1,
    weight_decay=1e-4,
    warmup=0.0,
    label_smoothing=0.0,
    optimizer="sgd",
    augment=True,
  )
  return CodesignConfig(
    data=Cifar10(cache() / "cifar10"),
    model=ResNet(blocks=3, width=48, convolution="shift"),
    train=train,
    variants=variants(train, Cubic(0, 0.5, events=10), ROUNDS),
    accelerators=(
      parallel,
      presets.bit_serial_45nm(area, dataflow="ws"),
      presets.mx(parallel, ALPHA, array_mm2=area),
      presets.mx(presets.bit_serial_45nm(area, dataflow="ws"), ALPHA, array_mm2=area),
    ),
  )


def smoke() -> CodesignConfig:
  """The same path in seconds: a small network, an epoch of grey images, one round."""
  full = config()
  train = TrainConfig(epochs=1, batch_size=500, learning_rate=0.02, optimizer="sgd")
  return dataclasses.replace(
    full,
    data=FashionMnistMini(),
    model=ResNet(blocks=1, width=8, convolution="shift"),
    train=train,
    variants=variants(train, OneShot(0), OneShot(0))[::2],
  )


def variants(
  train: TrainConfig, schedule: Schedule, rounds: Schedule
) -> tuple[Variant, ...]:
  """Dense, pruned without structure, 2:4, combined, with fewer terms, and taught."""
  int8 = (Rule("*", Fixed(8, "channel"), Fixed(8)),)
  # The image has too few channels for groups of 8 weights.
  budget = (
    Rule("stem*", Fixed(8, "channel"), Fixed(8)),
    Rule("*", Terms(16, share="channel"), Terms(3, group=1)),
  )
  combine = Combine((Layer(SPARSE, DENSITY, ALPHA, GAMMA),), schedule, regrow=True)
  combined = dataclasses.replace(train, sparsity=combine)
  taught = dataclasses.replace(combined, distill=Distill(alpha=0.7))

  loop = Combine((Layer(SPARSE, LEFT, ALPHA, GAMMA),), rounds)

  def pruned(pattern: Pattern) -> TrainConfig:
    rule = masks.Rule(SPARSE, pattern)
    return dataclasses.replace(train, sparsity=Prune((rule,), schedule))

  return (
    Variant("int8", int8),
    Variant("pruned int8", int8, pruned(Unstructured(LEFT))),
    Variant("2:4 int8", int8, pruned(NOfM(2, 4, axis=-2))),
    Variant("combined TQ 16/8 s3", budget, combined),
    Variant("combined int8", int8, combined),
    Variant("combined, distilled int8", int8, taught),
    Variant("combined, distilled TQ 16/8 s3", budget, taught),
    Variant("combined by rounds int8", int8, dataclasses.replace(train, sparsity=loop)),
  )
