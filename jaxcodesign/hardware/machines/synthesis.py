"""Integer multiply-accumulate cells as published synthesis at 45 nm has them.

The table has cells of fixed width (2, 4, 8 and 16 bits) and Bit Fusion's fusible ones
(4, 8 and 16 bits that split down to 2), each in arrays of n x m cells up to 16. A cell
is cheaper in a larger array, which shares what stands at its edges. Per width,

  log(cost a cell) = c_0 + c_1 / n + c_2 / m + c_3 log2(m)

by least squares. Its points are met within 11 %, shapes left out of it within 15 %.
Between widths costs follow a power law, see `interpolation`. What is larger than 16
cells is taken to cost what those of 16 cells do in the mean.
"""

import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign.hardware.machines import energy
from jaxcodesign.numerics import interpolation

Quantity = Literal["area_mm2", "energy_j", "leakage_w"]
Shape = tuple[int, int]

_FILE = "pe_synthesis_45nm.csv"
_COLUMNS: dict[Quantity, tuple[str, float]] = {
  "area_mm2": ("area_um2_per_pe", 1e-6),
  "energy_j": ("dyn_pJ_per_pe_cycle", 1e-12),
  "leakage_w": ("leak_nW_per_pe", 1e-9),
}
CELLS = 16  # of the largest arrays synthesized
CLOCK_HZ = 500e6


def cost(
  quantity: Quantity, bits: Any, *, fusible: bool = False, array: Shape | None = None
) -> Any:
  """Area, energy of an active cycle or leakage of one cell.

  Args:
    quantity: "area_mm2", "energy_j" or "leakage_w".
    bits: [...] width of the multiplier, 2 to 16 (fusible: 4 to 16); may be traced, and
      gives NaN outside.
    fusible: Splits down to 2-bit multipliers.
    array: Cells (n, m) of the synthesized array around it, at most 16; by default the
      mean over arrays of 16.

  Raises:
    ValueError: If bits are known and outside, or the array was not synthesized.
  """
  at, values = curve(quantity, fusible, array)
  check_bits(bits, fusible)
  return interpolation.power_laws(bits, at, values)


@functools.cache
def curve(
  quantity: Quantity, fusible: bool, array: Shape | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Widths in bits, ascending, and the quantity at each; as for `cost`."""
  if quantity not in get_args(Quantity):
    names = ", ".join(get_args(Quantity))
    raise ValueError(f"quantity={quantity!r} is none of {names}")
  widths = _widths(fusible)
  if array is None:
    return widths, np.array([_mean(quantity, b, fusible) for b in widths])
  check_array(array)
  fits = [_fit(*points(quantity, b, fusible)) for b in widths]
  return widths, np.array([float(np.exp(features(*array) @ c)) for c in fits])


@functools.cache
def points(
  quantity: Quantity, bits: float, fusible: bool
) -> tuple[tuple[Shape, ...], tuple[float, ...]]:
  """Shapes of the arrays synthesized with a cell, and the quantity in each."""
  column, unit = _COLUMNS[quantity]
  rows = [r for r in energy.table(_FILE) if _is(r, bits, fusible)]
  shapes = tuple((int(r["array_n"]), int(r["array_m"])) for r in rows)
  return shapes, tuple(r[column] * unit for r in rows)


def features(n: Any, m: Any) -> np.ndarray:
  """[..., 4] what the law of the module's docstring is linear in."""
  n, m = np.asarray(n, float), np.asarray(m, float)
  return np.stack([np.ones_like(n), 1 / n, 1 / m, np.log2(m)], axis=-1)


def check_array(array: Shape) -> None:
  """Raises a ValueError unless an array of (n, m) cells lies among those made."""
  n, m = array
  if n < 1 or m < 1 or n * m > CELLS:
    raise ValueError(
      f"array={array} is outside what was synthesized, 1 to {CELLS} cells: leave it "
      f"out for the mean over arrays of {CELLS}"
    )


def check_bits(bits: Any, fusible: bool = False) -> None:
  """Raises a ValueError if known bits are outside the widths synthesized."""
  way_out = "a wider multiplier is several passes, a narrower one has a cell of its own"
  interpolation.check_inside("bits", bits, _widths(fusible), way_out)


def share(bits: Any, full_bits: Any) -> jax.Array:
  """Dynamic energy of operands of `bits` in a cell of `full_bits`, as a ratio.

  That of the two cells synthesized for these widths: what the idle bits would have
  switched is taken not to switch. Below 2 bits as at 2, above 16 as at 16.
  """
  at, values = curve("energy_j", False)
  law = lambda b: interpolation.power_laws(
    jnp.clip(jnp.asarray(b, jnp.result_type(float)), at[0], at[-1]), at, values
  )
  return law(bits) / law(full_bits)


def _fit(shapes: tuple[Shape, ...], values: tuple[float, ...]) -> np.ndarray:
  x = features(*np.array(shapes).T)
  return np.linalg.lstsq(x, np.log(values), rcond=None)[0]


def _mean(quantity: Quantity, bits: float, fusible: bool) -> float:
  shapes, values = points(quantity, bits, fusible)
  return float(np.mean([v for (n, m), v in zip(shapes, values) if n * m >= CELLS]))


def _is(row: dict[str, float], bits: float, fusible: bool) -> bool:
  return row["max_bits"] == bits and (row["min_bits"] != bits) == fusible


@functools.cache
def _widths(fusible: bool) -> np.ndarray:
  found = {r["max_bits"] for r in energy.table(_FILE) if _is(r, r["max_bits"], fusible)}
  return np.array(sorted(found))
