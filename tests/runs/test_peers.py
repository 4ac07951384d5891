"""Connections between processes, here between threads of one."""

import contextlib
import socket
import threading
import time

import pytest

from jaxcodesign.runs import peers


@pytest.fixture
def ends(monkeypatch):
  """What each ending process would have printed, instead of its end."""
  told: list[str] = []
  monkeypatch.setattr(peers, "end", lambda message, code=1: told.append(message))
  return told


@pytest.fixture
def joined(ends):
  """(count) -> that many, who know each other; connections are cut after the test."""
  everyone: list[peers.Peers] = []

  def make(count):
    everyone.extend(meet(count))
    return everyone

  yield make
  for peer in everyone:
    peer._failed = True
    cut(peer)
  wait(lambda: not listeners())


def listeners():
  return [t for t in threading.enumerate() if t.name.endswith("(_listen)")]


def meet(count):
  made = [peers.Peers(i, count) for i in range(count)]
  invitation = peers.Invitation.decode(made[0].invite(["localhost"]).encode())
  assert all(peer.join(invitation) for peer in made[1:])
  wait(lambda: len(made[0]._connections) == count - 1)
  return made


def wait(until):
  for _ in range(500):
    if until():
      return
    time.sleep(0.01)
  raise AssertionError("it did not happen within 5 s")


def cut(peer):
  """What the kernel does for a process that is killed."""
  for connection in peer._connections.values():
    with contextlib.suppress(OSError):
      connection.shutdown(socket.SHUT_RDWR)


def test_a_killed_process_is_named_to_all_others(ends, joined):
  made = joined(3)
  made[1]._failed = True  # it is dead and hears nothing
  cut(made[1])
  wait(lambda: len(ends) >= 2)
  lost = "since process 1 of 3 was lost: its connection closed"
  assert {f"process 0 ends, {lost}", f"process 2 ends, {lost}"} <= set(ends)


def test_a_failure_is_told_with_its_reason_on_one_line(ends, joined):
  made = joined(3)
  made[2].fail("ValueError: the loss\nis not a number")
  wait(lambda: len(ends) >= 2)
  why = "since process 2 failed: ValueError: the loss is not a number"
  assert set(ends) == {f"process 0 ends, {why}", f"process 1 ends, {why}"}


def test_whoever_is_done_may_go(ends, joined):
  made = joined(3)
  made[1].done()
  cut(made[1])
  made[0].done()
  wait(lambda: 0 in made[2]._done)
  cut(made[0])
  time.sleep(0.1)
  assert not [told for told in ends if told.startswith("process 2")]
  assert not [told for told in ends if "process 1 of" in told]


def test_nobody_comes_in_without_the_token(ends):
  hub = peers.Peers(0, 2)
  invitation = hub.invite(["localhost"])
  wrong = invitation._replace(token="0" * 32)
  where = ("localhost", invitation.port)
  for said in (f"{wrong.token} 1\n", "hello\n", "\xff\n"):
    with socket.create_connection(where) as stranger:
      stranger.sendall(said.encode("latin-1"))
      assert stranger.recv(1) == b""  # put out
  assert not hub._connections
  friend = peers.Peers(1, 2)
  assert friend.join(invitation)
  wait(lambda: hub._connections)
  friend.done()
  cut(friend)
  wait(lambda: not listeners())
  assert ends == [
    "process 1 ends, since process 0 of 2 was lost: its connection closed"
  ]


def test_a_hub_out_of_reach_is_told(ends):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  assert not peers.Peers(1, 2).join(peers.Invitation(["localhost"], port, "x"))


def test_threads_do_not_keep_a_process_alive(joined):
  joined(2)
  assert len(listeners()) == 2 and all(thread.daemon for thread in listeners())
