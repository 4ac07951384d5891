"""Processes that launchers and tests start: on CPU, with devices of their own."""

import os
import socket


def environment(**more: str) -> dict[str, str]:
  """This process's environment, but for the number of its CPU devices; and `more`."""
  flags = os.environ.get("XLA_FLAGS", "").split()
  kept = " ".join(f for f in flags if "host_platform_device_count" not in f)
  return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": kept} | more


def address() -> str:
  """HOST:PORT of this machine, where nothing listens yet: for a coordinator."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{free.getsockname()[1]}"
