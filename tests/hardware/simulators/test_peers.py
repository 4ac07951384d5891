"""Peers' cycles against the Toronto DNNsim, and their simulators against both."""

import csv
from functools import partial
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware.simulators import peer_scan, peers
from jaxcodesign.hardware.simulators.peers import Tile
from jaxcodesign.numerics.formats import terms

# Integers, in the operations of integers.

REFERENCE = Path(__file__).parents[2] / "reference"
ROWS = [
  row
  for row in csv.DictReader((REFERENCE / "dnnsim.csv").read_text().splitlines())
  if row["type"] == "conv"
]
COLUMNS = {
  "dadiannao": "DaDianNao",
  "stripes": "Stripes",
  "pragmatic": "BitPragmatic",
  "laconic": "Laconic",
}


def operands(layer):
  with np.load(REFERENCE / "dnnsim_operands.npz") as file:
    return file[f"{layer}/activations"][0], file[f"{layer}/weights"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["layer"])
def test_cycles_are_those_of_dnnsim(row):
  options = {"stride": int(row["stride"]), "padding": int(row["pad"])}
  cut = peers.bricks(*operands(row["layer"]), **options)
  for name, column in COLUMNS.items():
    assert peers.cycles(name, cut) == int(row[f"{column}_compute_cycles"]), name


def convolved(x, w, stride, padding):
  x = np.pad(x.astype(int), ((0, 0), (padding, padding), (padding, padding)))
  seen = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(1, 2))
  seen = seen[:, ::stride, ::stride]
  return np.einsum("cyxhw,fchw->yxf", seen, w.astype(int)).reshape(-1, w.shape[0])


small = partial(Tile, lanes=8, windows=5, filters=6)
TILES = {
  "dynamic_stripes": [
    small(signed=signed, trim=trim)
    for signed in (False, True)
    for trim in (False, True)
  ],
  "loom": [
    small(),
    small(bits_per_cycle=3),
    small(dynamic_weights=True),
    small(bits_per_cycle=3, signed=True, dynamic_weights=True),
  ],
  "pragmatic": [
    *(small(shift_bits=b) for b in (None, 0, 1, 2)),
    small(signed=True, shift_bits=1),
    small(run_ahead=1),
    small(run_ahead=2, signed=True, shift_bits=1),
    small(run_ahead=99),
  ],
  "laconic": [
    *(small(encoding=e) for e in terms.ENCODINGS),
    small(signed=True),
  ],
}


def bits_of(values):
  """The highest set bit of any magnitude, counted from 1."""
  return max(abs(v).bit_length() for v in values)


def dynamic_stripes(x, w, tile):
  used = [v for row in x for v in row]
  places = [i for v in used for i in range(16) if abs(v) >> i & 1] or [0]
  low = min(places) if tile.trim else 0
  return max(1, bits_of(used) and bits_of(used) - low + tile.signed)


def loom(x, w, tile):
  needed = max(1, bits_of([v for row in x for v in row]) + tile.signed)
  wide = 8
  if tile.dynamic_weights:
    wide = min(8, bits_of([v for row in w for v in row]) + 1)
  return math.ceil(needed / tile.bits_per_cycle) * wide


def window_cycles(x, tile):
  reach = 99 if tile.shift_bits is None else 1 << tile.shift_bits
  return [max(1, loop_over_lanes(map(abs, row), reach)) for row in x]


def laconic(x, w, tile):
  ones = lambda v: bin(abs(v)).count("1")
  return max(1, *(ones(a) * ones(b) for r in x for f in w for a, b in zip(r, f)))


def clocked(steps, tile):
  """Pragmatic cycle by cycle: windows count down their own steps."""
  left = [list(column) for column in zip(*(window_cycles(x, tile) for x in steps))]
  done, taken = [0] * len(left), [0] * len(steps)
  while (slowest := min(done)) < len(steps):
    taken[slowest] += 1
    for c, column in enumerate(left):
      if done[c] < len(steps) and done[c] <= slowest + tile.run_ahead:
        column[done[c]] -= 1
        done[c] += column[done[c]] == 0
  return taken


def by_hand(name, cut, tile):
  """Cycles [groups, blocks, steps] of plain Python; None where no oracle is."""
  if name == "laconic" and tile.encoding != "binary":
    return None
  x, w = cut.activations.tolist(), cut.weights.tolist()
  if name == "pragmatic":
    return [[clocked(group, tile)] * len(w) for group in x]
  law = {"dynamic_stripes": dynamic_stripes, "loom": loom, "laconic": laconic}[name]
  return [[[law(*s, tile) for s in zip(g, block)] for block in w] for g in x]


