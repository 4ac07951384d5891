"""Sparse weights on the array: walked in plain Python, simulated, and their slopes."""

import dataclasses
import itertools
import math
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.machines import cells, presets
from jaxcodesign.hardware.machines.counts import Count
from jaxcodesign.hardware.mapping import stored
from jaxcodesign.hardware.mapping.stored import Stored
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.hardware.simulators import bitserial, systolic
from jaxcodesign.numerics import formats
from jaxcodesign.numerics.sparsity import column_combining
from jaxcodesign.numerics.sparsity.patterns import NOfM
from jaxcodesign.programs.precision import Rule
from jaxcodesign.programs.workload import Gemm, VectorOp, Workload

M, K, N = 21, 40, 19  # pixels, columns, outputs
WORK = Workload((Gemm("", "w", 1, M, K, N),))
FAST = dataclasses.replace(presets.int8_45nm().dram, bandwidth_bytes_s=1e30)


class Way(NamedTuple):
  matrix: np.ndarray  # that is multiplied
  stored: Stored
  feeds: list[list[int]]  # by stored column: the columns it selects from
  index_bits: int


def ways():
  """Weights dense, masked, masked 2:4, and with combined columns."""
  rng = np.random.default_rng(0)
  full = rng.integers(1, 100, (N, K)) * rng.choice([-1, 1], (N, K))
  few = np.where(rng.random((N, K)) < 0.2, full, 0)
  few[:, 7] = 0  # in no group
  half = np.where(np.asarray(NOfM(2, 4, axis=1).mask(jnp.asarray(full))), full, 0)
  groups = column_combining.group_columns(few, alpha=8, gamma=0.5)
  pruned = np.asarray(column_combining.prune_conflicts(few, groups))
  packed = column_combining.pack(pruned, groups)
  plain = [[k] for k in range(K)]
  fours = [list(range(k, k + 4)) for k in range(0, K, 4) for _ in range(2)]
  return {
    "dense": Way(full, stored.dense(full), plain, 0),
    "unstructured": Way(few, stored.dense(few), plain, 0),
    "2:4": Way(half, stored.n_of_m(half, 2, 4), fours, 2),
    "combined": Way(pruned, stored.packed(packed), groups.lists(), 3),
  }


WAYS = ways()


def machine(flow, inputs=1, cell=None, rows=6, cols=5, **changes):
  whole = presets.int8_45nm(rows, cols, dataflow=flow)
  cell = cell or whole.mac
  cell = cells.mx(cell, inputs) if inputs > 1 else cell
  return dataclasses.replace(whole, dram=FAST, mac=cell, **changes)


def walk(feeds, flow, rows, cols):
  """Cycles, folds, and values read and written of WORK, fold by fold."""
  sizes = {"os": (M, N), "ws": (len(feeds), N), "is": (len(feeds), M)}[flow]
  cycles = folds = left = right = out = back = 0
  for top, side in itertools.product(
    range(0, sizes[0], rows), range(0, sizes[1], cols)
  ):
    high, wide = min(rows, sizes[0] - top), min(cols, sizes[1] - side)
    folds += 1
    if flow == "os":
      cycles += len(feeds) + 2 * rows + cols - 1
      left += high * sum(len(feed) for feed in feeds)
      right += wide * len(feeds)
      out += high * wide
      continue
    used = feeds[top : top + high]
    time = M if flow == "ws" else N
    cycles += time + 3 * rows + cols - 2
    out += time * wide
    back += time * wide if top else 0
    stays, moves = high * wide, time * sum(len(feed) for feed in used)
    left, right = (left + moves, right + stays) if flow == "ws" else (
      left + stays, right + moves)  # fmt: skip
  return cycles, folds, left, right, out, back


