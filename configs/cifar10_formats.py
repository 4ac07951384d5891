"""A published CIFAR-10 CNN after training, in 27 formats, on all 10,000 test images.

  python -m launch.evaluate configs/cifar10_formats.py

Expected on 2 CPU cores: about six minutes, a second run seconds; float32
80.14 %, int8 within a quarter of a point of it. Needs CIFAR-10's binary version and the
network's weights.npz, in $JAXCODESIGN_DATA/cifar10 and $JAXCODESIGN_DATA/cifar10_cnn
(default ~/.cache/jaxcodesign), or named by --network.directory and --network.weights.
"""

from jaxcodesign.experiments.codesign import Variant
from jaxcodesign.experiments.pretrained import Cifar10Cnn, RandomCnn
from jaxcodesign.experiments.sweep import SweepConfig
from jaxcodesign.numerics import formats
from jaxcodesign.numerics.formats import BlockFloat, Fixed, Format, Terms
from jaxcodesign.programs.precision import Rule

# Terms for 8 weights, terms for an activation.
BUDGETS = ((24, 4), (24, 3), (20, 3), (16, 3), (14, 3), (12, 3), (10, 3), (8, 3),
           (16, 2), (12, 2), (8, 2))  # fmt: skip


def config() -> SweepConfig:
  """Integers, block floating point, microscaling and term budgets."""
  both = {
    "MXFP8": formats.MXFP8_E4M3,
    "MXFP6": formats.MXFP6_E2M3,
    "MXFP4": formats.MXFP4,
    "MXINT8": formats.MXINT8,
    "NVFP4": formats.NVFP4,
  } | {f"BFP m={m}": BlockFloat(m) for m in range(2, 8)}
  return SweepConfig(
    network=Cifar10Cnn(),
    variants=(
      *(uniform(bits) for bits in (8, 7, 6, 5, 4)),
      *(everywhere(name, fmt) for name, fmt in both.items()),
      *(terms(k, s) for k, s in BUDGETS),
    ),
  )


def smoke() -> SweepConfig:
  """The same path in seconds: random weights, three variants."""
  return SweepConfig(
    network=RandomCnn(),
    variants=(uniform(8), everywhere("MXFP4", formats.MXFP4), terms(12, 3)),
  )


def uniform(bits: int) -> Variant:
  """Integers for everything; weights scaled per output channel."""
  return Variant(f"int{bits}", (Rule("*", Fixed(bits, "channel"), Fixed(bits)),))


def everywhere(name: str, fmt: Format) -> Variant:
  """One format for weights and activations."""
  return Variant(name, (Rule("*", fmt, fmt),))


def terms(budget: int, s: int) -> Variant:
  """Term quantization: `budget` terms for 8 weights, `s` for an activation.

  The first layer has three input channels: its contraction of 27 holds no group of 8
  and keeps the same mean, rounded up, in groups of 3.
  """
  data = Terms(s, group=1)
  few = -(-3 * budget // 8)
  return Variant(
    f"TQ {budget}/8 s{s}",
    (
      Rule("conv0/*", Terms(few, group=3, share="channel"), data),
      Rule("*", Terms(budget, share="channel"), data),
    ),
  )
