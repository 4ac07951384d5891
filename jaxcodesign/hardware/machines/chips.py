"""Chips that one can buy, as the few numbers a roofline needs, each with its source.

Peaks are dense operations a second (2 a multiply-accumulate), but for the WSE-3, of
which only the sparse one is published; vendors' sparse figures are twice as high. What
is marked recalled was not re-read in its source.

Errors of widespread tables, corrected here: the TPU v6e's memory moves 1,640 GB/s, not
TB/s, and "two 256 x 256 MXUs" do not give its peak at any plausible clock, so peaks are
data, never derived from cells and clock; an H100 SXM has 80 GB (94 GB is the H100 NVL,
96 GB the GH200) on 814 mm2 (826 is the A100); the WSE-3's 21 PB/s is on-wafer SRAM and
no external memory, and its 125 PFLOP/s count sparsity.
"""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

import jax
import numpy as np

from jaxcodesign import tree
from jaxcodesign.hardware.machines.energy import Sourced

BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "fp4": 4, "int4": 4}

# Units that represent every value of a format; fp8 is both E4M3 and E5M2.
HELD_BY = {
  "fp32": ("fp32",),
  "bf16": ("bf16", "fp32"),
  "fp16": ("fp16", "fp32"),
  "fp8": ("fp8", "bf16", "fp16", "fp32"),
  "fp4": ("fp4", "fp8", "bf16", "fp16", "fp32"),
  "int8": ("int8", "bf16", "fp16", "fp32"),
  "int4": ("int4", "int8", "fp8", "bf16", "fp16", "fp32"),
}


@tree.pytree
class Chip:
  """A chip as its roofline: leaves in SI units, per chip.

  Attributes:
    name: As sold.
    source: Where the numbers were read.
    recalled: Names of attributes that were not re-read in a source.
    peak_op_s: Dense operations a second by format.
    bandwidth_bytes_s: Of the memory that holds the weights.
    memory_bytes: Its capacity.
    on_chip_bytes: SRAM, all levels that a table states; 0 where none is published,
      as for the next three.
    power_w: Board or module.
    area_mm2: Of all dies.
    node_nm: Of the process, as named.
    notes: What makes a number other than its attribute says.

  Raises:
    ValueError: When made without a peak, with an unknown format, or with a number that
      is known and negative or not finite; or 0, where that does not mean unpublished.
  """

  name: str = tree.static()
  source: str = tree.static()
  recalled: tuple[str, ...] = tree.static()
  peak_op_s: Mapping[str, jax.typing.ArrayLike]
  bandwidth_bytes_s: jax.typing.ArrayLike
  memory_bytes: jax.typing.ArrayLike
  on_chip_bytes: jax.typing.ArrayLike = 0.0
  power_w: jax.typing.ArrayLike = 0.0
  area_mm2: jax.typing.ArrayLike = 0.0
  node_nm: float = tree.static(default=0.0)
  notes: str = tree.static(default="")

  def __post_init__(self):
    if not self.peak_op_s:
      raise ValueError("Chip.peak_op_s is empty: give the peak of one format at least")
    for name, peak in self.peak_op_s.items():
      check_format(name)
      _check_number(f"peak_op_s[{name!r}]", peak)
    for name in ("bandwidth_bytes_s", "memory_bytes"):
      _check_number(name, getattr(self, name))
    for name in ("on_chip_bytes", "power_w", "area_mm2", "node_nm"):
      _check_number(name, getattr(self, name), zero="; 0 is unpublished")

  def unit(self, left: str, right: str) -> str:
    """The format of the units that multiply two formats; the same for either order.

    Units must represent all values of both, as `HELD_BY` says, and the narrowest that
    do are taken. Two integers go to integer units if any are wide enough, to floats
    otherwise: int4 is unpacked to int8, else to fp8 or bf16, all exact, and never to
    fp4. Floats go to floats only, since integer units have no exponents: fp8 to bf16
    or fp16. A float and an integer go to the floats that hold both: fp8 and int8 to
    bf16, fp8 and int4 to fp8. bf16 and fp16 hold one another's values only in fp32.

    Raises:
      ValueError: If a format is unknown or no unit holds both.
    """
    for name in (left, right):
      check_format(name)
    integers = left.startswith("int") and right.startswith("int")
    fit = [
      name
      for name in BITS
      if name in self.peak_op_s and name in HELD_BY[left] and name in HELD_BY[right]
    ]
    if not fit:
      both = left if left == right else f"both {left} and {right}"
      raise ValueError(
        f"{self.name} has units for {', '.join(self.peak_op_s)}: none holds {both}"
      )
    floats_last = lambda name: integers and not name.startswith("int")
    return min(fit, key=lambda name: (floats_last(name), BITS[name]))

  def peak(self, left: str, right: str) -> Any:
    """Operations a second on products of two formats, those of their `unit`."""
    return self.peak_op_s[self.unit(left, right)]

  def ridge(self, name: str) -> Any:
    """Operations a byte at which compute and memory take equally long."""
    return self.peak(name, name) / self.bandwidth_bytes_s


