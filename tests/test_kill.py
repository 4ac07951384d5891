"""kill -9 in the middle of a run, three times: it ends as if undisturbed."""

from launch.benchmark_faults import faults


def test_a_killed_run_ends_as_one_that_was_not():
  (found, *_) = faults(kills=3)
  assert found.value == 0
