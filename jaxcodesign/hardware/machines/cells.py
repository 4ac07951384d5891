"""Multiply-accumulate cells with a source: synthesized, tabulated, or counted in gates.

  parallel, fusible    published synthesis, see `synthesis`
  floating             Horowitz's multipliers and adders, fp8's counted
  bit_serial, tmac,    counted: full adders, register bits and two-input gates, each for
  fmac, shift          an area and for the energy of a cycle in which it works
  mx                   any of them with several inputs and a multiplexer in front

Constants are in `energy.TABLE`. Where a source gives no leakage, a cell leaks per area
what synthesized 8-bit cells do; an idle cell takes `idle_share` of an active cycle.
A count is a floor plan on paper, without wires, control and sizing. Against the ratios
of `presets`, which a draft plotted, it makes a bit-serial cell 5.7 times as large with
sums of 32 bits, in 4 MACs, and 3.1 times with 16, in 2; the tMAC, whose 128 counter
bits are registers here, 16 times.

Numbers may be traced, and have derivatives: `jax.grad` by bits designs a cell.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.hardware.machines import energy, synthesis
from jaxcodesign.hardware.machines.counts import Count
from jaxcodesign.hardware.machines.spec import Leaf, Mac

FloatKind = Literal["fp32", "fp16", "bf16", "fp8"]
_FLOAT_BITS: dict[FloatKind, float] = {
  "fp32": 32.0,
  "fp16": 16.0,
  "bf16": 16.0,
  "fp8": 8.0,
}
_MUX = 3.0  # two-input gates of a 2:1 multiplexer: two ands and an or


def parallel(
  weight_bits: Leaf = 8.0,
  activation_bits: Leaf = 8.0,
  *,
  accumulator_bits: Leaf = 32.0,
  headroom_bits: Leaf = 0.0,
  array: synthesis.Shape | None = None,
  node_nm: int = 45,
) -> Mac:
  """A fixed w x a multiplier and adder, one product a cycle, as Bit Fusion published.

  Args:
    weight_bits: w.
    activation_bits: a; a cell of w x a bits is taken to be one of sqrt(w a), 2 to 16.
    accumulator_bits: Of a partial sum outside the cell.
    headroom_bits: Accumulator bits beyond those of the synthesized cell, which are not
      published: a full adder and a register each.
    array: Cells (n, m) of the synthesized array; the mean of those of 16 by default.
    node_nm: 45 as synthesized, others as `energy.logic_ratio`.

  Raises:
    ValueError: If bits, array or node are outside the table.
  """
  w, a = _known_or_array(weight_bits), _known_or_array(activation_bits)
  bits = (w * a) ** 0.5
  cost = {q: synthesis.cost(q, bits, array=array) for q in _SYNTHESIZED}
  more = Count(headroom_bits, headroom_bits)
  return _synthesized("parallel", cost, more, w, a, accumulator_bits, node_nm)


def fusible(
  bits: Leaf = 8.0,
  *,
  accumulator_bits: Leaf = 32.0,
  array: synthesis.Shape | None = None,
  node_nm: int = 45,
) -> Mac:
  """Bit Fusion's cell: a multiplier of 4 to 16 bits that splits down to 2 x 2 bits.

  Arguments and errors are those of `parallel`.
  """
  cost = {q: synthesis.cost(q, bits, fusible=True, array=array) for q in _SYNTHESIZED}
  width = _known_or_array(bits)
  return _synthesized("fusible", cost, Count(), width, width, accumulator_bits, node_nm)


def floating(kind: FloatKind, *, sums: FloatKind | None = None) -> Mac:
  """One floating-point multiplier and adder at 45 nm.

  bf16 has no row at 45 nm: it is fp16 times the ratio of the two at 7 nm, in energy
  and, as an assumption, in area. fp8 multiplies e4m3 and e5m2 (sign, 5 bits of exponent
  and 3 of mantissa) and is counted: 16 ands and 12 full adders of the significands, 6
  of the exponents, a multiplexer of 8 bits that normalizes, a gate for the sign, and 18
  register bits, half of which flip. It has no adder of its own.

  Args:
    kind: "fp32", "fp16", "bf16" or "fp8", of the operands.
    sums: Of the adder and its sums; `kind` by default, which fp8 cannot be.

  Raises:
    ValueError: If a kind is another.
  """
  sums = sums or kind
  if kind not in get_args(FloatKind) or sums not in get_args(FloatKind):
    kinds = ", ".join(get_args(FloatKind))
    raise ValueError(f"kind={kind!r} or sums={sums!r} is none of {kinds}")
  if sums == "fp8":
    raise ValueError('sums="fp8" has no adder: give sums="fp16" or "fp32"')
  joules, area = (
    _float_part(kind, "mul", unit) + _float_part(sums, "add", unit)
    for unit in ("j", "mm2")
  )
  bits = _FLOAT_BITS[kind]
  return _cell("floating", bits, bits, _FLOAT_BITS[sums], joules, area, 45)


def _float_part(kind: FloatKind, op: str, unit: str) -> float:
  """Joules or square millimetres of a multiplier or an adder."""
  if kind == "fp8":
    parts = Count(12.0 + 6.0, 18.0, 16.0 + 1.0 + _MUX * 8)
    works = parts._replace(registers=9.0)
    return parts.area_mm2(45) if unit == "mm2" else works.energy_j(45)
  if kind == "bf16":
    return _float_part("fp16", op, unit) * energy.value(f"bf16_{op}_of_fp16")
  return energy.value(f"{kind}_{op}_{unit}")


def bit_serial(
  weight_bits: Leaf = 8.0, *, accumulator_bits: Leaf = 32.0, node_nm: int = 45
) -> Mac:
  """The bit-serial cell of column combining: L/8 interleaved MACs that share a weight.

  A MAC takes L cycles, those of `accumulator_bits`, for a product, 8 of them for its
  data: L/8 MACs let the cell take a value every 8 cycles. In a MAC w full adders add
  the weight to the product so far where the data bit is one (w ands), a serial negation
  and a serial addition make a bit a cycle; registers: product, two carries, the sum's
  bit and two control bits. The cell has the weight and the data's bit once. Sums stream
  through and are stored outside.

  In an active cycle of the cell one MAC adds, and serial parts work as for the 8 + w
  bits of a product: beyond, signs are extended and little flips. Registers flip 4 (w +
  5) bits a product, 52 at w = 8: `bitserial` counts 44.7 in its MACs, and 8 more are
  the data's and the control's.

  Data of b bits are taken to come every b cycles. Below 8 bits that needs L/b MACs, or
  sums of L b/8 bits in these; above, some MACs of the cell have nothing to do.

  Args:
    weight_bits: w.
    accumulator_bits: L of a sum, at least 8; 16 and 32 in the published Verilog.
    node_nm: As in `parallel`.

  Raises:
    ValueError: If accumulator_bits are known and below 8, or the node is unknown.

  Reference: Kung, McDanel, Zhang. "Packing Sparse Convolutional Neural Networks for
  Efficient Systolic Array Implementations", ASPLOS 2019, and its Verilog.
  """
  w = _known_or_array(weight_bits)
  mac, shared = Count(w + 2, w + 5, w + 4), Count(registers=w + 1)
  serial = (8 + w) / 8
  works = Count(w + 2 * serial, (w + 5) / 2, w + 4 * serial)
  held = _interleaved(mac, shared, accumulator_bits)
  return _counted("bit_serial", w, 8.0, accumulator_bits, held, works, node_nm)


def tmac(
  *,
  magnitude_bits: int = 8,
  coefficients: int = 16,
  coefficient_bits: Leaf = 8.0,
  accumulator_bits: Leaf = 32.0,
  node_nm: int = 45,
) -> Mac:
  """The tMAC: a pair of terms a cycle, counted in a vector of coefficients.

  Two exponents are added (as many full adders as exponent bits), signs go through a
  gate, and one coefficient, chosen by a multiplexer, goes up or down by one. At the
  foot of a column stand the converter sum_i c_i 2^i, an HESE encoder (2 registers and 6
  gates a bit) and a comparator that keeps the largest terms (a count of 5 bits and a
  register of 7, a bit at a time).

  Args:
    magnitude_bits: Of an operand; its exponents have ceil(log2) of these bits.
    coefficients: 16 in the published Verilog.
    coefficient_bits: Of a counter. Not published: an assumption.
    accumulator_bits: Of a partial sum outside the cell.
    node_nm: As in `parallel`.

  Reference: Kung, McDanel, Zhang. "Term Quantization", SC 2020.
  """
  exponent = float(np.ceil(np.log2(magnitude_bits)))
  counter, terms = _known_or_array(coefficient_bits), 2 * (exponent + 1)
  select = _MUX * (coefficients - 1) * counter
  held = Count(exponent + counter, coefficients * counter + terms, 1 + select)
  works = Count(exponent + counter, (counter + terms) / 2, 1 + select / coefficients)
  encode = Count(registers=2.0, gates=6.0)
  compare = Count(full_adders=5.0, registers=7.0)
  foot = encode.plus(compare)
  each_result = foot.times(float(magnitude_bits)).plus(Count(coefficients * counter))
  cell = _counted(
    "term_serial",
    magnitude_bits + 1.0,
    magnitude_bits + 1.0,
    accumulator_bits,
    held,
    works,
    node_nm,
  )
  return dataclasses.replace(
    cell,
    output_j=each_result.energy_j(node_nm),
    output_mm2=foot.plus(Count(counter, 32.0)).area_mm2(node_nm),
  )


def fmac(*, group: int = 16, chunk_bits: int = 2, node_nm: int = 45) -> Mac:
  """FAST's fMAC: a dot product of two block floating-point groups, chunk by chunk.

  A pass multiplies `group` pairs of chunks of c bits (c^2 ands and c (c - 1) full
  adders each), sums them in a tree and shifts the sum into an integer accumulator of 16
  bits. A group then needs one addition of 8-bit exponents and one of fp32. At the foot
  a converter makes block floating point: a comparison of exponents, a shift of 8 bits,
  and the 8-bit noise of stochastic rounding.

  Args:
    group: Values that share an exponent.
    chunk_bits: Mantissa bits of a pass, the sign not counted.
    node_nm: As in `parallel`.

  Reference: Zhang, McDanel, Kung. "FAST", HPCA 2022. Its table of areas and energies is
  not known here: these are counts.
  """
  c, depth = float(chunk_bits), float(np.ceil(np.log2(group)))
  multiply = Count(c * (c - 1), 2 * (c + 1), c * c + 1).times(float(group))
  tree_ = Count((group - 1) * (2 * c + 1 + depth / 2))
  shift = Count(16.0, 16.0, _MUX * 16 * 3)
  a_pass = multiply.plus(tree_, shift)
  add_exponents = Count(8.0, 8.0)
  convert = Count(16.0, 16.0, _MUX * 8 * 3)
  ratio = {u: energy.logic_ratio(u, 45, node_nm) for u in ("j", "mm2")}
  normalize = {u: energy.value(f"fp32_add_{u}") * ratio[u] for u in ratio}
  cell = _counted(
    "chunk_serial",
    c + 1,
    c + 1,
    32.0,
    a_pass.plus(add_exponents),
    a_pass._replace(registers=a_pass.registers / 2),
    node_nm,
    normalize["mm2"],
  )
  return dataclasses.replace(
    cell,
    group_j=add_exponents.energy_j(node_nm) + normalize["j"],
    output_j=convert.energy_j(node_nm),
    output_mm2=convert.area_mm2(node_nm),
    lanes=group,
  )


def shift(
  weight_bits: Leaf = 4.0, *, accumulator_bits: Leaf = 32.0, node_nm: int = 45
) -> Mac:
  """Bit-serial shift-accumulate: weights are powers of two, a bit is only delayed.

  A weight of w bits is a sign and an exponent up to 2^(w-1) - 1: in each MAC a delay
  line of as many registers and a multiplexer over its taps replace the w adders of
  `bit_serial`. All else is as there: L/8 MACs share the weight, a product has 8 bits
  and the delay. Arguments and errors are those of `bit_serial`.

  Reference: McDanel, Zhang, Kung, Dong. "Full-stack Optimization for Accelerating CNNs
  Using Powers-of-Two Weights with FPGA Validation", ICS 2019; the count is ours.
  """
  w = _known_or_array(weight_bits)
  taps = 2 ** (w - 1) - 1
  mac, shared = Count(2.0, taps + 5, _MUX * taps + 4), Count(registers=w + 1)
  serial = (8 + taps) / 8
  works = Count(2 * serial, (taps + 5) / 2, (_MUX * (w - 1) + 4) * serial)
  held = _interleaved(mac, shared, accumulator_bits)
  return _counted("bit_serial", w, 8.0, accumulator_bits, held, works, node_nm)


def mx(cell: Mac, alpha: Leaf, *, node_nm: int = 45) -> Mac:
  """A cell that selects one of `alpha` inputs, all of which travel through it.

  For each of its lanes alpha - 1 more registers and two-input multiplexers, as wide as
  what a cell sees at once: a bit in a bit-serial cell, a term (exponent and sign) in a
  term-serial one, else an activation. They flip like data, half of them a cycle. The
  index, log2(alpha) bits in registers, stays, as in a weight-stationary array.

  They cost what they do when all inputs move, an idle cell `idle_share` of it: plain
  weights on this cell are charged for inputs that a design could hold still.

  Args:
    cell: Without selector.
    alpha: Inputs; with 1 the cell is as it was.
    node_nm: As in `parallel`.

  Raises:
    ValueError: If alpha is known and below 1, or the cell selects already.
  """
  if tree.is_concrete(alpha) and not np.all(np.asarray(alpha) >= 1):
    raise ValueError(f"alpha={alpha} inputs: a cell selects among at least 1")
  if tree.is_concrete(cell.inputs) and np.any(np.asarray(cell.inputs) != 1):
    raise ValueError(f"the cell selects among {cell.inputs} inputs already")
  inputs = _known_or_array(alpha)
  index = np.log2(inputs) if isinstance(inputs, float) else jnp.log2(inputs)
  width = _width(cell)
  each = Count(registers=width, gates=_MUX * width).times((inputs - 1) * cell.lanes)
  area = each.plus(Count(registers=index * cell.lanes)).area_mm2(node_nm)
  more = each.times(0.5).energy_j(node_nm)
  return dataclasses.replace(
    cell,
    area_mm2=cell.area_mm2 + area,
    energy_j=cell.energy_j + more,
    leakage_w=cell.leakage_w + area * leakage_w_mm2(node_nm),
    idle_j=cell.idle_j + more * energy.value("idle_share"),
    inputs=inputs,
  )


def _width(cell: Mac) -> Any:
  """Bits of the activation that a cell sees at once."""
  if cell.kind == "bit_serial":
    return 1.0
  bits = cell.activation_bits
  if cell.kind != "term_serial":
    return bits
  lib: Any = np if isinstance(bits, float) else jnp
  return lib.ceil(lib.log2(bits - 1)) + 1.0


def leakage_w_mm2(node_nm: int = 45) -> float:
  """Watts a square millimetre of synthesized 8-bit cells; scaled as `logic_ratio`."""
  at_45 = synthesis.cost("leakage_w", 8.0) / synthesis.cost("area_mm2", 8.0)
  ratio = {u: energy.logic_ratio(u, 45, node_nm) for u in ("w", "mm2")}
  return float(at_45) * ratio["w"] / ratio["mm2"]


_SYNTHESIZED: tuple[synthesis.Quantity, ...] = ("energy_j", "leakage_w", "area_mm2")


def _synthesized(
  kind: Any, cost: dict[Any, Any], more: Count, w: Any, a: Any, total: Any, node: int
) -> Mac:
  scale = {q: energy.logic_ratio(q.rsplit("_", 1)[1], 45, node) for q in cost}
  scaled = {q: x * scale[q] for q, x in cost.items()}
  area = more.area_mm2(node)
  joules = scaled["energy_j"] + more.energy_j(node)
  cell = _cell(kind, w, a, total, joules, scaled["area_mm2"] + area, node)
  leakage = scaled["leakage_w"] + area * leakage_w_mm2(node)
  return dataclasses.replace(cell, leakage_w=leakage)


def _counted(
  kind: Any,
  w: Any,
  a: Any,
  total: Any,
  held: Count,
  works: Count,
  node: int,
  beside_mm2: float = 0.0,
) -> Mac:
  area = held.area_mm2(node) + beside_mm2
  return _cell(kind, w, a, total, works.energy_j(node), area, node)


def _interleaved(mac: Count, shared: Count, accumulator_bits: Leaf) -> Count:
  """A cell of as many MACs as there are data bytes in a sum."""
  if tree.is_concrete(accumulator_bits) and np.any(np.asarray(accumulator_bits) < 8):
    raise ValueError(
      f"accumulator_bits={accumulator_bits}: a cell has one MAC for each 8 bits of a "
      "sum, so at least 8 are needed"
    )
  return mac.times(_known_or_array(accumulator_bits) / 8).plus(shared)


def _cell(
  kind: Any, w: Any, a: Any, total: Any, joules: Any, area_mm2: Any, node: int
) -> Mac:
  return Mac(
    kind,
    weight_bits=w,
    activation_bits=a,
    accumulator_bytes=total / 8,
    energy_j=joules,
    leakage_w=area_mm2 * leakage_w_mm2(node),
    area_mm2=area_mm2,
    idle_j=joules * energy.value("idle_share"),
  )


def _known_or_array(x: Any) -> Any:
  """A Python float where one is given, else an array of the default float type."""
  return float(x) if isinstance(x, (int, float)) else jnp.asarray(x) * 1.0