def check_format(name: str) -> None:
  """Raises a ValueError if `name` is no format of BITS."""
  if name not in BITS:
    raise ValueError(f"format {name!r} is none of {', '.join(BITS)}")


def _check_number(name: str, leaf: Any, zero: str = "") -> None:
  if not tree.is_concrete(leaf):
    return
  found = np.asarray(leaf)
  if not np.all(np.isfinite(found) & ((found > 0) | (bool(zero) & (found == 0)))):
    raise ValueError(f"Chip.{name}={leaf} must be positive and finite{zero}")


_GPU = "NVIDIA datasheets as collected in the Stas Bekman ML engineering tables"
_TPU = "Google Cloud TPU documentation and 'How to scale your model'"
_ALVEO = "AMD Alveo data sheets, UG1393"


def h100_sxm() -> Chip:
  """H100 SXM5, 132 SMs with 528 tensor cores.

  fp32 67, fp16 989, bf16 989, fp8 1979, int8 1979 Top/s (1.83 GHz x 512 FMA x 2 x 528
  = 989.4 T, derived). Memory 80 GB at 3350 GB/s. On chip 84.6 MB: L2 50 MB, L1
  132 x 256 KiB = 33 MiB (derived). 700 W, 814 mm2, 4 nm (4N). Source: NVIDIA
  datasheets as collected in the Stas Bekman ML engineering tables.
  """
  peak = {"fp16": 989e12, "bf16": 989e12, "fp8": 1979e12, "int8": 1979e12}
  size = (3.35e12, 80e9, 84.6e6, 700.0, 814.0, 4.0)
  return Chip("H100 SXM", _GPU, (), {"fp32": 67e12} | peak, *size)


def b200() -> Chip:
  """B200 SXM, two dies with 148 SMs.

  fp16 2250, bf16 2250, fp8 4500, int8 4500, fp4 9000 Top/s. Memory 180 GB of physical
  192 usable in HGX and DGX systems, at 8000 GB/s (7700 on some cards). On chip 126 MB
  (L2). 1000 W, 4 nm (4NP). Source: NVIDIA datasheets as collected in the Stas Bekman
  ML engineering tables.
  """
  peak = {"fp16": 2250e12, "bf16": 2250e12, "fp8": 4500e12, "int8": 4500e12}
  return Chip(
    "B200", _GPU, (), peak | {"fp4": 9000e12}, 8e12, 180e9, 126e6, 1000.0, 0.0, 4.0
  )


def tpu_v1() -> Chip:
  """TPU v1, 65,536 8-bit cells at 700 MHz.

  int8 92 Top/s (2 x 65,536 x 0.7 GHz = 91.75 T, derived). Memory 8 GiB at 34 GB/s
  (recalled). On chip 28 MiB. 75 W (recalled), 331 mm2 at most (recalled), 28 nm.
  Source: Jouppi et al., ISCA 2017.
  """
  recalled = ("bandwidth_bytes_s", "power_w", "area_mm2")
  source = "Jouppi et al., ISCA 2017"
  peak = {"int8": 92e12}
  size = (34e9, 8 * 2.0**30, 28 * 2.0**20, 75.0, 331.0, 28.0)
  return Chip("TPU v1", source, recalled, peak, *size)


def tpu_v4() -> Chip:
  """TPU v4, 2 cores of four 128 x 128 units.

  bf16 275, int8 275 Top/s. Memory 32 GiB at 1200 GB/s. 170 W on average, of 90 at least
  and 192 at most. 7 nm (recalled). Source: Google Cloud TPU documentation and "How to
  scale your model".
  """
  peak = {"bf16": 275e12, "int8": 275e12}
  size = (1.2e12, 32 * 2.0**30, 0.0, 170.0, 0.0, 7.0)
  return Chip("TPU v4", _TPU, ("node_nm",), peak, *size)


def tpu_v5e() -> Chip:
  """TPU v5e, one core of four 128 x 128 units.

  bf16 197, int8 394 Top/s (393 in one source). Memory 16 GB at 819 GB/s. On chip
  128 MiB. Source: Google Cloud TPU documentation and "How to scale your model".
  """
  peak = {"bf16": 197e12, "int8": 394e12}
  return Chip("TPU v5e", _TPU, (), peak, 819e9, 16e9, 128 * 2.0**20)


