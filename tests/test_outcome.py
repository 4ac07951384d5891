"""Programs end with the right code and a line, whatever they were started in."""

import io
import os
import pwd
import signal
import sys

import pytest

from jaxcodesign.data import cache
from jaxcodesign.runs.job import RunConfig
from launch import outcome, train


def say():
  print("12 µs ◆")


@pytest.fixture
def handler():
  """SIGINT's, put back."""
  before = signal.getsignal(signal.SIGINT)
  yield
  signal.signal(signal.SIGINT, before)


def test_a_stream_that_is_closed_or_knows_ascii_alone_is_no_failure(
  handler, monkeypatch
):
  ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
  for stream in (None, ascii_only):
    monkeypatch.setattr(sys, "stdout", stream)
    outcome.ready()
    assert outcome.exit_code("x", say, "") == 0
    if stream is None:
      sys.stdout.close()
  assert ascii_only.buffer.getvalue() == b"12 ?s ?\n"


def test_ctrl_c_before_the_program_is_a_line_and_within_it_too(
  handler, monkeypatch, capfd
):
  codes = []
  monkeypatch.setattr(os, "_exit", codes.append)
  outcome.ready()
  os.kill(os.getpid(), signal.SIGINT)
  assert codes == [130] and capfd.readouterr().err == "stopped before it began\n"
  code = outcome.exit_code("x", lambda: os.kill(os.getpid(), signal.SIGINT), "kept")
  assert code == 130 and capfd.readouterr().err == "x: stopped; kept\n"


def test_a_user_without_a_home_is_told_and_trains_without_a_cache(monkeypatch):
  def nobody(uid):
    raise KeyError(uid)

  monkeypatch.delenv("HOME")
  monkeypatch.setattr(pwd, "getpwuid", nobody)
  with pytest.raises(FileNotFoundError, match=r"~/x is in a home .*: set HOME"):
    cache.expanded("~/x")
  assert str(cache.expanded("/x")) == "/x"
  train.compile_once(RunConfig())
