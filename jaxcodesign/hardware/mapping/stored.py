"""How sparse weights lie in memory and run on the array: what pruning pays out.

A matrix [n, k], n outputs, is stored in some columns, a weight a row in each:

  unstructured   its k columns, zeros included: a plain array executes them all
  n:m            k n / m columns; each weight has an index into its m neighbours
  combined       a column a group of at most alpha, an index into its members

An array whose cells select among as many inputs (`Mac.inputs`) executes the stored
columns instead of k. Any other executes the matrix unpacked, k columns with as many
nonzeros, and stores it so: unstructured and packed weights then gain no cycle.

  ws   a row of cells is a stored column, its inputs side by side; weights and indices
       stay. `systolic.simulate_packed` and `bitserial.simulate` run it.
  os   a step of time is a stored column; a weight moves with its index.
       `systolic.simulate_packed` runs it.
  is   inputs stay, so a cell would hold all of them: not built, runs unpacked.

A term-serial cell takes the terms of its policy for each stored weight: a group of 8
that share a budget are 8 packed ones. A cell of several lanes takes as many stored
columns a step, each lane with a selector of its own. The last group or step may be
incomplete.

Reference: Kung, McDanel, Zhang. "Packing Sparse Convolutional Neural Networks for
Efficient Systolic Array Implementations: Column Combining Under Joint Optimization",
ASPLOS 2019.
"""

from collections.abc import Mapping
import dataclasses
import glob
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.hardware.machines.spec import Accelerator, Leaf
from jaxcodesign.hardware.mapping import dataflow
from jaxcodesign.numerics.sparsity.column_groups import concrete
from jaxcodesign.numerics.sparsity.packed_columns import PackedColumns
from jaxcodesign.programs.workload import Gemm, Workload

# Where cells may select among their inputs.
PACKED_DATAFLOWS = ("os", "ws")


@tree.pytree
class Stored:
  """The weights of a product [m, k] x [n, k], as an array stores and executes them.

  Attributes:
    columns: Of the stored matrix: steps of the contraction, at most k.
    density: Share of the n columns stored weights that is not zero, above 0.
    index_bits: Beside each of them in memory.
    inputs: Columns of the matrix that a stored weight is selected from; 1 is plain.
    fetched: Values of a row of the left operand that a pass over the stored columns
      reads from its buffer.
    shape: (n, k) of the matrix, to be compared with the product's; None compares none.

  Raises:
    ValueError: When made with a number that is known and impossible.
  """

  columns: Leaf
  density: Leaf
  index_bits: Leaf
  inputs: Leaf
  fetched: Leaf
  shape: tuple[int, int] | None = tree.static(default=None)

  def __post_init__(self):
    for name, holds, wanted in (
      ("columns", lambda x: x > 0, "above 0: leave a product of zeros out"),
      (
        "density",
        lambda x: (x > 0) & (x <= 1),
        "in (0, 1]: leave a product of zeros out",
      ),
      ("index_bits", lambda x: x >= 0, "at least 0"),
      ("inputs", lambda x: x >= 1, "at least 1"),
      ("fetched", lambda x: x > 0, "above 0"),
    ):
      leaf = getattr(self, name)
      if tree.is_concrete(leaf) and not np.all(holds(np.asarray(leaf))):
        raise ValueError(f"Stored.{name}={leaf} must be {wanted}")


def dense(matrix: Any) -> Stored:
  """A matrix with all its columns, masked or not: the zeros are stored and executed.

  Args:
    matrix: [..., rows, columns], not traced. Products of a batch or a scan, in the
      leading axes, are stored alike and have the mean density.

  Raises:
    TypeError: If `matrix` is traced.
    ValueError: If it has less than two axes or no nonzero.
  """
  full = _matrix(matrix)
  shape = full.shape[-2:]
  columns = float(shape[1])
  return Stored(columns, float(np.mean(full != 0)), 0.0, 1.0, columns, shape)


