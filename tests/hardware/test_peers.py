"""Peers' cycles against the Toronto DNNsim, and their simulators against both."""

import csv
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.hardware import peer_scan, peers
from jaxcodesign.hardware.peers import Tile
from jaxcodesign.numerics import terms

REFERENCE = Path(__file__).parents[1] / "reference"
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


TILES = {
  "dynamic_stripes": [Tile(lanes=8, windows=5, filters=6)],
  "loom": [
    Tile(lanes=8, windows=5, filters=6),
    Tile(lanes=8, windows=5, filters=6, bits_per_cycle=3),
  ],
  "pragmatic": [
    Tile(lanes=8, windows=5, filters=6, shift_bits=b) for b in (None, 0, 1, 2)
  ],
  "laconic": [Tile(lanes=8, windows=5, filters=6, encoding=e) for e in terms.ENCODINGS],
}


@pytest.mark.parametrize(
  ("name", "tile"), [(name, tile) for name in TILES for tile in TILES[name]]
)
def test_simulators_compute_the_product_in_the_cycles_of_the_law(name, tile):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (11, 6, 7)) * (rng.random((11, 6, 7)) < 0.3)
  x[:, :3] >>= 4
  w = rng.integers(-128, 128, (8, 11, 3, 2))
  cut = peers.bricks(x, w, stride=2, padding=1, tile=tile)
  product, cycles = peer_scan.simulate(name, cut, tile)
  expected = convolved(x, w, 2, 1)
  assert cut.pixels == len(expected)
  np.testing.assert_array_equal(product[:, :8], expected)
  np.testing.assert_array_equal(cycles, peers.step_cycles(name, cut, tile))


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
    (-np.ones((3, 4, 4), int), np.ones((2, 3, 1, 1), int), "not negative"),
    (np.ones((3, 4, 4), int), np.full((2, 3, 1, 1), 129), "8 bits"),
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
  with pytest.raises(ValueError, match=r"Tile.lanes=0"):
    Tile(lanes=0)