@pytest.mark.parametrize(
  ("name", "tile"), [(name, tile) for name in TILES for tile in TILES[name]]
)
def test_simulators_compute_the_product_in_the_cycles_of_the_law(name, tile):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (11, 6, 7)) * (rng.random((11, 6, 7)) < 0.3)
  x[:, :3] >>= 4
  x[:, 3:] &= 252
  x *= rng.choice([-1, 1], x.shape) if tile.signed else 1
  w = rng.integers(-128, 128, (8, 11, 3, 2))
  w[6:] >>= 5
  cut = peers.bricks(x, w, stride=2, padding=1, tile=tile)
  product, cycles = peer_scan.simulate(name, cut)
  expected = convolved(x, w, 2, 1)
  assert cut.pixels == len(expected)
  np.testing.assert_array_equal(product[:, :8], expected)
  np.testing.assert_array_equal(cycles, peers.step_cycles(name, cut))
  oracle = by_hand(name, cut, tile)
  assert oracle is None or cycles.tolist() == oracle


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", peer_scan.SIMULATORS)
def test_ends_of_both_ranges_multiply_exactly(name, signed):
  tile = Tile(lanes=4, windows=4, filters=3, signed=signed, bits_per_cycle=2)
  x = np.array([255, 0, 1, -255 if signed else 128]).repeat(4).reshape(4, 4, 1)
  w = np.array([-128, 127, -1]).repeat(4).reshape(3, 4, 1, 1)
  product, _ = peer_scan.simulate(name, peers.bricks(x, w, tile=tile))
  np.testing.assert_array_equal(product, convolved(x, w, 1, 0))


def test_low_zeros_signs_and_weights_cost_what_the_laws_say():
  x = np.array([8, 24, 40, 0]).reshape(4, 1, 1)  # bits 3 to 5
  w = np.array([3, -2, 1, -4]).reshape(1, 4, 1, 1)
  cycles = lambda name, **options: peers.cycles(
    name, peers.bricks(x, w, tile=Tile(**options))
  )
  assert cycles("dynamic_stripes") == 6
  assert cycles("dynamic_stripes", trim=True) == 3
  assert cycles("dynamic_stripes", signed=True) == 7
  assert cycles("dynamic_stripes", signed=True, trim=True) == 4
  assert cycles("loom") == 6 * 8
  assert cycles("loom", signed=True, bits_per_cycle=2) == 4 * 8
  assert cycles("loom", dynamic_weights=True) == 6 * 4  # 4 has three bits, and the sign
  assert cycles("pragmatic", signed=True) == 2


def test_windows_that_run_ahead_wait_for_no_one_but_the_last():
  each = np.array([[5, 1], [1, 5], [5, 1], [1, 5]], np.int32)
  through = [peers.ahead(each, steps_ahead=r).tolist() for r in (0, 1, 3, 99)]
  # One step ahead: window 1 is through step 1 at 6, step 2 at 7, 3 at 12; window 0 at
  # 5, 6, 11, 12.
  assert through[0] == [5, 5, 5, 5] and through[1] == [5, 1, 5, 1]
  for found in through[2:]:
    assert sum(found) == each.sum(axis=0).max() == 12


def test_a_real_layer_runs_in_value_and_in_cycles():
  x, w = operands("c3")
  cut = peers.bricks(x, w, stride=2)
  product, cycles = peer_scan.simulate("pragmatic", cut)
  np.testing.assert_array_equal(product[:, :48], convolved(x, w, 2, 0))
  assert int(cycles.sum()) == 4522


def loop_over_lanes(lanes, reach):
  """Pragmatic's first stage as the page words it."""
  lanes, cycles = list(lanes), 0
  while any(lanes):
    lowest = [(x & -x).bit_length() - 1 for x in lanes]
    offset = min(bit for bit, x in zip(lowest, lanes) if x)
    lanes = [
      x & x - 1 if x and bit < offset + reach else x for bit, x in zip(lowest, lanes)
    ]
    cycles += 1
  return cycles


@pytest.mark.parametrize("shift_bits", [0, 1, 2, 3])
def test_pragmatic_lanes_wait_for_the_lowest_bit(shift_bits):
  rng = np.random.default_rng(shift_bits)
  lanes = rng.integers(0, 256, (200, 16)) & rng.integers(0, 256, (200, 16))
  got = peers.column_cycles(
    jnp.asarray(lanes, jnp.int32), reach=1 << shift_bits, bits=8
  )
  assert got.tolist() == [loop_over_lanes(x, 1 << shift_bits) for x in lanes.tolist()]
  if shift_bits == 0:
    union = np.bitwise_or.reduce(lanes, axis=1)
    assert got.tolist() == [bin(x).count("1") for x in union.tolist()]
  if shift_bits == 3:
    assert got.tolist() == [max(bin(x).count("1") for x in y) for y in lanes.tolist()]


