"""The contract every pruning schedule keeps. Add yours to SCHEDULES."""

import chex
from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.numerics.schedules import Cubic, Iterative, OneShot

SCHEDULES = [
  OneShot(0),
  OneShot(7),
  Cubic(2, 12, events=5),
  Cubic(0, 12, events=1),
  Cubic(3, 7, events=9),  # more events than steps: some fall on one
  Iterative(4, every=3, rounds=3, rate=0.2, decay=0.9),
  Iterative(0, every=1, rounds=12, rate=0.5),
]
RUN = 20
final_densities = st.floats(0, 1, width=32)


def curve(schedule, final):
  """[RUN] densities and events in one trace."""
  chex.clear_trace_counter()
  traced = chex.assert_max_traces(
    lambda s: (schedule(s, final), schedule.is_event(s)), 1
  )
  step = jax.jit(traced)
  densities, events = zip(*(step(jnp.int32(s)) for s in range(RUN)))
  return np.array(densities), np.array(events)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("final", [0.0, 0.3, 1.0])
def test_falls_at_events_alone_from_one_toward_the_final_density(schedule, final):
  density, event = curve(schedule, final)
  first = int(schedule.steps()[0])
  assert density.dtype == np.float32
  assert (density[:first] == 1).all() and (np.diff(density) <= 0).all()
  assert (density >= np.float32(final)).all()
  changes = np.flatnonzero(np.diff(np.concatenate([[np.float32(1)], density])))
  assert set(changes) <= set(np.flatnonzero(event))
  assert final == 1 or first in changes
  assert np.flatnonzero(event).max() == schedule.last
  if not isinstance(schedule, Iterative):
    assert density[schedule.last] == np.float32(final)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_scan_vmap_and_plain_calls_agree(schedule):
  steps = jnp.arange(RUN)
  _, scanned = jax.lax.scan(lambda _, s: (None, schedule(s, 0.2)), None, steps)
  finals = jnp.array([0.2, 0.7])
  many = jax.vmap(lambda f: jax.vmap(lambda s: schedule(s, f))(steps))(finals)
  np.testing.assert_allclose(many[0], scanned, rtol=1e-6)
  for s in (0, schedule.last, RUN - 1):
    np.testing.assert_allclose(many[1, s], schedule(s, 0.7), rtol=1e-6)


@given(final_densities)
def test_no_rounding_keeps_cubic_from_its_end(final):
  schedule = Cubic(0, 10, events=10)
  assert schedule(10, final) == np.float32(final)
  assert schedule(9, final) >= np.float32(final)


def test_cubic_is_the_published_curve_and_its_first_event_prunes():
  # Of the released code: 10 events toward a sparsity of 0.8. There the first one
  # prunes nothing and the last one ends at 0.7936; here the first one is at i = 1.
  density, event = curve(Cubic(0, 10, events=10), 0.2)
  assert np.flatnonzero(event).tolist() == list(range(1, 11))
  wanted = [1 - 0.8 * (1 - (1 - i / 10) ** 3) for i in range(11)]
  np.testing.assert_allclose(density[:11], wanted, rtol=1e-6)
  assert np.isclose(1 - density[9], 0.8 * (1 - 0.1**3)) and density[10] == np.float32(
    0.2
  )
  assert Cubic(100, 200, events=4).steps().tolist() == [125, 150, 175, 200]


def test_iterative_takes_a_decaying_share_of_what_is_left():
  schedule = Iterative(4, every=3, rounds=3, rate=0.2, decay=0.9)
  left, wanted = 1.0, []
  for i in range(3):
    left *= 1 - 0.2 * 0.9**i
    wanted.append(left)
  found = [schedule(s, 0.1) for s in (4, 7, 10)]
  np.testing.assert_allclose(found, wanted, rtol=1e-6)
  assert schedule(10, 0.7) == np.float32(0.7)  # never below
  assert schedule.steps().tolist() == [4, 7, 10] and schedule.last == 10


def test_a_schedule_is_a_value_and_its_times_may_be_epochs():
  assert Cubic(1, 2.5, events=3).scaled(10) == Cubic(10, 25, events=3)
  assert Iterative(0.5, 1, 2, 0.2).scaled(8) == Iterative(4, 8, 2, 0.2)
  assert hash(OneShot(3)) == hash(OneShot(1.5).scaled(2))
  assert repr(OneShot(3)) == "OneShot(at=3)"
  OneShot(3).check(4)


@pytest.mark.parametrize(
  ("use", "message"),
  [
    (lambda: OneShot(-1), "at in OneShot"),
    (lambda: OneShot(float("nan")), "at in OneShot"),
    (lambda: OneShot(2.5).last, r"whole steps; .*\.scaled"),
    (lambda: OneShot(2)(0, 1.5), "density=1.5 is outside"),
    (lambda: OneShot(4).check(4), "step 4, counted from 0, of a run of 4"),
    (lambda: Cubic(5, 5), "begin < end"),
    (lambda: Cubic(5, float("inf")), "end in Cubic"),
    (lambda: Cubic(0, 5, events=0), "events=0"),
    (lambda: Cubic(0, 5, events=-2), "events=-2"),
    (lambda: Iterative(0, 0, 2, 0.5), "every > 0"),
    (lambda: Iterative(0, 2**30, 3, 0.5).last, "below 2\\^31"),
    (lambda: Iterative(0, 1, 0, 0.5), "rounds=0"),
    (lambda: Iterative(0, 1, 2, 0.0), "rate and decay"),
    (lambda: Iterative(0, 1, 2, 0.5, decay=1.5), "rate and decay"),
  ],
)
def test_bad_input(use, message):
  with pytest.raises(ValueError, match=message):
    use()
