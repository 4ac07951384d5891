"""A mesh of devices from one config line, and what lies on it where.

Three axes: "data" and "fsdp" both split the batch, "fsdp" splits parameters and
optimizer state as well, "tensor" splits the output features of kernels. All are Auto:
the compiler finds the collectives, and a program is the same on one device and on many.

References: Zhao et al., "PyTorch FSDP", VLDB 2023; Shoeybi et al., "Megatron-LM",
arXiv:1909.08053.
"""

from collections.abc import Sequence
import dataclasses
import fnmatch
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from jaxcodesign import tree

AXES = ("data", "fsdp", "tensor")
_BATCH = ("data", "fsdp")
_SMALL = 2**10  # elements: gathering a bias costs more than keeping it

Spec = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis, and exceptions for leaves.

  Attributes:
    data: Copies of the model; the batch is split over them.
    fsdp: Parts of the parameters; the batch is split over them too.
    tensor: Parts of the output features. One of the three may be -1: what is left.
    rules: (glob, axes): a parameter whose name matches has these mesh axes on its
      axes, ("*/up", (None, "tensor")). The first match decides; "fsdp" is added on a
      free axis where it divides, unless the rule names it.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  rules: tuple[tuple[str, Spec], ...] = ()

  def __post_init__(self):
    sizes = (self.data, self.fsdp, self.tensor)
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
      raise ValueError(
        f"data, fsdp, tensor = {sizes}: sizes are at least 1, one of them may be -1, "
        "what is left"
      )
    for glob, axes in self.rules:
      named = [axis for axis in axes if axis is not None]
      if set(named) - set(AXES) or len(set(named)) < len(named):
        raise ValueError(
          f"rules: {glob!r} has axes {axes}; use each of {AXES} once at most, None for "
          "an axis that is not split"
        )

  def sizes(self, devices: int) -> tuple[int, int, int]:
    """Devices along each axis of a mesh of so many.

    Raises:
      ValueError: If the sizes do not multiply to `devices`.
    """
    asked = (self.data, self.fsdp, self.tensor)
    known = math.prod(size for size in asked if size != -1)
    data, fsdp, tensor = (devices // known if size == -1 else size for size in asked)
    if min(data, fsdp, tensor) < 1 or data * fsdp * tensor != devices:
      what = " x ".join(f"{name}={size}" for name, size in zip(AXES, asked))
      raise ValueError(
        f"mesh {what} does not cover {devices} devices: make the sizes multiply to "
        f"{devices}, or let one be -1"
      )
    return data, fsdp, tensor

  def size(self) -> int:
    """How many devices the mesh has, 0 if that is open."""
    return max(self.data * self.fsdp * self.tensor, 0)

  def make(self, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of `devices`, all there are by default; the nearest share "tensor".

    Raises:
      ValueError: If the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(
      self.sizes(len(devices)), AXES, axis_types=kinds, devices=devices
    )


def parameter_shardings(mesh: Mesh, config: MeshConfig, params: Any) -> Any:
  """How parameters lie on a mesh.

  A rule decides; without one a leaf of at least two axes has "tensor" on the last, its
  output features, if that divides. "fsdp" goes on the largest axis left that it
  divides, the first of equals. Leaves below 1024 elements are replicated.

  Args:
    mesh: From `config.make`.
    config: With the rules.
    params: Tree of arrays or ShapeDtypeStructs.

  Returns:
    A tree of NamedSharding like `params`.

  Raises:
    ValueError: If a rule matches no name, has more axes than its leaf, or names an
      axis whose size does not divide.
  """
  names = tree.names(params)
  for glob, _ in config.rules:
    tree.match(glob, names)
  rules = [(tree.literal(glob, names), spec) for glob, spec in config.rules]
  leaves, structure = jax.tree.flatten(params)
  specs = [_spec(mesh, rules, n, x.shape) for n, x in zip(names, leaves)]
  return structure.unflatten([NamedSharding(mesh, spec) for spec in specs])


def state_shardings(mesh: Mesh, config: MeshConfig, state: Any) -> Any:
  """How the state of a run lies on a mesh.

  Parameters lie as `parameter_shardings` says. A leaf elsewhere whose path ends in the
  path of a parameter, and which has its shape, lies as that parameter does: momenta,
  second moments, masks, averages. All others are replicated: counters, keys, telemetry.

  Args:
    mesh: From `config.make`.
    config: With the rules, on the names of the parameters.
    state: Tree of arrays or ShapeDtypeStructs with an attribute `params`.

  Returns:
    A tree of NamedSharding like `state`.

  Raises:
    ValueError: What `parameter_shardings` raises, or if there is no `params`.
  """
  params = getattr(state, "params", None)
  if params is None:
    raise ValueError(
      f"state of type {type(state).__name__} has no attribute params; use "
      "parameter_shardings for a bare tree of parameters"
    )
  placed = jax.tree.leaves(parameter_shardings(mesh, config, params))
  paths = jax.tree_util.tree_leaves_with_path(params)
  known = {
    (path, leaf.shape): sharding for (path, leaf), sharding in zip(paths, placed)
  }
  everywhere = NamedSharding(mesh, PartitionSpec())

  def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    endings = ((path[start:], leaf.shape) for start in range(len(path) + 1))
    return next((known[end] for end in endings if end in known), everywhere)

  return jax.tree_util.tree_map_with_path(of, state)


def shapes(values: Any, shardings: Any) -> Any:
  """ShapeDtypeStructs of `values` that lie as `shardings` say: nothing is allocated."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), values, shardings
  )


def gathered(params: Any, *, shardings: Any) -> Any:
  """Parameters made whole over "fsdp", for the loss inside a jitted step.

  Says where fully sharded parameters are gathered: once each, before anything is done
  to them. Left to itself the compiler also splits products along a contraction, and
  gathers a weight once for each way it is rounded.

  Args:
    params: Tree of traced arrays.
    shardings: Tree like it, from `parameter_shardings` or `state_shardings`.
  """

  def whole(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    if "fsdp" not in sharding.spec:
      return x
    spec = (None if axis == "fsdp" else axis for axis in sharding.spec)
    kept = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return jax.lax.with_sharding_constraint(x, kept)

  return jax.tree.map(whole, params, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first axis over "data" and "fsdp", everything else whole."""
  return NamedSharding(mesh, PartitionSpec(_BATCH))


@dataclasses.dataclass(frozen=True)
class Part:
  """What a process reads of every batch: part `index` of `count` equal ones."""

  index: int
  count: int


def part(mesh: Mesh) -> Part:
  """The rows of a global batch that the devices of this process hold.

  Processes that share a part, as those along "tensor" do, must give the same rows.

  Raises:
    ValueError: If a process holds rows that are not one equal part.
  """
  shards = math.prod(mesh.shape[axis] for axis in _BATCH)
  held = batch_sharding(mesh).addressable_devices_indices_map((shards,))
  rows = sorted({at[0].indices(shards)[0] for at in held.values() if at})
  own, first = len(rows), rows[0]
  if rows != list(range(first, first + own)) or shards % own or first % own:
    raise ValueError(
      f"process {jax.process_index()} holds parts {rows} of {shards} of a batch, which "
      "are no equal run: make data * fsdp a multiple of the processes, or tensor "
      "divide the devices of each"
    )
  return Part(first // own, shards // own)


def global_batch(mesh: Mesh, local: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """The batch of all processes from the part of this one.

  Args:
    mesh: From `MeshConfig.make`.
    local: Arrays [rows, ...] of this process, the same rows in each.

  Returns:
    Arrays [rows * part(mesh).count, ...] spread as `batch_sharding`.

  Raises:
    ValueError: If the arrays differ in rows, or devices cannot share these equally.
  """
  rows = {name: np.shape(x)[:1] for name, x in local.items()}
  if len(set(rows.values())) != 1 or () in rows.values():
    raise ValueError(f"arrays of a batch need the same first axis, not {rows}")
  whole, shards = next(iter(rows.values()))[0], mesh.shape["data"] * mesh.shape["fsdp"]
  count = part(mesh).count
  if whole * count % shards or not whole:
    raise ValueError(
      f"a batch of {whole * count} does not divide over data * fsdp = {shards}; make "
      f"it a multiple of {shards}, or the mesh smaller"
    )
  sharding = batch_sharding(mesh)
  make = jax.make_array_from_process_local_data
  return {
    name: make(sharding, np.asarray(x), (whole * count, *np.shape(x)[1:]))
    for name, x in local.items()
  }


def place(values: Any, shardings: Any) -> Any:
  """`values`, the same in every process, spread as `shardings` say.

  Arrays may be aliased where they lie right already: donate only one of the two.

  Args:
    values: Tree of arrays, typed PRNG keys among them.
    shardings: Tree of NamedSharding like `values`.
  """
  return jax.tree.map(_place, values, shardings)


def _place(x: Any, sharding: NamedSharding) -> jax.Array:
  if sharding.is_fully_addressable:
    return jax.device_put(x, sharding)
  if tree.is_array(x) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    impl = jax.random.key_impl(x)
    raw = _place(np.asarray(jax.random.key_data(x)), sharding)
    return jax.random.wrap_key_data(raw, impl=impl)
  # Not device_put, which sends every array around to compare it between processes.
  whole = np.asarray(x)
  return jax.make_array_from_callback(whole.shape, sharding, lambda at: whole[at])


def _spec(
  mesh: Mesh,
  rules: Sequence[tuple[str, Spec]],
  name: str,
  shape: tuple[int, ...],
) -> PartitionSpec:
  """Where the axes of the parameter `name` go."""
  given = next((s for glob, s in rules if fnmatch.fnmatchcase(name, glob)), None)
  if given is not None:
    axes = _ruled(mesh, name, shape, given)
  elif math.prod(shape) < _SMALL:
    return PartitionSpec()
  else:
    axes = _ruled(mesh, name, shape, ())
    if len(shape) > 1 and _divides(mesh, "tensor", shape[-1]):
      axes[-1] = "tensor"
  if "fsdp" not in axes and math.prod(shape) >= _SMALL:
    free = (i for i, axis in enumerate(axes) if axis is None)
    fit = [i for i in free if _divides(mesh, "fsdp", shape[i])]
    if fit:
      axes[max(fit, key=lambda i: shape[i])] = "fsdp"
  return PartitionSpec(*axes)


def _ruled(
  mesh: Mesh, name: str, shape: tuple[int, ...], given: Spec
) -> list[str | None]:
  if len(given) > len(shape):
    raise ValueError(f"rules: {given} is longer than the shape {shape} of {name}")
  for size, axis in zip(shape, given):
    if axis is not None and size % mesh.shape[axis]:
      raise ValueError(
        f"rules: {axis}={mesh.shape[axis]} does not divide {size} in the shape "
        f"{shape} of {name}; name another axis or change the mesh"
      )
  return [*given, *[None] * (len(shape) - len(given))]


def _divides(mesh: Mesh, axis: str, size: int) -> bool:
  return mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0