@pytest.mark.parametrize("inputs", [1, 4, 8])
@pytest.mark.parametrize("flow", ["os", "ws", "is"])
@pytest.mark.parametrize("name", WAYS)
def test_every_storage_is_the_walk_over_its_folds(name, flow, inputs):
  """Cycles, reads, writes, bytes and every part of the energy."""
  way, a = WAYS[name], machine(flow, inputs)
  packs = flow != "is" and float(np.asarray(way.stored.inputs)) <= inputs
  feeds = way.feeds if packs else [[k] for k in range(K)]
  cycles, folds, left, right, out, back = walk(feeds, flow, 6, 5)
  found = cost.folded(WORK, a, stored={"w": way.stored})
  assert (found.folds[0], found.cycles[0]) == (folds, cycles)
  assert [float(x[0]) for x in found.edges] == [left, right, out, back]
  report = cost.exact(WORK, a, stored={"w": way.stored})
  busy = M * np.count_nonzero(way.matrix)
  assert report.cycles == cycles
  assert report.utilization == pytest.approx(busy / (30 * cycles), rel=1e-12)
  idle = (30 * cycles - busy) * a.mac.idle_j
  assert report.idle_j == pytest.approx(idle, rel=1e-12)
  assert report.parts_j["mac"] == pytest.approx(busy * a.mac.energy_j + idle, rel=1e-9)
  each = (8 + (way.index_bits if packs else 0)) / 8
  weights = N * len(feeds) * each
  assert report.traffic_bytes == weights
  assert report.parts_j["dram"] == pytest.approx(weights * a.dram.access_j, rel=1e-12)
  moved = M * K, left, weights, right * each, 4 * out, 4 * back, 4 * M * N
  assert report.product_sram_bytes[0] == pytest.approx(sum(moved), rel=1e-12)
  read, write = "read_energy_j", "write_energy_j"
  price = [getattr(buffer, way)() for buffer, way in (
    (a.ifmap, write), (a.ifmap, read), (a.weight, write), (a.weight, read),
    (a.ofmap, write), (a.ofmap, read), (a.ofmap, read))]  # fmt: skip
  joules = sum(x * float(each) for x, each in zip(moved, price))
  assert report.parts_j["sram"] == pytest.approx(joules, rel=1e-6)


@pytest.mark.parametrize("flow", ["os", "ws", "is"])
def test_pruning_without_packing_gains_nothing(flow):
  """The lecture's point: the same cycles, and only those of the array differ."""
  price = lambda name, a: cost.exact(WORK, a, stored={"w": WAYS[name].stored})
  for a in (machine(flow), machine(flow, 8)):
    full, few = price("dense", a), price("unstructured", a)
    assert few.cycles == full.cycles and few.traffic_bytes == full.traffic_bytes
    share = np.mean(WAYS["unstructured"].matrix != 0)
    assert few.utilization == pytest.approx(full.utilization * share, rel=1e-12)
  packed = price("combined", machine(flow, 8))
  plain = price("combined", machine(flow))
  if flow == "is":
    assert packed.cycles == plain.cycles
  else:
    assert packed.cycles < 0.55 * plain.cycles
    assert packed.utilization > 1.8 * plain.utilization


