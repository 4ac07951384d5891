"""Processes of one run that notice at once when one of them is gone.

Process 0 is the hub that all others hold a connection to. The kernel closes the
connections of a process that is killed, whatever the collective is doing that the
others wait in, so they hear of it in milliseconds; of a machine that falls silent they
hear by TCP keepalive, after half a minute. The hub tells everyone, and everyone ends
with a message that names the process, and exit code 1.
"""

from collections.abc import Iterable
import contextlib
import json
import os
import secrets
import socket
import sys
import threading
from typing import NamedTuple, TextIO

_JOIN_S = 60.0
# After 10 s of silence 4 probes, 5 s apart.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


class Invitation(NamedTuple):
  """Where the hub listens, and what a process must say to be let in."""

  hosts: list[str]
  port: int
  token: str

  def encode(self) -> bytes:
    """As JSON."""
    return json.dumps(self).encode()

  @classmethod
  def decode(cls, text: bytes) -> "Invitation":
    """The reverse of `encode`."""
    return cls(*json.loads(text))


class Peers:
  """The connections of one process.

  Args:
    index: Of this process; 0 is the hub.
    count: Of all processes.
  """

  def __init__(self, index: int, count: int):
    self.index, self.count = index, count
    self._connections: dict[int, socket.socket] = {}
    self._done: set[int] = set()
    self._failed = False
    self._lock = threading.Lock()

  def invite(self, hosts: Iterable[str]) -> Invitation:
    """Opens the hub for a minute, reachable as one of `hosts`."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
    server.settimeout(_JOIN_S)
    token = secrets.token_hex(16)
    _start(self._accept, server, token)
    return Invitation(list(dict.fromkeys(hosts)), server.getsockname()[1], token)

  def join(self, invitation: Invitation) -> bool:
    """Connects to the hub; whether that was possible from here."""
    for host in invitation.hosts:
      with contextlib.suppress(OSError):
        connection = socket.create_connection((host, invitation.port), timeout=5.0)
        self._send(connection, f"{invitation.token} {self.index}")
        self._watch(0, connection, connection.makefile())
        return True
    return False

  def done(self) -> None:
    """Says that this process may go now without being missed."""
    self._tell("done")

  def fail(self, reason: str) -> None:
    """Tells the others why this process ends; what they do no longer matters."""
    self._failed = True
    self._tell(f"lost process {self.index} failed: {reason}")

  def _accept(self, server: socket.socket, token: str) -> None:
    with server, contextlib.suppress(OSError):
      while len(self._connections) < self.count - 1:
        connection, _ = server.accept()
        connection.settimeout(5.0)
        lines = connection.makefile()
        said = _first(lines).split()
        if len(said) == 2 and secrets.compare_digest(said[0], token):
          self._watch(int(said[1]), connection, lines)
        else:
          lines.close()
          connection.close()

  def _watch(self, other: int, connection: socket.socket, lines: TextIO) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
      if hasattr(socket, name):
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    with self._lock:
      self._connections[other] = connection
    _start(self._listen, other, connection, lines)

  def _listen(self, other: int, connection: socket.socket, lines: TextIO) -> None:
    with contextlib.suppress(OSError), connection, lines:
      for line in lines:
        kind, _, told = line.strip().partition(" ")
        if kind == "done":
          self._done.add(other)
        elif kind == "lost":
          self._end(told)
    if other not in self._done:
      self._end(f"process {other} of {self.count} was lost: its connection closed")

  def _end(self, what: str) -> None:
    """Ends this process, and through the hub all others, because of `what`."""
    if self._failed:
      return
    if self.index == 0:
      self._tell(f"lost {what}")
    end(f"process {self.index} ends, since {what}")

  def _tell(self, line: str) -> None:
    with self._lock:
      connections = list(self._connections.values())
    for connection in connections:
      self._send(connection, line)

  def _send(self, connection: socket.socket, line: str) -> None:
    with contextlib.suppress(OSError):  # it is gone, which `_listen` hears
      connection.sendall(f"{' '.join(line.split())}\n".encode())


def end(message: str, code: int = 1) -> None:
  """Ends the process now, whatever its threads wait for."""
  if message:
    print(f"\n{message}", file=sys.stderr)
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(code)


def _first(lines: TextIO) -> str:
  """The first line of whoever calls, "" if it says none."""
  try:
    return lines.readline(200)
  except (OSError, UnicodeDecodeError):
    return ""


def _start(target, *args) -> None:
  threading.Thread(target=target, args=args, daemon=True).start()
