"""How a launcher ends: what went wrong in one line, and an exit code."""

from collections.abc import Callable
import os
import sys


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