@given(
  sizes=st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(1, 20)),
  array=st.tuples(st.integers(1, 5), st.integers(1, 5)),
  alpha=st.sampled_from([1, 3, 4]),
  flow=st.sampled_from(stored.PACKED_DATAFLOWS),
  accounting=st.sampled_from(["rtl", "scalesim"]),
)
def test_closed_form_is_the_simulated_array(sizes, array, alpha, flow, accounting):
  """Every count of the trace: shapes only, so nothing is compiled."""
  (m, g, n), (rows, cols) = sizes, array
  shape = lambda dtype, *s: jax.ShapeDtypeStruct(s, dtype)
  run = lambda a, w, c: systolic.simulate_packed.__wrapped__(  # pyright: ignore[reportFunctionMemberAccess]
    a, w, c, rows=rows, cols=cols, dataflow=flow, accounting=accounting, toggles=False
  )[1]
  trace = jax.eval_shape(
    run, shape(jnp.int8, m, g, alpha), shape(jnp.int8, n, g), shape(jnp.int8, n, g)
  )
  a = machine(flow, alpha, rows=rows, cols=cols, accounting=accounting)
  work = Workload((Gemm("", "w", 1, m, g * alpha, n),))
  kept = Stored(float(g), 1.0, 2.0, float(alpha), float(g * alpha), (n, g * alpha))
  found = cost.folded(work, a, stored={"w": kept})
  assert found.cycles[0] == trace.cycles
  assert found.folds[0] == trace.busy.shape[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("flow", stored.PACKED_DATAFLOWS)
def test_reads_and_writes_are_those_of_the_trace(flow, seed):
  rng = np.random.default_rng(seed)
  m, g, n, alpha = (int(x) for x in rng.integers((1, 1, 1, 2), (25, 14, 20, 6)))
  rows, cols = (int(x) for x in rng.integers(2, 6, 2))
  a = machine(flow, alpha, rows=rows, cols=cols)
  work = Workload((Gemm("", "w", 1, m, g * alpha, n),))
  kept = Stored(float(g), 1.0, 2.0, float(alpha), float(g * alpha), (n, g * alpha))
  found = cost.folded(work, a, stored={"w": kept})
  options = {"rows": rows, "cols": cols, "dataflow": flow, "toggles": False}
  # Without the product the compiler leaves out the array.
  run = jax.jit(lambda *operands: systolic.simulate_packed(*operands, **options)[1])
  trace = run(
    np.ones((m, g, alpha), np.int8), np.ones((n, g), np.int8),
    rng.integers(0, alpha, (n, g)),
  )  # fmt: skip
  assert found.cycles[0] == trace.cycles
  assert [float(x[0]) for x in found.edges] == [int(x.sum()) for x in trace[1:5]]


@pytest.mark.parametrize("accounting", ["rtl", "scalesim"])
@pytest.mark.parametrize("flow", stored.PACKED_DATAFLOWS)
@pytest.mark.parametrize("name", ["2:4", "combined"])
def test_real_weights_run_on_simulated_cells_as_priced(name, flow, accounting):
  """Results are those of the masked product; cycles, reads and busy cells as priced."""
  way = WAYS[name]
  alpha = max(len(feed) for feed in way.feeds)
  rng = np.random.default_rng(1)
  x = rng.integers(-100, 100, (M, K)).astype(np.int8)
  lanes = np.zeros((M, len(way.feeds), alpha), np.int8)
  values = np.zeros((N, len(way.feeds)), np.int8)
  channel = np.zeros((N, len(way.feeds)), np.int32)
  left = way.matrix.astype(np.int8).copy()
  for g, feed in enumerate(way.feeds):
    lanes[:, g, : len(feed)] = x[:, feed]
    for n in range(N):
      held = [i for i, k in enumerate(feed) if left[n, k]]
      if held:
        channel[n, g], values[n, g] = held[0], left[n, feed[held[0]]]
        left[n, feed[held[0]]] = 0
  assert not left.any()  # every weight has found a cell
  product, trace = systolic.simulate_packed(
    lanes, values, channel, rows=6, cols=5, dataflow=flow, accounting=accounting,
    toggles=accounting == "rtl",
  )  # fmt: skip
  np.testing.assert_array_equal(product, x.astype(int) @ way.matrix.T)
  a = machine(flow, alpha, accounting=accounting)
  found = cost.folded(WORK, a, stored={"w": way.stored})
  assert found.cycles[0] == trace.cycles and found.folds[0] == trace.busy.shape[0]
  sums = [int(x.sum()) for x in trace[1:5]]
  # The trace reads zeros for members that a group does not have.
  sums[0] = sums[0] * sum(map(len, way.feeds)) // (alpha * len(way.feeds))
  assert [float(x[0]) for x in found.edges] == sums
  # The trace calls a cell busy whatever it multiplies.
  report = cost.exact(WORK, a, stored={"w": way.stored})
  share = np.mean(values != 0)
  assert float(np.asarray(way.stored.density)) == pytest.approx(share, rel=1e-12)
  simulated = share * int(trace.busy.sum()) / (30 * trace.cycles)
  assert report.utilization == pytest.approx(simulated, rel=1e-12)


def test_the_bit_serial_array_has_as_many_folds_of_combined_columns():
  """Its fill differs from the model's, an assumption there; 8 cycles a pixel do not."""
  way = WAYS["combined"]
  a = machine("ws", 8, cells.bit_serial(), rows=4, cols=3)
  g, taken, priced = len(way.feeds), [], []
  shape = lambda dtype, *s: jax.ShapeDtypeStruct(s, dtype)

  def run(*operands):
    # Its rows are outputs, its columns stored columns: the model's array turned.
    traces.append(bitserial.simulate.__wrapped__(  # pyright: ignore[reportFunctionMemberAccess]
      *operands, rows=3, cols=4, toggles=False
    )[1])  # fmt: skip
    return traces[-1].busy

  for pixels in (3, 11):
    work = Workload((Gemm("", "w", 1, pixels, K, N),))
    found = cost.folded(work, a, stored={"w": way.stored})
    traces = []
    kinds = shape(jnp.uint8, pixels, g, 8), shape(jnp.int8, N, g), shape(jnp.int8, N, g)
    jax.eval_shape(run, *kinds)  # shapes only: nothing is compiled
    (trace,) = traces
    assert trace.cycles == bitserial.cycles(pixels, g, N, 3, 4)
    assert trace.busy.shape[0] == found.folds[0]
    taken.append(trace.cycles)
    priced.append(float(found.cycles[0]))
  assert taken[1] - taken[0] == priced[1] - priced[0]


@pytest.mark.parametrize("flow", stored.PACKED_DATAFLOWS)
@pytest.mark.parametrize(
  ("cell", "policy", "lanes", "step"),
  [
    (cells.bit_serial(), (), 1, 8),
    (cells.tmac(), (Rule("*", formats.Terms(12.0), formats.Terms(3.0, group=1)),), 1,
     12 / 8 * 3),
    (cells.fmac(), (Rule("*", formats.BlockFloat(4),
                         formats.BlockFloat(2)),), 16, 2),
    (cells.fusible(), (Rule("*", formats.Fixed(4), formats.Fixed(4)),), 4, 1),
  ],
  ids=["bit-serial", "tMAC", "fMAC", "fusible"],
)  # fmt: skip
def test_other_cells_take_their_steps_for_fewer_columns(
  cell, policy, lanes, step, flow
):
  way, a = WAYS["combined"], machine(flow, 8, cell, rows=2, cols=5)
  found = cost.folded(WORK, a, policy=policy, stored={"w": way.stored})
  steps = math.ceil(len(way.feeds) / lanes)
  high, time = (M, steps) if flow == "os" else (steps, M)
  folds = math.ceil(high / 2) * math.ceil(N / 5)
  fill = 2 * 2 + 5 - 1 if flow == "os" else 3 * 2 + 5 - 2
  assert (found.folds[0], found.cycles[0]) == (folds, folds * (time * step + fill))


def test_an_mx_cell_holds_the_inputs_that_it_selects_from():
  plain = presets.int8_45nm().mac
  for cell, width in ((plain, 8), (cells.bit_serial(), 1), (cells.tmac(), 4)):
    eight = cells.mx(cell, 8.0)
    select = Count(registers=7 * width, gates=7 * 3 * width)
    area = select.plus(Count(registers=3.0)).area_mm2(45)
    joules = select.energy_j(45) / 2
    assert eight.inputs == 8
    assert eight.area_mm2 - cell.area_mm2 == pytest.approx(area)
    assert eight.energy_j - cell.energy_j == pytest.approx(joules)
    assert eight.idle_j - cell.idle_j == pytest.approx(0.2 * joules)
  assert cells.mx(plain, 1.0) == plain


def work_of_two():
  gemms = (Gemm("", "w", 1, 21, 40, 19), Gemm("", "v", 2, 33, 64, 7))
  return Workload(gemms, (VectorOp("max", 100, 800),))


@pytest.mark.parametrize("flow", stored.PACKED_DATAFLOWS)
def test_slopes_are_those_of_finite_differences(flow):
  """d log EDP by what is stored, and by the inputs of an MX cell that are not used."""
  at = {"columns": 9.3, "density": 0.6, "index_bits": 3.0, "fetched": 33.0, "mx": 8.5}

  @jax.jit
  @jax.value_and_grad
  def log_edp(leaves):
    kept = Stored(*(leaves[f] for f in ("columns", "density", "index_bits")), 8.0,
                  leaves["fetched"])  # fmt: skip
    a = machine(flow, temperature=0.2)
    a = dataclasses.replace(a, mac=cells.mx(a.mac, leaves["mx"]))
    return jnp.log(cost.evaluate(work_of_two(), a, stored={"w": kept}).edp_js)

  with jax.enable_x64(True):
    at = {field: np.float64(x) for field, x in at.items()}
    slopes = log_edp(at)[1]
    for field, x in at.items():
      near = [float(log_edp(at | {field: x + d})[0]) for d in (1e-5, -1e-5)]
      slope = float(slopes[field])
      assert slope != 0, field
      assert slope == pytest.approx((near[0] - near[1]) / 2e-5, rel=1e-4), field


def test_inputs_decide_and_designs_are_vmapped():
  """A cell of too few inputs runs them unpacked: a step, flat on both sides of it."""
  kept = Stored(10.0, 0.7, 3.0, 8.0, 40.0)
  inputs = jnp.array([1.0, 4.0, 7.9, 8.0, 16.0])

  @jax.jit
  @jax.vmap
  def price(x):
    a = machine("ws", rows=8, cols=8)
    a = dataclasses.replace(a, mac=dataclasses.replace(a.mac, inputs=x))
    return cost.evaluate(WORK, a, stored={"w": kept}).cycles

  found = price(inputs)
  assert found[0] == found[1] == found[2] > 2 * found[3] == 2 * found[4]
  share = lambda x: (
    cost.evaluate(
      WORK, machine("ws", 8), stored={"w": dataclasses.replace(kept, density=x)}
    ).utilization
  )
  used = jax.jit(jax.vmap(share))(jnp.array([0.2, 0.4, 0.8]))
  np.testing.assert_allclose(used / used[0], [1, 2, 4], rtol=1e-6)


@pytest.mark.parametrize("flow", ["os", "ws", "is"])
def test_products_of_all_storages_add_up(flow):
  kept = {name: way.stored for name, way in WAYS.items()}
  gemms = tuple(Gemm("", name, 1, M, K, N) for name in kept)
  a = machine(flow, 8)
  whole = cost.exact(Workload(gemms), a, stored=kept)
  for i, (g, name) in enumerate(zip(gemms, kept)):
    alone = cost.exact(Workload((g,)), a, stored={name: kept[name]})
    assert whole.product_cycles[i] == alone.cycles
    assert whole.product_energy_j[i] == pytest.approx(alone.energy_j, rel=1e-12)
  assert np.all((whole.product_utilization > 0) & (whole.product_utilization <= 1))


@pytest.mark.parametrize("flow", ["os", "ws", "is"])
def test_without_zeros_nothing_changes(flow):
  """A dense matrix that is said to be so costs what it did, to the last bit."""
  a = machine(flow)
  bare = cost.exact(WORK, a)
  for kept in (None, {}, {"w": stored.dense(np.ones((N, K)))}):
    told = cost.exact(WORK, a, stored=kept)
    for x, y in zip(jax.tree.leaves(bare), jax.tree.leaves(told), strict=True):
      np.testing.assert_array_equal(x, y)


def test_stored_weights_fit_where_dense_ones_do_not():
  """An index is paid for: 10 columns of 11 bits against 40 of 8, and a small buffer."""
  small = dataclasses.replace(presets.int8_45nm().weight, capacity_bytes=1024.0)
  work = Workload((Gemm("", "w", 1, 8, 128, 16, count=2, rhs_elements=2048),))
  a = machine("ws", 8, weight=small)
  bytes_of = lambda kept: float(cost.exact(work, a, stored=kept).traffic_bytes)
  assert bytes_of(None) == 2 * 2048  # fetched by each execution
  kept = Stored(32.0, 1.0, 3.0, 8.0, 128.0, (16, 128))
  assert bytes_of({"w": kept}) == 16 * 32 * 11 / 8


def test_combined_columns_are_read_once_each():
  way = WAYS["combined"]
  assert way.stored.columns == len(way.feeds)
  assert way.stored.fetched == sum(map(len, way.feeds)) < K
