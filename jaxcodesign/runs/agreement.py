"""Processes that train together have one config, one content of data, one program."""

from collections.abc import Mapping
import json
from typing import Any

from jax.experimental import multihost_utils
import numpy as np

from jaxcodesign.data.content import differences


def agree(what: Mapping[str, Any]) -> None:
  """Raises in every process unless all of them give the same.

  Args:
    what: What must be equal for processes to train together, as JSON holds it.

  Raises:
    ValueError: Naming the first process that differs from process 0, and how.
  """
  text = json.dumps(what, sort_keys=True).encode()
  sizes = multihost_utils.process_allgather(np.int32(len(text)))
  padded = np.frombuffer(text.ljust(int(sizes.max())), np.uint8)
  told = [json.loads(bytes(x)) for x in multihost_utils.process_allgather(padded)]
  for number, other in enumerate(told):
    if lines := differences(told[0], other):
      raise ValueError(
        f"process {number} has not what process 0 has; they differ in\n  "
        + "\n  ".join(lines)
        + "\nstart all processes with one command, on the same data"
      )
