"""Cycles of products that are cut into folds, each of which fills the array once."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxcodesign.hardware.machines.spec import Accelerator
from jaxcodesign.hardware.mapping.steps import covering
from jaxcodesign.hardware.simulators.folding import along, fill
from jaxcodesign.numerics.smooth import ceil


def fold_cycles(
  a: Accelerator, m: Any, k: Any, n: Any, step: Any, lanes: Any = 1
) -> jax.Array:
  """Cycles of all folds of products [m, k] x [n, k].

  Args:
    a: Its rows R, cols C, dataflow, accounting and temperature count.
    m: [...] sizes, likewise k and n.
    k: Contraction.
    n: Columns of the result.
    step: Cycles of one step of a cell, [...], see `steps`.
    lanes: Multiply-accumulates of a step: the contraction is ceil(k / lanes) steps.

  `folding` has what a fold takes beyond its steps of time, in both accountings.
  Both were measured on bit-parallel cells. That a serial cell passes operands on in one
  cycle, and so fills and drains in as many, is an assumption.
  """
  high, wide, time = along(a.dataflow, m, covering(k, lanes), n)
  # In floating point: sums of small integers overflow.
  rows, cols = (jnp.asarray(x, jnp.result_type(float)) for x in (a.rows, a.cols))
  folds = ceil(high / rows, a.temperature) * ceil(wide / cols, a.temperature)
  return folds * (time * step + fill(a.dataflow, a.accounting, rows, cols))
