"""The best way to cut a product for an accelerator: legal tilings, and relaxed ones.

`search` finds the optimum of the memory simulator among tiles whose sizes are powers of
two times the array's (and the whole size), in all six orders. It is exact: `loops` has
a bound that no simulation beats, so mappings are simulated from the best bound on until
no bound is better than what was found. All bounds are one vmap; simulations run in
batches, whose loop ends with the longest: sizes and tiles are data, nothing recompiles.

`evaluate` is that bound as a closed form, differentiable by real tile sizes when hot.
`one_fold` is the mapping that SCALE-Sim 3.0.0 has built in.
"""

from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign import tree
from jaxcodesign.hardware.machines.spec import Accelerator, Dataflow
from jaxcodesign.hardware.mapping import loops, memory
from jaxcodesign.hardware.mapping.loops import ORDERS, Leaf, Mapping, Moved, Nest, Order
from jaxcodesign.hardware.simulators.folding import along
from jaxcodesign.numerics.smooth import maximum

Objective = Literal["time", "energy", "edp", "dram"]
_BATCH = 32  # simulations at once
_BUCKET = 4096  # bounds at once are a power of two, at least this: enough for most


class Cost(NamedTuple):
  """What one product costs under one mapping."""

  time_s: jax.Array
  energy_j: jax.Array  # leakage included
  cycles: jax.Array  # of the array's clock, stalls included
  compute_cycles: jax.Array  # of them, those in which the array works
  moved: Moved
  fill: jax.Array  # [3] share of a half of each buffer that a tile needs

  @property
  def edp_js(self) -> jax.Array:
    """Energy-delay product in joule seconds."""
    return self.energy_j * self.time_s


class Found(NamedTuple):
  """The best mapping of a search."""

  mapping: Mapping
  dataflow: Dataflow
  cost: Cost  # as simulated, in float64
  considered: int  # mappings that fit
  simulated: int  # of them, those that the bound did not rule out


def evaluate(
  m: Leaf,
  k: Leaf,
  n: Leaf,
  accelerator: Accelerator,
  mapping: Mapping,
  *,
  latency_s: Leaf = 0.0,
  cycles_per_mac: Leaf | None = None,
) -> Cost:
  """Prices a mapping in closed form: exact bytes, and a bound on the time.

  The time is the largest of three that the simulator never beats, see
  `loops.bound_cycles`; it is exact where one resource is busy throughout.

  Args:
    m: Sizes, likewise k and n. May be traced.
    k: Contraction.
    n: Rows of the right operand.
    accelerator: At temperature 0 all is exact; above, ceilings, maxima and "fits" are
      smooth, so that grad works for every leaf, those of `mapping` included.
    mapping: Tiles may be real numbers and traced.
    latency_s: As for `memory.simulate`.
    cycles_per_mac: As for `memory.simulate`.

  Returns:
    A `Cost` of scalars. A mapping does not fit if an entry of `fill` is above 1 while
    the whole operand does not fit either: its time is infinite at temperature 0. When
    hot it is finite, and a descent must keep `fill` below 1 itself.

  Raises:
    ValueError: If a size is known and below 1, cycles_per_mac is missing, an option is
      out of range, or a capacity is known and the energy of such a buffer is not
      tabulated.
  """
  for name, size in (("m", m), ("k", k), ("n", n)):
    if tree.is_concrete(size) and not np.all(np.asarray(size) >= 1):
      raise ValueError(f"{name}={size}: a size is at least 1")
  step, latency_s = loops.options(accelerator, cycles_per_mac, latency_s)
  a = loops.numbers(accelerator)
  whole = loops.nest(m, k, n, mapping)
  cost = _price(whole, a, step, latency_s)
  illegal = ~jnp.all(loops.fits(whole, a)) & (jnp.asarray(a.temperature) == 0)
  late = lambda x: jnp.where(illegal, jnp.inf, x)
  return cost._replace(
    time_s=late(cost.time_s), energy_j=late(cost.energy_j), cycles=late(cost.cycles)
  )


