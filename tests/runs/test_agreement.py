"""Processes that have not the same to train are told so, in all of them."""

import json

import numpy as np
import pytest

from jaxcodesign.runs import agreement


def meet(monkeypatch, *told):
  """Has this process meet others that tell `told`, itself the last one."""
  texts = [json.dumps(x, sort_keys=True).encode() for x in told]

  def gather(x):
    if x.ndim == 0:
      return np.array([*map(len, texts), x])
    return np.stack([*(np.frombuffer(t.ljust(len(x)), np.uint8) for t in texts), x])

  monkeypatch.setattr(agreement.multihost_utils, "process_allgather", gather)


def test_equal_configs_agree(monkeypatch):
  meet(monkeypatch, {"config": {"seed": 1}})
  agreement.agree({"config": {"seed": 1}})


def test_the_process_that_differs_is_named_with_the_difference(monkeypatch):
  meet(monkeypatch, {"config": {"seed": 1}}, {"config": {"seed": 1}})
  with pytest.raises(ValueError, match=r"process 2 (.|\n)*config\.seed: 1 -> 1234"):
    agreement.agree({"config": {"seed": 1234}})
