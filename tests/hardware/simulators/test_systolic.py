"""The cycle-level array against numpy, closed forms, a loop over cells, SCALE-Sim."""

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.simulators import bitserial, systolic
from jaxcodesign.numerics.sparsity import column_combining

# Integers, in the operations of integers, and floats to a tolerance.

DATAFLOWS = ("os", "ws", "is")
ACCOUNTINGS = ("rtl", "scalesim")
TABLE = Path(__file__).parents[2] / "reference/scalesim.csv"
ROWS = list(csv.DictReader(TABLE.read_text().splitlines()))


def integers(rng, shape, dtype="int8"):
  bounds = np.iinfo(dtype)
  return rng.integers(bounds.min, bounds.max + 1, shape).astype(dtype)


def exact(a, b):
  return a.astype(np.int64) @ b.astype(np.int64).T


MIDDLE = (11, 13, 9, 4, 5)  # no size is a whole number of arrays


def fits(m, k, n, rows, cols, *options):
  """Sizes, array, dataflow, accounting and left type of a product."""
  return pytest.param((m, k, n, rows, cols), *options, id=f"{m}x{k}x{n}-{options[0]}")


@pytest.mark.parametrize(
  ("sizes", "dataflow", "accounting", "dtype"),
  [
    *(fits(*MIDDLE, flow, acc, "int8") for flow in DATAFLOWS for acc in ACCOUNTINGS),
    fits(1, 1, 1, 1, 1, "os", "rtl", "int16"),
    fits(1, 1, 1, 1, 1, "ws", "rtl", "uint8"),
    fits(1, 1, 1, 1, 1, "is", "scalesim", "int16"),
    fits(1, 6, 40, 3, 7, "os", "rtl", "uint8"),
    fits(40, 1, 2, 3, 7, "ws", "scalesim", "int16"),
    fits(3, 40, 1, 1, 6, "is", "rtl", "uint8"),
    fits(9, 5, 7, 8, 6, "os", "scalesim", "int16"),  # one more than the array
    fits(5, 9, 7, 8, 6, "ws", "rtl", "int16"),
    fits(7, 9, 5, 8, 6, "is", "rtl", "int16"),
    fits(16, 37, 21, 8, 7, "os", "rtl", "int16"),  # whole arrays
    fits(30, 32, 36, 16, 12, "ws", "rtl", "uint8"),
    fits(2, 3, 2, 31, 40, "is", "scalesim", "uint8"),  # much room
  ],
)
def test_product_cycles_and_work_are_exact(sizes, dataflow, accounting, dtype):
  m, k, n, rows, cols = sizes
  rng = np.random.default_rng(sum(sizes))
  a, b = integers(rng, (m, k), dtype), integers(rng, (n, k))
  options = {"rows": rows, "cols": cols, "dataflow": dataflow, "accounting": accounting}
  product, trace = systolic.simulate(a, b, **options, toggles=False)
  assert product.dtype == jnp.int32
  np.testing.assert_array_equal(product, exact(a, b))
  assert trace.cycles == systolic.cycles(m, k, n, rows, cols, dataflow, accounting)
  trace = jax.device_get(trace)
  assert int(trace.busy.sum()) == m * k * n
  assert 0 < m * k * n <= trace.cycles * rows * cols  # utilization in (0, 1]
  tall, wide, deep = -(-m // rows), -(-n // cols), -(-k // rows)
  reads = {
    "os": (m * k * wide, n * k * tall, m * n, 0),
    "ws": (m * k * wide, n * k, m * n * deep, m * n * (deep - 1)),
    "is": (m * k, n * k * -(-m // cols), m * n * deep, m * n * (deep - 1)),
  }[dataflow]
  assert tuple(int(x.sum()) for x in trace[1:5]) == reads


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_a_valid_bit_in_every_cell_agrees_with_the_wavefront(dataflow, accounting):
  rng = np.random.default_rng(0)
  m, k, n, rows, cols = MIDDLE
  a, b = integers(rng, (m, k)), integers(rng, (n, k))
  options = {"rows": rows, "cols": cols, "dataflow": dataflow, "accounting": accounting}
  product, followed = systolic.simulate(a, b, **options)
  same, derived = systolic.simulate(a, b, **options, toggles=False)
  np.testing.assert_array_equal(product, same)
  for name in systolic.Trace._fields[:5]:
    np.testing.assert_array_equal(getattr(followed, name), getattr(derived, name))
  assert derived.toggles is None


def loop_over_cells(a, b, rows, cols):
  """Cell by cell: busy and flipped bits of an output-stationary fold, undrained."""
  (m, k), n = a.shape, b.shape[0]
  left, right, sums = (np.zeros((rows, cols), int) for _ in range(3))
  ones = lambda x, width: bin(x & (2**width - 1)).count("1")
  busy, flipped = [], []
  for t in range(k + rows + cols - 2):
    new = left.copy(), right.copy(), sums.copy()
    live = 0
    for i in range(rows):
      for j in range(cols):
        at_left, at_top = t - i, t - j
        x = a[i, at_left] if i < m and 0 <= at_left < k else 0
        y = b[j, at_top] if j < n and 0 <= at_top < k else 0
        new[0][i, j] = left[i, j - 1] if j else x
        new[1][i, j] = right[i - 1, j] if i else y
        new[2][i, j] = sums[i, j] + new[0][i, j] * new[1][i, j]
        live += i < m and j < n and 0 <= t - i - j < k
    counts = []
    for before, after, width in zip((left, right, sums), new, (8, 8, 32)):
      counts.append(
        sum(ones(int(x) ^ int(y), width) for x, y in zip(before.flat, after.flat))
      )
    left, right, sums = new
    busy.append(live)
    flipped.append(counts)
  return sums[:m, :n], busy, np.array(flipped).T


@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 4, 1), (1, 1, 1)])
def test_busy_cells_and_flipped_bits_are_those_of_a_loop_over_cells(shape):
  m, k, n = shape
  rng = np.random.default_rng(1)
  a, b = integers(rng, (m, k)), integers(rng, (n, k))
  product, trace = systolic.simulate(
    a, b, rows=3, cols=4, dataflow="os", accounting="scalesim"
  )
  sums, busy, flipped = loop_over_cells(a.astype(int), b.astype(int), 3, 4)
  np.testing.assert_array_equal(product, sums)
  np.testing.assert_array_equal(trace.busy[0], busy)
  np.testing.assert_array_equal(np.stack(trace.toggles)[:, 0], flipped)