def test_closed_forms_of_bit_fusion_and_shift_accumulate():
  x, w = np.ones((50, 6, 7), int), np.ones((20, 50, 3, 3), int)
  tile = Tile(lanes=32, filters=16, activation_bits=4, weight_bits=2)
  cut = peers.bricks(x, w, tile=tile)
  # 4 x 5 pixels, 9 positions, ceil(20 / 16) filter blocks, ceil(50 / (32 * 2 * 4)).
  assert peers.cycles("bit_fusion", cut, tile) == 4 * 5 * 9 * 2 * 1
  assert peers.cycles("shift_accumulate", cut, tile) == 4 * 2 * 2 * 18
  with pytest.raises(ValueError, match="powers of two"):
    peers.cycles("shift_accumulate", peers.bricks(x, 3 * w))
  wide = Tile(activation_bits=9)
  with pytest.raises(ValueError, match="not 9 x 8"):
    peers.cycles("bit_fusion", peers.bricks(x, w, tile=wide), wide)


@pytest.mark.parametrize(
  ("x", "w", "message"),
  [
    (np.ones((3, 4)), np.ones((2, 3, 1, 1), int), "integers"),
    (np.ones((3, 4, 4)), np.ones((2, 3, 1, 1), int), "activations are float64"),
    (np.ones((2, 4, 4), int), np.ones((2, 3, 1, 1), int), "2 channels"),
    (-np.ones((3, 4, 4), int), np.ones((2, 3, 1, 1), int), r"0 \.\. 255.*signed=True"),
    (np.full((3, 4, 4), 256), np.ones((2, 3, 1, 1), int), r"0 \.\. 255"),
    (np.ones((3, 4, 4), int), np.full((2, 3, 1, 1), 128), r"-128 \.\. 127"),
    (np.ones((3, 4, 4), int), np.full((2, 3, 1, 1), -129), r"-128 \.\. 127"),
    (np.ones((3, 4, 4), int), np.ones((0, 3, 1, 1), int), "empty"),
    (np.ones((0, 4, 4), int), np.ones((2, 0, 1, 1), int), "empty"),
    (np.ones((3, 4, 4), int), np.ones((2, 3, 5, 5), int), "larger than the image"),
  ],
)
def test_bad_input_is_refused(x, w, message):
  if x.ndim == 2:
    message = "are needed"
  with pytest.raises(ValueError, match=message):
    peers.bricks(x, w)


def test_unknown_names_and_sizes_are_refused():
  cut = peers.bricks(np.ones((3, 4, 4), int), np.ones((2, 3, 1, 1), int))
  with pytest.raises(ValueError, match="'tpu' is none of"):
    peers.cycles("tpu", cut)
  with pytest.raises(ValueError, match="no simulator of 'stripes'"):
    peer_scan.simulate("stripes", cut)
  for wrong in (
    {"lanes": 0}, {"weight_bits": 17}, {"run_ahead": -1}, {"shift_bits": -1},
    {"encoding": "ternary"},
  ):  # fmt: skip
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=rf"Tile\.{name}={value!r}"):
      Tile(**wrong)
  x, w = np.ones((3, 4, 4), int), np.ones((2, 3, 1, 1), int)
  with pytest.raises(ValueError, match="stride=0"):
    peers.bricks(x, w, stride=0)
  with pytest.raises(ValueError, match="padding=-1"):
    peers.bricks(x, w, padding=-1)
  with pytest.raises(ValueError, match=r"-255 \.\. 255"):
    peers.bricks(-256 * x, w, tile=Tile(signed=True))


def test_bricks_keep_to_what_they_were_cut_for():
  x, w = np.ones((3, 4, 4), int), np.ones((2, 3, 1, 1), int)
  cut = peers.bricks(x, w, tile=Tile(weight_bits=4))
  assert peers.cycles("loom", cut) == 4  # its own tile, not the default
  two = Tile(weight_bits=4, bits_per_cycle=2)
  assert peers.cycles("loom", cut, two) == 4
  for run in (peers.cycles, peer_scan.simulate):
    with pytest.raises(ValueError, match=r"Tile\.weight_bits=4 do not suit .*=8"):
      run("loom", cut, Tile())
  signed = peers.bricks(x, w, tile=Tile(signed=True))
  with pytest.raises(ValueError, match="unsigned data"):
    peers.cycles("shift_accumulate", signed)
  with pytest.raises(ValueError, match="not 9 x 8"):
    peers.cycles("bit_fusion", signed)
  wide = Tile(activation_bits=16, weight_bits=16)
  large = peers.bricks(65535 * x, 32767 * w, tile=wide)
  with pytest.raises(ValueError, match="int32 does not"):
    peer_scan.simulate("pragmatic", large)
