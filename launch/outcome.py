"""How a launcher ends: what went wrong in one line, and an exit code."""

from collections.abc import Callable, Iterator
import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any


def ready() -> None:
  """Prepares a process for a program that is still being imported.

  Ctrl-C ends it with a line instead of the traceback of whatever is imported. A
  standard stream that is closed is the null device, and one that cannot show a letter
  shows a question mark: a table is no reason to fail after hours of work.
  """
  signal.signal(signal.SIGINT, _stopped)
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    if stream is None:
      setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    elif hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="replace")


def _stopped(number: int, _: FrameType | None) -> None:
  os.write(2, b"stopped before it began\n")
  os._exit(128 + number)


@contextlib.contextmanager
def smoking(smoke: bool, console: Any) -> Iterator[None]:
  """What a smoke run prints stands between two lines that say what it is."""
  from jaxcodesign.figures.findings import SMOKE

  if smoke:
    console.print(SMOKE, highlight=False, soft_wrap=True)
  yield
  if smoke:
    console.print(SMOKE, highlight=False, soft_wrap=True)


def exit_code(prog: str, run: Callable[[], None], stopped: str) -> int:
  """Runs a program.

  Args:
    prog: The name that errors begin with.
    run: The program; raises what it cannot do.
    stopped: What a person who pressed Ctrl-C should know.

  Returns:
    0; 1 after an error of the machine, the input or the numbers, or if the reader of a
    pipe had enough (`| head`); 130 when interrupted.
  """
  if signal.getsignal(signal.SIGINT) is _stopped:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    run()
    sys.stdout.flush()
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except (OSError, ValueError, ArithmeticError) as error:
    print(f"{prog}: {error}", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print(f"{prog}: stopped; {stopped}", file=sys.stderr)
    return 130
  return 0
