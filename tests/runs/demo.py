"""A config of everything that a command line can change, and how tests call it."""

import pytest

from jaxcodesign.runs import command_line

PROG = "python -m launch.codesign"

DEMO = '''
"""A demonstration.

Command: python -m launch.codesign configs/demo.py
"""

import dataclasses
import enum
import pathlib
from typing import Any, Callable, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import models
from jaxcodesign.training.config import TrainConfig


class Mode(enum.Enum):
  FAST = 1
  SLOW = 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
  """A memory.

  Attributes:
    capacity_bytes: What it holds
      at once.
    energy_j: For one byte.
  """

  capacity_bytes: jax.typing.ArrayLike = 1024
  energy_j: float = 1e-12


@dataclasses.dataclass(frozen=True)
class Format:
  """How numbers are written."""


@dataclasses.dataclass(frozen=True)
class Fixed(Format):
  bits: int = 8  # Width, sign included.

  def __post_init__(self):
    if self.bits < 1:
      raise ValueError(f"bits={self.bits} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Terms(Format):
  budget: jax.typing.ArrayLike = 12


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Accelerator:
  rows: jax.Array = dataclasses.field(default_factory=lambda: jnp.float32(16))
  """Rows of elements."""
  memories: tuple[Memory, ...] = (Memory(), Memory(2.0))
  dataflow: Literal["os", "ws"] = dataclasses.field(
    default="os", metadata=dict(static=True)
  )


@dataclasses.dataclass(frozen=True)
class Variant:
  name: str = "float"
  format: Format | None = None


@dataclasses.dataclass(frozen=True)
class Config:
  variants: tuple[Variant, ...] = (Variant(), Variant("terms", Terms()))
  formats: tuple[Format, ...] = (Fixed(), Terms(3))
  accelerator: Accelerator = dataclasses.field(default_factory=Accelerator)
  model: models.Cnn = models.Cnn()
  train: TrainConfig = TrainConfig()
  activation: Callable = jax.nn.relu
  table: Any = dataclasses.field(default_factory=lambda: np.ones(3))
  limit: int | None = None
  share: float = 1
  keep: bool = False
  mode: Mode = Mode.FAST
  folder: pathlib.Path = pathlib.Path("here")


def config():
  return Config()


def smoke():
  return Config(train=TrainConfig(epochs=1))
'''


def parse(*argv):
  return command_line.parse([str(a) for a in argv], prog=PROG)


def refused(capsys, *argv):
  """What `parse` says before it exits with 2."""
  with pytest.raises(SystemExit) as caught:
    parse(*argv)
  out, err = capsys.readouterr()
  assert caught.value.code == 2 and out == ""
  return err