def tpu_v5p() -> Chip:
  """TPU v5p, two cores of four 128 x 128 units.

  bf16 459, int8 918 Top/s. Memory 95 GB at 2765 GB/s. Source: Google Cloud TPU
  documentation and "How to scale your model".
  """
  return Chip("TPU v5p", _TPU, (), {"bf16": 459e12, "int8": 918e12}, 2765e9, 95e9)


def tpu_v6e() -> Chip:
  """TPU v6e (Trillium), 256 x 256 units.

  bf16 918, fp8 918, int8 1836 Top/s. Memory 32 GB at 1640 GB/s (1638 in one source).
  Source: Google Cloud TPU documentation and "How to scale your model".
  """
  peak = {"bf16": 918e12, "fp8": 918e12, "int8": 1836e12}
  return Chip("TPU v6e", _TPU, (), peak, 1640e9, 32e9)


def wse3() -> Chip:
  """WSE-3 in a CS-3, 900,000 cores.

  fp16 125000 Top/s, sparse: the dense peak is not published, so this is an upper bound.
  Memory is the on-wafer SRAM, 44 GB at 21000000 GB/s; 44000 MB on chip are the same.
  23000 W (of the system), 46225 mm2, 5 nm. Source: Cerebras WSE-3 announcement and
  comparisons of it, four agreeing.
  """
  source = "Cerebras WSE-3 announcement and comparisons of it, four agreeing"
  size = (21e15, 44e9, 44e9, 23e3, 46225.0, 5.0)
  notes = "the peak is the sparse one, the memory on-wafer SRAM"
  return Chip("WSE-3", source, (), {"fp16": 125e15}, *size, notes)


def alveo_u250() -> Chip:
  """Alveo U250, 12,288 DSPs.

  int8 33.3 Top/s (recalled). Memory 64 GB of DDR4 at 77 GB/s. On chip 56.8 MB: 2,688
  block RAMs of 36 Kbit and 1,280 URAMs (derived). 225 W, 16 nm. Source: AMD Alveo data
  sheets, UG1393.
  """
  size = (77e9, 64e9, 56.8e6, 225.0, 0.0, 16.0)
  return Chip("Alveo U250", _ALVEO, ("peak_op_s",), {"int8": 33.3e12}, *size)


def alveo_u280() -> Chip:
  """Alveo U280, 9,024 DSPs.

  int8 24.5 Top/s (recalled). Memory 8 GB of HBM2 at 460 GB/s; 32 GB of DDR4 at 38 GB/s
  beside it are left out. On chip 42.6 MB: 2,016 block RAMs of 36 Kbit and 960 URAMs
  (derived). 225 W (recalled), 16 nm. Source: AMD Alveo data sheets, UG1393.
  """
  recalled = ("peak_op_s", "power_w")
  size = (460e9, 8e9, 42.6e6, 225.0, 0.0, 16.0)
  return Chip("Alveo U280", _ALVEO, recalled, {"int8": 24.5e12}, *size)


CHIPS = {
  "h100": h100_sxm,
  "b200": b200,
  "tpu_v1": tpu_v1,
  "tpu_v4": tpu_v4,
  "tpu_v5e": tpu_v5e,
  "tpu_v5p": tpu_v5p,
  "tpu_v6e": tpu_v6e,
  "wse3": wse3,
  "u250": alveo_u250,
  "u280": alveo_u280,
}

# What the largest products reached in public measurements.
ACHIEVABLE = {
  ("h100", "bf16"): Sourced(794.5e12, "op/s", 4, f"{_GPU}, measured products"),
  ("h100", "fp8"): Sourced(1403e12, "op/s", 4, f"{_GPU}, measured products"),
  ("b200", "bf16"): Sourced(1745e12, "op/s", 4, f"{_GPU}, measured products"),
  ("b200", "fp8"): Sourced(3433e12, "op/s", 4, f"{_GPU}, measured products"),
}


def achievable(name: str, units: Iterable[str]) -> Chip:
  """A chip of CHIPS with what products reached instead of the peaks of `units`.

  Raises:
    ValueError: If there is no such chip, or no measurement of it in one of `units`.
  """
  if name not in CHIPS:
    raise ValueError(f"chip {name!r} is none of {', '.join(CHIPS)}")
  chip = CHIPS[name]()
  for unit in units:
    if (name, unit) not in ACHIEVABLE:
      known = ", ".join(" ".join(key) for key in ACHIEVABLE)
      raise ValueError(
        f"what {chip.name} achieves in {unit} is not known, only {known}: give a share "
        "of the peak instead"
      )
  reached = {unit: ACHIEVABLE[name, unit].value for unit in units}
  return dataclasses.replace(chip, peak_op_s={**chip.peak_op_s, **reached})