def search(
  m: int,
  k: int,
  n: int,
  accelerator: Accelerator,
  *,
  objective: Objective = "time",
  dataflows: tuple[Dataflow, ...] = (),
  latency_s: float = 0.0,
  cycles_per_mac: float | None = None,
) -> Found:
  """The mapping of [m, k] x [n, k] that the memory simulator finds best.

  Args:
    m: Rows of the left operand; of a `Gemm` g, g.m: its batch times count products run
      one after the other.
    k: Contraction.
    n: Rows of the right operand.
    accelerator: Leaves must be known.
    objective: "time", "energy", "edp", or "dram" for bytes to and from DRAM. Ties go to
      fewer bytes for "time", to less time for the others. The energy of buffers whose
      capacity is not tabulated is NaN for "time" and "dram".
    dataflows: To choose from; that of the accelerator if empty.
    latency_s: As for `memory.simulate`.
    cycles_per_mac: As for `memory.simulate`.

  Raises:
    ValueError: If a size is below 1, a leaf is traced, an option is out of range or
      does not exist, the smallest tile of a dataflow does not fit, or energy is asked
      for of a buffer whose capacity is not tabulated.
  """
  loops.check_sizes(m, k, n)
  if objective not in get_args(Objective):
    raise ValueError(f"objective={objective!r}: {', '.join(get_args(Objective))} exist")
  for name in loops.BUFFERS if objective in ("energy", "edp") else ():
    getattr(accelerator, name).check(f"Accelerator.{name}")
  for name, leaf in tree.named_leaves(accelerator).items():
    if not tree.is_concrete(leaf):
      raise ValueError(
        f"Accelerator.{name} is traced: a search returns static orders; search outside "
        "of jit, grad and vmap, or price one mapping with `evaluate`"
      )
  found = None
  for dataflow in dataflows or (accelerator.dataflow,):
    machine = dataclasses.replace(accelerator, dataflow=dataflow, temperature=0.0)
    _refuse_small_buffers((m, k, n), machine)
    with jax.enable_x64(True):
      step, latency = loops.options(machine, cycles_per_mac, latency_s)
      found = _better(found, (m, k, n), machine, step, latency, objective)
  if found is None:
    raise ValueError(f"every mapping of {(m, k, n)} that fits has 2^31 tiles or more")
  return found


def simulate(
  m: int,
  k: int,
  n: int,
  accelerator: Accelerator,
  mapping: Mapping,
  *,
  latency_s: float = 0.0,
  cycles_per_mac: float | None = None,
) -> Cost:
  """The cost of one mapping by the memory simulator, in float64; leaves are known.

  Only what `memory.simulate` would find at the end, so sizes and the number of tiles
  are data and nothing recompiles. Arguments and errors are those of `memory.simulate`.
  """
  loops.check(m, k, n, accelerator, mapping)
  count = loops.count(m, k, n, mapping)
  with jax.enable_x64(True):
    step, latency = loops.options(accelerator, cycles_per_mac, latency_s)
    a = loops.numbers(dataclasses.replace(accelerator, temperature=0.0))
    batch = lambda whole: jax.tree.map(lambda x: x[None], whole)
    nest = lambda dtype: batch(loops.nest(m, k, n, mapping, dtype))
    # As many as in a search, which has compiled it.
    many_bounds, _ = _prices(_padded(nest(None)), a, step, latency)
    bounds = jax.tree.map(lambda x: x[:1], jax.device_get(many_bounds))
    exact = nest(jnp.int32)
    many = jnp.full(1, count, jnp.int32)
    cost = _simulated(exact, bounds, many, a, step, latency)
    return jax.tree.map(lambda x: np.asarray(x)[0], cost)