def test_bits_that_flip_while_weights_load_and_results_drain():
  # One cell: each weight bit is loaded once; a drained sum of 6 clears two bits.
  one = lambda x: np.full((1, 1), x, np.int8)
  product, trace = systolic.simulate(one(3), one(2), rows=1, cols=1, dataflow="ws")
  assert product[0, 0] == 6 and trace.cycles == 3 + 1 + 1 - 2
  assert trace.toggles.right.tolist() == [[1, 0, 0]]
  assert trace.toggles.left.tolist() == [[0, 2, 2]]
  product, trace = systolic.simulate(one(3), one(2), rows=1, cols=1, dataflow="os")
  assert product[0, 0] == 6 and trace.cycles == 1 + 2 + 1 - 1
  assert trace.toggles.sums.tolist() == [[2, 2, 0]]
  assert trace.result_writes.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_extreme_sums_wrap_as_a_register_does(dataflow):
  a = np.full((2, 300), -128, np.int8)
  options = {"rows": 8, "cols": 4, "dataflow": dataflow, "toggles": False}
  product, _ = systolic.simulate(a, a, **options)
  assert np.all(np.asarray(product) == 300 * 128 * 128)
  a = np.full((1, 3), 2**15 - 1, np.int16)
  product, _ = systolic.simulate(a, a, **options)
  assert int(product[0, 0]) == (3 * (2**15 - 1) ** 2 + 2**31) % 2**32 - 2**31


