"""Number systems to train in, each on an array of the same area at 45 nm.

A system is the formats of weights (W), activations (A) and incoming gradients (G), and
the machine that multiplies them: what `precision.quantize` trains with is what
`iteration_cost` prices. All machines are `presets.fast_256x64` with other cells, as
many as fit the area of its array: buffers, DRAM, vector unit and clock are the same.

  system    W and A          G                 cell (`cells`), its source
  FP32      float32          float32           fp32 multiplier and adder, Horowitz
  bfloat16  bf16             bf16              bf16 multiplier, fp32 adder, Horowitz
  INT8      8 bits           8 bits, noise     8-bit multiplier and adder, Bit Fusion's
                                               published synthesis
  HFP8      e4m3             e5m2              8-bit multiplier counted, fp16 adder,
                                               Horowitz
  MSFP-12   3 + sign, e8     the same, noise   fMAC whose chunk is all 3 bits, counted
  LowBFP    2 + sign         the same, noise   the fMAC of FAST: 1 pass
  MidBFP    3 + sign         the same, noise   the same: 4 passes
  HighBFP   4 + sign         the same, noise   the same: 4 passes
  FAST      2 or 4 + sign    the same, noise   the same: 1, 2 or 4 passes

Block formats have groups of 16 along each product's own contraction, of images along
their channels, see `programs.fast`; "noise" is stochastic rounding. Integers and HFP8
have one scale for each tensor, which stands for the loss scale. Recalled, and
parameters of whoever builds a `NumberSystem`: MSFP-12's exponent of 8 bits with 3 of
mantissa; m = 2, 3, 4 of the three BFP systems; sums of HFP8 in fp16; that integers
round gradients stochastically. FAST's own table of areas is not known here: no ratio
between these machines is a published one.

What the counts say of the cells, which decides who wins: most of an fMAC is its fp32
adder (4184 of 6224 um2), which every pass carries along. A cell that multiplies whole
mantissas of 3 bits is only 1.13 times as large, so MSFP-12 has 3.5 times the peak
products of FAST at 4 passes, and 0.9 of FAST at 1.

References: Zhang, McDanel, Kung, "FAST", HPCA 2022; Darvish Rouhani et al., NeurIPS
2020 (MSFP); Sun et al., "Hybrid 8-bit Floating Point (HFP8) Training and Inference for
Deep Neural Networks", NeurIPS 2019; Kalamkar et al., arXiv 1905.12322 (bfloat16).
"""

import dataclasses

from jaxcodesign import tree
from jaxcodesign.hardware.machines import cells, presets
from jaxcodesign.hardware.machines.spec import Accelerator, Dram, Mac
from jaxcodesign.numerics.formats.block_float import BlockFloat
from jaxcodesign.numerics.formats.fixed import Fixed
from jaxcodesign.numerics.formats.format import Format
from jaxcodesign.numerics.formats.minifloat import Minifloat
from jaxcodesign.programs.policy import Operand, Policy, Rule

GROUP = 16
_ASPECT = 64 / 256
_BFLOAT16 = Minifloat(8, 7, "ieee")
_E4M3 = Minifloat(4, 3, "fn", share="tensor")
_E5M2 = Minifloat(5, 2, "ieee", share="tensor")


@tree.pytree
class NumberSystem:
  """Formats to train in and the machine that multiplies them.

  Attributes:
    name: What tables and pictures call it; unique among those compared.
    policy: For `precision.quantize`; () leaves float32. Of FAST: the largest formats.
    accelerator: Prices a product at the width of these formats.
    adaptive: Whether precision moves while it trains, so that a price needs the passes
      of a run.
  """

  name: str = tree.static()
  policy: Policy
  accelerator: Accelerator
  adaptive: bool = tree.static(default=False)

  @property
  def stochastic(self) -> bool:
    """Whether `quantize` takes a key: some operand is rounded with noise."""
    return any(rule.stochastic for rule in self.policy)


def systems(
  area_mm2: float | None = None,
  *,
  exponent_bits: int = 8,
  dram: Dram | None = None,
  own_cells: bool = False,
) -> tuple[NumberSystem, ...]:
  """All systems of the module's table, in its order, on arrays of one area.

  Args:
    area_mm2: Of FAST's cells, as many whole rows as fit; by default it has the 256 x 64
      cells of `presets.fast_256x64`. Others have what fits the area that FAST takes.
    exponent_bits: Of the groups of LowBFP, MidBFP, HighBFP and FAST; see `BlockFloat`
      for what less than 8 means. Sources disagree about FAST's: 3 or 4.
    dram: Of every machine; the preset's by default, 12.8 GB/s. An array of this size
      waits for it most of the time.
    own_cells: LowBFP, MidBFP and HighBFP on cells whose chunk is their whole mantissa,
      as MSFP-12's, in place of the FAST array.

  Raises:
    ValueError: If the area holds no cell of a system, or `exponent_bits` are none.
  """
  fast = presets.fast_256x64()
  fast = dataclasses.replace(fast, rows=fast.cols, cols=fast.rows)
  if dram is not None:
    fast = dataclasses.replace(fast, dram=dram)
  if area_mm2 is not None:
    fast = presets.with_cells(
      fast, fast.mac, name=fast.name, array_mm2=area_mm2, aspect=_ASPECT
    )
  made = [
    _system("FP32", fast, cells.floating("fp32"), None, None),
    _system(
      "bfloat16", fast, cells.floating("bf16", sums="fp32"), _BFLOAT16, _BFLOAT16
    ),
    _system("INT8", fast, cells.parallel(), Fixed(8), Fixed(8), noise=("gradient",)),
    _system("HFP8", fast, cells.floating("fp8", sums="fp16"), _E4M3, _E5M2),
    _block("MSFP-12", fast, cells.fmac(chunk_bits=3), 3, 8),
  ]
  for name, mantissa in (("LowBFP", 2), ("MidBFP", 3), ("HighBFP", 4)):
    cell = cells.fmac(chunk_bits=mantissa) if own_cells else fast.mac
    made.append(_block(name, fast, cell, mantissa, exponent_bits))
  high = _block("FAST", fast, fast.mac, 4, exponent_bits)
  return (*made, dataclasses.replace(high, adaptive=True))


def _block(
  name: str, fast: Accelerator, cell: Mac, mantissa: int, exponent: int
) -> NumberSystem:
  fmt = BlockFloat(float(mantissa), GROUP, exponent)
  return _system(name, fast, cell, fmt, fmt, noise=("gradient",))


def _system(
  name: str,
  fast: Accelerator,
  cell: Mac,
  forward: Format | None,
  gradient: Format | None,
  *,
  noise: tuple[Operand, ...] = (),
) -> NumberSystem:
  rule = Rule("*", forward, forward, gradient, stochastic=noise)
  machine = dataclasses.replace(fast, name=name)
  if cell != fast.mac:
    aspect = _ASPECT if cell.lanes > 1 else 1.0
    machine = presets.with_cells(fast, cell, name=name, aspect=aspect)
  return NumberSystem(name, (rule,) if forward else (), machine)