def one_fold(m: int, k: int, n: int, accelerator: Accelerator) -> Mapping:
  """SCALE-Sim's mapping: one fold at a time, those along the rows of the array inside.

  A fold takes its whole time, or, where a buffer is too small for that, as many rows of
  the array times a power of two as fit; these parts then run innermost.

  Raises:
    ValueError: If not even the smallest part fits.
  """
  inside: dict[Dataflow, Order] = {"os": "nmk", "ws": "nkm", "is": "mkn"}
  steps = _ladders((m, k, n), accelerator)
  time = {"os": 1, "ws": 0, "is": 2}[accelerator.dataflow]
  for part in reversed(steps[time]):
    tiles = [part if d == time else step[0] for d, step in enumerate(steps)]
    whole = _mapping(tiles, inside[accelerator.dataflow])
    try:
      loops.check(m, k, n, accelerator, whole)
    except ValueError:
      if part == steps[time][0]:
        raise
    else:
      return whole
  raise AssertionError("a ladder has at least one step")


def _mapping(tiles: Sequence[int], order: Order) -> Mapping:
  m, k, n = tiles
  return Mapping(m, k, n, order)


def _ladders(sizes: tuple[int, int, int], a: Accelerator) -> list[list[int]]:
  """Tiles to try for m, k, n, ascending: the array's size, doubled, and the whole."""
  rows, cols = int(np.ceil(a.rows)), int(np.ceil(a.cols))
  high, wide, time = along(a.dataflow, 0, 1, 2)
  unit = {high: rows, wide: cols, time: rows}
  ladders = []
  for d, size in enumerate(sizes):
    doublings = max(size - 1, 0) // unit[d]
    ladders.append([*(unit[d] << j for j in range(doublings.bit_length())), size])
  return ladders


def _refuse_small_buffers(sizes: tuple[int, int, int], a: Accelerator) -> None:
  smallest = [steps[0] for steps in _ladders(sizes, a)]
  loops.check(*sizes, a, _mapping(smallest, ORDERS[0]))


def _candidates(sizes: tuple[int, int, int], a: Accelerator) -> Nest:
  """All tilings in all orders, [T, 3] in float64."""
  tiles = np.array(list(itertools.product(*_ladders(sizes, a))), np.float64)
  depth = np.array([[o.index(x) for x in "mkn"] for o in ORDERS], np.int32)
  cut, places = np.repeat(tiles, len(ORDERS), 0), np.tile(depth, (len(tiles), 1))
  return Nest(np.broadcast_to(np.array(sizes, np.float64), cut.shape), cut, places)


def _better(
  found: Found | None,
  sizes: tuple[int, int, int],
  machine: Accelerator,
  step: jax.Array,
  latency_s: jax.Array,
  objective: Objective,
) -> Found | None:
  """The better of `found` and the best mapping on `machine`."""
  nests, a = _candidates(sizes, machine), loops.numbers(machine)
  # On the host: a batch is cut from them again and again.
  bounds, legal = jax.device_get(_prices(_padded(nests), a, step, latency_s))
  many = np.prod(np.ceil(nests.sizes / nests.tiles), axis=1)
  first, second = (x[: len(many)] for x in _key(bounds, objective))
  rank = np.lexsort((many, second, first))
  # What no int32 can count would not be simulated in a lifetime either.
  rank = rank[legal[rank] & (many[rank] < 2**31)]
  considered, simulated = len(rank), 0
  if found:
    considered, simulated = considered + found.considered, found.simulated
  best: Any = _key(found.cost, objective) if found else (np.inf, np.inf)
  for start in range(0, len(rank), _BATCH):
    some = rank[start : start + _BATCH]
    if (first[some[0]], second[some[0]]) >= best:
      break
    simulated += len(some)
    some = np.resize(some, _BATCH)  # repeats, so that every batch has one shape
    batch = jax.tree.map(lambda x, some=some: x[some].astype(np.int32), nests)
    bound = jax.tree.map(lambda x, some=some: x[some], bounds)
    cost = _simulated(batch, bound, many[some].astype(np.int32), a, step, latency_s)
    cost = jax.device_get(cost)
    keys = _key(cost, objective)
    i = np.lexsort((many[some], keys[1], keys[0]))[0]
    if (keys[0][i], keys[1][i]) < best:
      best = (keys[0][i], keys[1][i])
      order = ORDERS[some[i] % len(ORDERS)]
      tiles = nests.tiles[some[i]].astype(int).tolist()
      one = jax.tree.map(lambda x, i=i: x[i], cost)
      found = Found(_mapping(tiles, order), machine.dataflow, one, 0, 0)
  return found and found._replace(considered=considered, simulated=simulated)