def test_narrow_integers_lie_in_bytes_and_numpy_sizes_do_not_wrap():
  a = np.array([[1, -8, 7], [5, -5, 0]])
  narrow = jnp.asarray(a, jnp.int4)
  product, trace = systolic.simulate(narrow, narrow, rows=2, cols=2, dataflow="ws")
  wide, same = systolic.simulate(
    a.astype(np.int8), a.astype(np.int8), rows=2, cols=2, dataflow="ws"
  )
  np.testing.assert_array_equal(product, a @ a.T)
  np.testing.assert_array_equal(product, wide)
  jax.tree.map(np.testing.assert_array_equal, trace, same)
  sizes = [np.int32(x) for x in (200_000, 50_000, 50_000, 8, 8)]
  assert systolic.cycles(*sizes, "os") == 25_000 * 6_250 * (50_000 + 23)


def plain(a, b):
  return jnp.matmul(a, b.T, preferred_element_type=jnp.float32)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_floats_and_their_gradients(dataflow):
  rng = np.random.default_rng(2)
  a, b = (jnp.asarray(rng.normal(size=(9, 22)), jnp.float32) for _ in range(2))

  options = {"rows": 5, "cols": 7, "dataflow": dataflow}

  def run(a, b):
    product, _ = systolic.simulate(a, b, **options, toggles=dataflow == "os")
    return jnp.sum(jnp.sin(product)), product

  def wanted(a, b):
    return jnp.sum(jnp.sin(plain(a, b))), plain(a, b)

  pull = lambda f: jax.jit(jax.grad(f, argnums=(0, 1), has_aux=True))(a, b)
  (slopes, product), (expected, _) = pull(run), pull(wanted)
  np.testing.assert_allclose(product, plain(a, b), rtol=2e-5, atol=2e-5)
  for got, one in zip(slopes, expected):
    np.testing.assert_allclose(got, one, rtol=2e-4, atol=2e-4)
  narrow = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
  product, _ = systolic.simulate(*narrow, **options, toggles=dataflow == "ws")
  np.testing.assert_allclose(product, plain(*narrow), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
@pytest.mark.parametrize("alpha", [1, 3, 8])
def test_packed_cells_multiply_the_input_they_select(alpha, accounting):
  rng = np.random.default_rng(alpha)
  a, values = integers(rng, (13, 11, alpha)), integers(rng, (9, 11))
  channel = rng.integers(0, alpha, (9, 11)).astype(np.int8)
  product, trace = systolic.simulate_packed(
    a, values, channel, rows=4, cols=5, accounting=accounting, toggles=alpha == 3
  )
  dense = np.zeros((9, 11, alpha), int)
  np.put_along_axis(dense, channel[:, :, None].astype(int), values[:, :, None], 2)
  np.testing.assert_array_equal(product, exact(a.reshape(13, -1), dense.reshape(9, -1)))
  assert trace.cycles == systolic.cycles(13, 11, 9, 4, 5, "ws", accounting)
  assert int(trace.left_reads.sum()) == 13 * 11 * alpha * 2


@pytest.mark.parametrize("flow", ["os", "ws"])
def test_packed_cells_of_one_input_are_plain_cells(flow):
  rng = np.random.default_rng(2)
  a, b = integers(rng, (9, 7)), integers(rng, (6, 7))
  options = {"rows": 4, "cols": 5, "dataflow": flow}
  plain = systolic.simulate(a, b, **options)
  packed = systolic.simulate_packed(a[:, :, None], b, np.zeros_like(b), **options)
  jax.tree.map(np.testing.assert_array_equal, packed, plain)


@pytest.mark.parametrize("method", ["dense_first", "pairs"])
def test_a_combined_matrix_is_its_pruned_one_in_fewer_cycles(method):
  rng = np.random.default_rng(5)
  dense = integers(rng, (96, 94)) * (rng.random((96, 94)) < 0.16)
  a = integers(rng, (20, 94))
  groups = column_combining.group_columns(dense, alpha=8, gamma=0.5, method=method)

  pruned = jax.jit(lambda x: column_combining.prune_conflicts(x, groups))(dense)
  packed = column_combining.pack(pruned, groups)
  lanes = np.asarray(jax.jit(lambda x: column_combining.gather(x, groups))(a))
  values, channel = np.asarray(packed.values), np.asarray(packed.channel)
  options = {"rows": 16, "cols": 32}
  product, trace = systolic.simulate_packed(
    lanes, values, channel, **options, toggles=False
  )
  np.testing.assert_array_equal(product, exact(a, np.asarray(pruned)))
  assert trace.cycles == systolic.cycles(20, values.shape[1], 96, 16, 32, "ws")
  assert 6 * trace.cycles <= systolic.cycles(20, 94, 96, 16, 32, "ws")
  bits = np.abs(lanes.astype(int)).astype(np.uint8)
  sums, _ = bitserial.simulate(bits, values, channel, rows=16, cols=16, toggles=False)
  np.testing.assert_array_equal(
    sums, np.abs(a.astype(int)) @ np.asarray(pruned).astype(int).T
  )


def test_batches_are_vmapped_and_sharded():
  rng = np.random.default_rng(3)
  a, b = integers(rng, (8, 6, 10)), integers(rng, (7, 10))
  options = {"rows": 4, "cols": 4, "dataflow": "ws", "toggles": False}
  run = lambda x: systolic.simulate(x, b, **options)[0]
  expected = np.stack([exact(x, b) for x in a])
  np.testing.assert_array_equal(jax.vmap(run)(a), expected)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  spread = jax.NamedSharding(mesh, jax.P("data"))
  product = jax.jit(jax.vmap(run), out_shardings=spread)(jax.device_put(a, spread))
  np.testing.assert_array_equal(product, expected)


def test_closed_form_equals_scale_sim():
  for row in ROWS:
    m, k, n, rows, cols = (int(row[x]) for x in ("M", "K", "N", "rows", "cols"))
    found = systolic.cycles(m, k, n, rows, cols, row["dataflow"], "scalesim")
    assert found == int(row["demand_rows"])
  assert len(ROWS) == 303


@pytest.mark.parametrize(
  ("a", "b", "options", "message"),
  [
    ((3, 4), (3, 5), {}, r"\(3, 4\) and \(3, 5\)"),
    ((3,), (3, 5), {}, r"\[m, k\] and \[n, k\]"),
    ((0, 4), (3, 4), {}, "size of zero"),
    ((3, 4), (3, 4), {"rows": 0}, "0 x 4 cells"),
    ((3, 4), (3, 4), {"dataflow": "rs"}, "'rs' is none of os, ws, is"),
    ((3, 4), (3, 4), {"accounting": "x"}, "'x' is none of scalesim, rtl"),
  ],
)
def test_bad_input_is_refused(a, b, options, message):
  options = {"rows": 4, "cols": 4, "dataflow": "os"} | options
  with pytest.raises(ValueError, match=message):
    systolic.simulate(np.ones(a, np.int8), np.ones(b, np.int8), **options)


def test_mixed_kinds_packed_shapes_and_sizes_are_refused():
  x = np.ones((3, 4), np.int8)
  with pytest.raises(ValueError, match="both integers or both floats"):
    systolic.simulate(x, x.astype(np.float32), rows=4, cols=4, dataflow="os")
  with pytest.raises(ValueError, match="m, g, alpha"):
    systolic.simulate_packed(x, x, x, rows=4, cols=4)
  with pytest.raises(ValueError, match="an integer for each"):
    systolic.simulate_packed(x[:, :, None], x, x[:2], rows=4, cols=4)
  with pytest.raises(ValueError, match='dataflow="is": cells would hold all inputs'):
    systolic.simulate_packed(x[:, :, None], x, x, rows=4, cols=4, dataflow="is")
  for wrong in (0, 2.5):
    with pytest.raises(ValueError, match=f"k={wrong}: a size is an integer"):
      systolic.cycles(3, wrong, 3, 4, 4, "os")
  with jax.enable_x64(True), pytest.raises(ValueError, match="sums have 32 bits"):
    systolic.simulate(
      np.ones((3, 4), np.int64),
      np.ones((3, 4), np.int64),
      rows=4,
      cols=4,
      dataflow="os",
    )
