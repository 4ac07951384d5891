"""Equal configs have one fingerprint, in every process; others have another."""

import dataclasses
import enum
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign import models
from jaxcodesign.runs.fingerprint import fingerprint
from jaxcodesign.training.config import TrainConfig


class Mode(enum.Enum):
  FAST = 1


@dataclasses.dataclass(frozen=True)
class Part:
  value: object = None


def test_fingerprints_agree_where_configs_are_equal():
  same = [
    (Part(1), Part(1.0)),
    (Part((1, 2)), Part((1, 2))),
    (Part({"a": 1, "b": 2}), Part({"b": 2, "a": 1})),
    (Part(np.float32([1, 2])), Part(jnp.float32([1, 2]))),
  ]
  for a, b in same:
    assert fingerprint(a) == fingerprint(b), (a, b)


def test_fingerprints_differ_where_configs_do():
  values = [
    None,
    "None",
    0.1,
    0.1 + 1e-17 + 1e-16,
    1,
    -1,
    float("inf"),
    (1, 2),
    ((1,), 2),
    Mode.FAST,
    Part(),
    pathlib.Path("a"),
    np.float32([1, 2]),
    np.float64([1, 2]),
    np.float32([[1, 2]]),
    np.dtype("f4"),
    jnp.bfloat16,
    models.Cnn(),
    models.Cnn(hidden=64),
    TrainConfig(),
    TrainConfig(seed=1),
    jax.nn.gelu,
  ]
  assert len({fingerprint(Part(v)) for v in values}) == len(values)
  ab, ba = fingerprint("a", "b"), fingerprint("b", "a")
  assert ab != ba and len(ab) == 16


def test_fingerprints_do_not_depend_on_the_process():
  code = (
    "from jaxcodesign import models\n"
    "from jaxcodesign.runs.fingerprint import fingerprint\n"
    "from jaxcodesign.training.config import TrainConfig\n"
    "print(fingerprint(models.Cnn(), TrainConfig(), {'a', }.pop()))"
  )
  env = os.environ | {"PYTHONHASHSEED": "7"}
  run = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env)
  here = fingerprint(models.Cnn(), TrainConfig(), "a")
  assert run.stdout.decode().strip() == here


def test_a_value_without_a_stable_text_is_refused_by_field():
  for value in (lambda: 0, object()):
    with pytest.raises(TypeError, match=r"Part\.value\.1="):
      fingerprint(Part((0, value)))
