"""A signal is a request that the loop hears of between two steps."""

import os
import signal
import threading

import pytest

from jaxcodesign.runs.signals import Interruption
from tests.runs import workers


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_sets_a_flag_and_handlers_come_back(name):
  number = getattr(signal, name)
  before = signal.getsignal(number)
  with Interruption() as signals:
    assert signals.requested is None and signals.agreed(1) is None
    os.kill(os.getpid(), number)
    assert signals.requested == signals.agreed(2) == name
  assert signal.getsignal(number) is before
  assert signals.requested == name  # for whoever asks after the loop


def test_the_second_interrupt_is_one():
  # A shell has what it starts in the background ignore interrupts.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with Interruption() as signals:
      os.kill(os.getpid(), signal.SIGINT)
      assert signals.requested == "SIGINT"
      with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        signal.sigtimedwait([], 0.1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  finally:
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_the_one_that_is_told():
  with Interruption() as signals:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.requested == "SIGTERM"


def test_handlers_come_back_after_an_error():
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(ZeroDivisionError), Interruption():
    raise ZeroDivisionError
  assert signal.getsignal(signal.SIGTERM) is before


def test_off_the_main_thread_it_does_nothing():
  found = []

  def work():
    with Interruption() as signals:
      found.append((signals.requested, signal.getsignal(signal.SIGTERM)))

  before = signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert found == [(None, before)]


def test_every_is_a_count():
  with pytest.raises(ValueError, match="every=0"):
    Interruption(every=0)


PROCESS = """
import os, signal, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
index = int(sys.argv[2])
jax.distributed.initialize(sys.argv[1], 2, index)
from jaxcodesign.runs.signals import Interruption
with Interruption(every=4) as signals:
  for step in range(1, 40):
    if index == 1 and step == 6:
      os.kill(os.getpid(), signal.SIGTERM)
      assert signals.requested is None
    if signals.agreed(step):
      break
print(step, signals.requested, flush=True)
jax.distributed.shutdown()
"""


def test_processes_agree_on_the_step():
  told = [run.communicate(timeout=60) for run in workers.pair(PROCESS)]
  assert [out.split()[-2:] for out, _ in told] == [["8", "SIGTERM"]] * 2, told