def n_of_m(matrix: Any, n: int, m: int) -> Stored:
  """A matrix with at most n nonzeros in each m neighbours of a row, as `sparsity.NOfM`.

  Each of the n stored columns of a group is fed its m inputs, as in the simulators:
  `fetched` is n times the columns of groups that hold a nonzero. With a register at the
  edge that keeps them for the next, it is these columns once: replace it.

  Args:
    matrix: [..., rows, columns], not traced, as for `dense`.
    n: Weights stored of each group, as many in empty ones.
    m: Columns of a group.

  Raises:
    TypeError: If `matrix` is traced.
    ValueError: As `dense`, if m does not divide the columns or is below n, n is below
      1, or a group holds more than n nonzeros.
  """
  full = _matrix(matrix)
  shape = full.shape[-2:]
  if not 1 <= n <= m or shape[1] % m:
    raise ValueError(
      f"n={n}, m={m} and {shape[1]} columns: 1 <= n <= m is needed, and m divides the "
      "columns"
    )
  held = np.count_nonzero(full.reshape(-1, shape[1] // m, m), axis=2)
  if held.max() > n:
    row, group = np.argwhere(held > n)[0]
    raise ValueError(
      f"row {row} holds {held[row, group]} nonzeros in columns {group * m} to "
      f"{group * m + m - 1}, more than n={n}: apply NOfM's mask along the last axis"
    )
  used = held.reshape(*full.shape[:-1], -1).any(axis=-2)
  return Stored(
    columns=float(shape[1] // m * n),
    density=float(held.sum() / (held.size * n)),
    index_bits=float((m - 1).bit_length()),
    inputs=float(m),
    fetched=float(used.sum(axis=-1).mean()) * m * n,
    shape=shape,
  )


def packed(matrix: PackedColumns) -> Stored:
  """A column-combined matrix; every member of a group is read.

  Raises:
    TypeError: If it is traced.
    ValueError: If it has no nonzero.
  """
  values = _matrix(matrix.values)
  members = concrete(matrix.groups.members, "groups")
  return Stored(
    columns=float(matrix.groups.count),
    density=float(np.mean(values != 0)),
    index_bits=float(matrix.index_bits),
    inputs=float(matrix.groups.alpha),
    fetched=float(np.sum(members >= 0)),
    shape=(values.shape[0], matrix.groups.columns),
  )


class Executed(NamedTuple):
  """What the array runs of each product.

  Attributes:
    sizes: Their k is the columns that are executed.
    density: Share of the executed weights that is not zero, [L].
    index_bits: Beside each stored weight, [L].
  """

  sizes: dataflow.Sizes
  density: Any
  index_bits: Any


def executed(
  workload: Workload, a: Accelerator, stored: Mapping[str, Stored]
) -> Executed:
  """Products with their weights packed where `a` has the cells and dataflow for it.

  Args:
    workload: Its products.
    a: Its dataflow and `mac.inputs` count, which may be traced.
    stored: By `Gemm.rhs`; leaves may be traced or batched by vmap.

  Raises:
    ValueError: If a key names no product or one of a backward pass, a matrix has
      another shape than its product, or more columns are stored than the product has.
  """
  s = dataflow.sizes(workload)
  if not stored:
    return Executed(s, 1.0, 0.0)
  names = {g.rhs for g in workload.gemms if g.rhs}
  for key in stored:
    if key not in names:
      _refuse(key, names)
  rows = []
  for g in workload.gemms:
    one = stored.get(g.rhs)
    if one is not None:
      _check(g, one)
    rows.append(one or Stored(g.k, 1.0, 0.0, 1.0, g.k))
  number = lambda x: jnp.asarray(x, jnp.result_type(float))
  columns, density, index_bits, inputs, fetched = (
    jnp.stack([number(x) for x in leaves])
    for leaves in zip(*(jax.tree.leaves(one) for one in rows))
  )
  widest = a.mac.inputs if a.dataflow in PACKED_DATAFLOWS else 1.0
  fits = inputs <= widest
  k = jnp.where(fits, columns, s.k)
  run = dataclasses.replace(
    s,
    k=k,
    rhs_elements=s.rhs_elements * (k / s.k),
    fetched=jnp.where(fits, fetched, s.k),
  )
  return Executed(
    run,
    jnp.where(fits, density, density * columns / s.k),
    jnp.where(fits, index_bits, 0.0),
  )


def _matrix(matrix: Any) -> np.ndarray:
  found = concrete(matrix, "matrix")
  if found.ndim < 2 or not np.count_nonzero(found):
    raise ValueError(
      f"matrix of shape {found.shape}: [..., rows, columns] with a nonzero is needed; "
      "leave a product of zeros out of the workload"
    )
  return found


def _refuse(key: str, names: set[str]) -> None:
  """Raises a ValueError with the weights of nearest name."""
  try:
    tree.match(glob.escape(key), sorted(names))
  except ValueError as error:
    raise ValueError(f"stored names no weight of the workload: {error}") from None


def _check(g: Gemm, one: Stored) -> None:
  """Refuses weights that cannot be those of the product."""
  if g.role not in ("forward", "recompute"):
    raise ValueError(
      f"{g.name}: a product of role {g.role} contracts over other columns than those "
      "stored; price the forward pass alone"
    )
  if one.shape is not None and one.shape != (g.n, g.k):
    way = "transpose it" if one.shape == (g.k, g.n) else "store its own"
    raise ValueError(
      f"{g.name}: the stored matrix is {one.shape[0]} x {one.shape[1]}, and the "
      f"product has n={g.n} outputs and k={g.k} columns; {way}"
    )
  if tree.is_concrete(one.columns) and np.any(np.asarray(one.columns) > g.k):
    raise ValueError(
      f"{g.name}: {one.columns} columns are stored, and the product has k={g.k}"
    )