def _key(cost: Cost, objective: Objective) -> tuple[Any, Any]:
  """What is minimized, and what decides between equals."""
  moved = cost.moved.dram_bytes
  return {
    "time": (cost.time_s, moved),
    "energy": (cost.energy_j, cost.time_s),
    "edp": (cost.edp_js, cost.time_s),
    "dram": (moved, cost.time_s),
  }[objective]


def _padded(nests: Nest) -> Nest:
  """Repeated to a power of two, so that few shapes are compiled."""
  have = len(nests.tiles)
  room = max(_BUCKET, 1 << (have - 1).bit_length())
  return jax.tree.map(lambda x: np.resize(x, (room, 3)), nests)


def _price(whole: Nest, a: Accelerator, step: jax.Array, latency_s: jax.Array) -> Cost:
  compute, moved = loops.totals(whole, a, step)
  bounds = loops.bound_cycles(whole, a, step, latency_s, compute, moved)
  longer = lambda x, y: maximum(x, y, a.temperature)
  cycles = longer(longer(bounds[0], bounds[1]), bounds[2])
  time = cycles / a.clock_hz
  tile = jnp.minimum(whole.tiles, whole.sizes)
  fill = loops.areas(tile) * loops.widths(a) / (loops.capacities(a) / 2)
  joules = loops.energy_j(whole.sizes, a, step, moved, time)
  return Cost(time, joules, cycles, compute, moved, fill)


@jax.jit
def _prices(
  nests: Nest, a: Accelerator, step: jax.Array, latency_s: jax.Array
) -> tuple[Cost, jax.Array]:
  """Bounds on the cost of every nest [T], and whether it fits."""
  a = dataclasses.replace(a, temperature=0.0)
  price = lambda whole: (
    _price(whole, a, step, latency_s),
    jnp.all(loops.fits(whole, a)),
  )
  return jax.vmap(price)(nests)


@jax.jit
def _simulated(
  nests: Nest,
  bounds: Cost,
  many: jax.Array,
  a: Accelerator,
  step: jax.Array,
  latency_s: jax.Array,
) -> Cost:
  """The cost of every nest [B] of `many` tiles by the memory simulator."""
  a = dataclasses.replace(a, temperature=0.0)
  rate, latency = loops.rate(a), latency_s * a.clock_hz
  stay = jax.vmap(lambda whole: loops.stays(whole, a) > 0)(nests)

  def advance(i, states):
    def one(state, whole, stay, last):
      tile, _ = memory.visit(whole, a, step, stay, i)
      following, _ = memory.serve(state, tile, stay, rate, latency)
      return jax.tree.map(lambda x, y: jnp.where(i < last, x, y), following, state)

    return jax.vmap(one)(states, nests, stay, many)

  idle = jax.tree.map(lambda x: jnp.stack([x] * len(many)), memory.idle())
  states = jax.lax.fori_loop(0, jnp.max(many), advance, idle)
  cycles = jax.vmap(lambda state: memory.drain(state, rate)[1])(states)
  time = cycles / a.clock_hz
  watts = a.leakage_w() + a.rows * a.cols * a.mac.idle_j * a.clock_hz
  joules = bounds.energy_j + (time - bounds.time_s) * watts
  return bounds._replace(time_s=time, energy_j=joules, cycles=cycles)
