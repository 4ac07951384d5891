"""A bar on a terminal, one line an epoch elsewhere, and a terminal left as it was."""

import io
import time

import pytest
import rich.console

from jaxcodesign.runs import progress
from jaxcodesign.runs.position import Epoch, Position
from jaxcodesign.runs.progress import StepTold


def drive(shown):
  for i in range(1, 5):
    shown.on_step(StepTold(step=i, steps=8, examples=16, loss=0.5))
  shown.on_epoch(Epoch(1, 0.51234, 0.875, 0.9, 1.25), Position(step=4), 8)


def console(terminal):
  return rich.console.Console(
    file=io.StringIO(), force_terminal=terminal, width=120, _environ={}
  )


def test_without_a_terminal_there_is_one_line_an_epoch():
  quiet = console(terminal=False)
  with progress.bar("training", quiet) as shown:
    drive(shown)
  lines = quiet.file.getvalue().splitlines()
  assert lines == [
    "training; the first step compiles",
    "epoch 1, step 4 of 8: loss 0.512, train 87.5%, test 90.0%, 1.2 s",
  ]


def test_without_a_terminal_nobody_waits_long_for_a_line(monkeypatch):
  quiet, now = console(terminal=False), [0.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  with progress.working(quiet, "reading") as say, progress.bar("t", quiet) as shown:
    for i in range(1, 8):
      now[0] += progress.QUIET_S / 3
      shown.on_step(StepTold(step=i, steps=9, examples=16, loss=0.5))
    say("pricing")
  lines = quiet.file.getvalue().splitlines()
  assert lines[0] == "reading" and lines[2:4] == ["step 4 of 9: loss 0.500", "pricing"]


def test_on_a_terminal_work_is_shown_while_it_lasts():
  loud = console(terminal=True)
  with progress.working(loud, "reading") as say:
    say("pricing")
  assert loud.file.getvalue()


def test_on_a_terminal_the_bar_shows_loss_and_speed():
  loud = console(terminal=True)
  with progress.bar("training", loud) as shown:
    drive(shown)
  text = loud.file.getvalue()
  for part in (
    "training",
    "50%",
    "loss 0.500",
    "examples/s",
    "epoch 1, step 4 of 8: loss 0.512",
  ):
    assert part in text, part


def test_an_exception_passes_and_the_cursor_comes_back():
  loud = console(terminal=True)
  with pytest.raises(FloatingPointError), progress.bar("training", loud) as shown:
    drive(shown)
    raise FloatingPointError
  text = loud.file.getvalue()
  assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0


def test_standard_output_is_the_default(capsys):
  with progress.bar("training") as shown:
    drive(shown)
  assert "\nepoch 1, step 4 of 8: loss" in capsys.readouterr().out
