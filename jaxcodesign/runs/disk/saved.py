"""Trained networks on disk: whole or absent, and never those of another config.

A network is a sealed folder like a checkpoint of a run, whose arrays are the parameters
alone; its metadata are the caller's.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp

from jaxcodesign import tree
from jaxcodesign.data import image_sets
from jaxcodesign.data.cache import expanded
from jaxcodesign.runs.disk import arrays, files, sealed
from jaxcodesign.training.distillation import Teacher, TeacherSource


def save(folder: str | pathlib.Path, params: Any, metadata: Mapping[str, Any]) -> None:
  """Writes a checkpoint, in place of one that is there.

  It is written beside `folder` and renamed: a killed run leaves the old checkpoint, the
  new one or none, and at worst a hidden temporary folder next to it.

  Args:
    folder: Of the checkpoint; the one above it must exist.
    params: Tree of arrays; names of leaves must not repeat.
    metadata: What JSON can hold: strings, finite numbers, lists, dicts. Under
      "fingerprint" it names the config that `restore` compares.

  Raises:
    OSError: if the disk is full or the folder cannot be written, naming the way out.
    ValueError, TypeError: if `metadata` is not JSON.
  """
  folder = expanded(folder).absolute()
  beside = lambda kind: folder.with_name(f".{folder.name}.{os.getpid()}.{kind}")
  temporary, old = beside("new"), beside("old")
  leaves = arrays.named(jax.tree.map(jnp.asarray, params))
  record = {"metadata": dict(metadata), "leaves": sealed.kinds(params)}
  json.dumps(record, allow_nan=False)
  # A killed process may have had the same id, in a container above all.
  shutil.rmtree(temporary, ignore_errors=True)
  try:
    temporary.mkdir()
    size = sum(x.nbytes for x in leaves.values())
    sealed.reserve(temporary / "reserved", size)
    arrays.wait(arrays.save_async(temporary, leaves))
    sealed.seal(temporary, arrays.PART, record)
    sealed.swap(temporary, folder, old)
  except OSError as error:
    raise files.cannot_write(folder, error) from error
  finally:
    for leftover in (temporary, old):
      shutil.rmtree(leftover, ignore_errors=True)


def restore(
  folder: str | pathlib.Path, like: Any, *, fingerprint: str | None = None
) -> tuple[Any, dict[str, Any]] | None:
  """Returns the parameters and the metadata that `save` was given.

  Args:
    folder: Of the checkpoint.
    like: Tree of arrays or ShapeDtypeStructs: the structure, shapes, dtypes and, where
      it has any, shardings to restore to.
    fingerprint: If given, of the config that asks.

  Returns:
    (params, metadata), bit for bit; None if there is no checkpoint or it was saved
    under another fingerprint.

  Raises:
    ValueError: if the checkpoint is damaged, or its leaves are not those of `like`;
      the message names the folder and the way out.
  """
  folder = expanded(folder).absolute()
  if not folder.exists():
    return None
  record = sealed.read(folder)
  if fingerprint is not None and record["metadata"].get("fingerprint") != fingerprint:
    return None
  sealed.verify(folder, arrays.PART, record)
  return arrays.load(folder, record, like), record["metadata"]


@dataclasses.dataclass(frozen=True)
class Checkpoint(TeacherSource):
  """A network that was trained and saved by `save`, as a config names it.

  Attributes:
    folder: Of the checkpoint: runs/NAME/checkpoint of a codesign run.
    model: Description of the network, as it was trained.
  """

  folder: str | pathlib.Path
  model: Any

  def load(self, images: image_sets.Images) -> Teacher:
    like = jax.eval_shape(
      lambda: self.model.init(jax.random.key(0), images.image_shape, images.classes)
    )
    found = restore(self.folder, like)
    if found is None:
      raise FileNotFoundError(
        f"no checkpoint of a teacher in {self.folder}: train one, or name its folder"
      )
    tree.check_finite(found[0], str(self.folder))
    return Teacher(self.model.forward, found[0])

  def digest(self) -> str:
    folder = expanded(self.folder).absolute()
    if not folder.exists():
      raise FileNotFoundError(
        f"no checkpoint in {folder}: train one, or name its folder"
      )
    return sealed.digest(sealed.read(folder))
