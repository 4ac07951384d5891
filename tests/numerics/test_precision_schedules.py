"""Bits by layer, iteration and data, against their definitions; one trace for all."""

import jax
import numpy as np
import pytest

from jaxcodesign.numerics.precision_schedules import (
  Adaptive,
  ByIteration,
  ByLayer,
  Constant,
)

SHARES = (0.0, 0.25, 0.5, 0.75)
RULES = {
  Constant(3): lambda r, i, d: 3,
  ByLayer(): lambda r, i, d: 4 if d >= 0.5 else 2,
  ByLayer(0.25, 3, 5, reverse=True): lambda r, i, d: 3 if d >= 0.25 else 5,
  ByIteration(): lambda r, i, d: 4 if i >= 0.5 else 2,
  ByIteration(reverse=True): lambda r, i, d: 2 if i >= 0.5 else 4,
  Adaptive(): lambda r, i, d: 4 if r > 0.6 - 0.3 * i - 0.3 * d else 2,
  Adaptive(0.7, 0.5, first_high=True): lambda r, i, d: (
    4 if r > 0.7 - 0.5 * i - 0.5 * d or d == 0 else 2
  ),
}


@pytest.mark.parametrize("schedule", RULES, ids=str)
def test_bits_are_those_of_the_rule(schedule):
  traces = []

  @jax.jit
  def bits(ratio, progress, depth):
    traces.append(1)
    return schedule.bits(ratio if schedule.needs_ratio else None, progress, depth)

  for ratio in (0.1, 0.31, 0.52, 0.7):
    for progress in SHARES:
      for depth in SHARES:
        found = bits(np.float32(ratio), np.float32(progress), np.float32(depth))
        assert found.dtype == np.int32
        assert int(found) == RULES[schedule](ratio, progress, depth)
        assert int(found) in schedule.choices
  assert len(traces) == 1


def test_a_tensor_that_is_not_finite_is_low():
  assert int(Adaptive().bits(np.float32("nan"), 1.0, 1.0)) == 2


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: Constant(0), "mantissa=0"),
    (lambda: ByLayer(low=4, high=2), "low=4 has more bits"),
    (lambda: ByIteration(at=1.5), "at=1.5"),
    (lambda: Adaptive(alpha=float("inf")), "alpha=inf"),
    (lambda: Adaptive().bits(None, 0.0, 0.0), "ratio is None"),
  ],
)
def test_what_is_no_schedule_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
