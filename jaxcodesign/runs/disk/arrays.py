"""Arrays of a sealed folder: what orbax writes and reads, leaf by leaf, by name."""

from collections.abc import Mapping
import os
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jaxcodesign.runs.disk import sealed

PART = "state"
_NOT_KEPT = ("uint2", "uint4")  # by tensorstore, which orbax writes with


def save_async(folder: pathlib.Path, leaves: Mapping[str, Any]) -> Any:
  """Writes leaves below `folder` in threads; `wait` takes what this returns.

  Returns once they may be donated or deleted.

  Args:
    folder: That `sealed.seal` seals afterwards.
    leaves: From `named`.
  """
  with _plainly():
    return ocp.save_async(str(folder / PART), _filled(leaves))


def wait(response: Any) -> None:
  """Waits for what `save_async` began.

  Raises:
    OSError: If the disk failed.
    Exception: Any other, as it is.
  """
  try:
    response.result()
  except Exception as error:
    # What tensorstore raises, of many types, when the disk is full or away.
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code is None:
      raise
    raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def load(folder: pathlib.Path, record: Mapping[str, Any], like: Any) -> Any:
  """The arrays of a sealed folder, bit for bit, in the structure of `like`.

  Args:
    folder: Whose files were compared with their digests, see `sealed.verify`.
    record: From `sealed.read`.
    like: Tree of arrays or ShapeDtypeStructs: structure, shapes, dtypes and, where it
      has any, shardings.

  Raises:
    ValueError: If its leaves are not those of `like`.
  """
  sealed.match(folder, record["leaves"], like)
  target = named(sealed.targets(like))
  found = ocp.load(str(folder / PART), _filled(target))
  leaves = [found[n] if x.size else _empty(x) for n, x in target.items()]
  return jax.tree.structure(like).unflatten(leaves)


def named(tree: Any) -> dict[str, Any]:
  """Leaves by name, in their order: a flat dict is all that orbax sees.

  Raises:
    ValueError: If two leaves have one name, or a leaf is not kept bit for bit.
  """
  leaves = jax.tree.leaves(tree)
  named = dict(zip(sealed.kinds(tree), leaves))
  if len(named) < len(leaves):
    raise ValueError("two leaves of the state have the same name: rename a key with /")
  for name, x in named.items():
    if not isinstance(x, jax.Array | jax.ShapeDtypeStruct) or x.dtype in _NOT_KEPT:
      raise ValueError(
        f"leaf {name} of the state is a {type(x).__name__} of {x.dtype}, which is not "
        "kept bit for bit: make it a jax array of another dtype"
      )
  return named


def _plainly() -> ocp.Context:
  """Without what costs orbax a third of its time: it takes that from the steps."""
  found = ocp.Context()
  found.array.saving.use_compression = False  # bits of weights are noise
  found.array.saving.enable_write_sharding_file = False  # `restore` is told them
  return found


def _filled(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Those that are not empty, which orbax refuses to write."""
  return {name: x for name, x in leaves.items() if x.size}


def _empty(x: jax.ShapeDtypeStruct) -> jax.Array:
  return jnp.zeros(x.shape, x.dtype, device=x.sharding)
