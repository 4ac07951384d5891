"""What is stored of real matrices, and what is refused."""

import dataclasses

import numpy as np
import pytest

from jaxcodesign import tree
from jaxcodesign.hardware.machines import cells, presets
from jaxcodesign.hardware.mapping import stored
from jaxcodesign.hardware.mapping.stored import Stored
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.programs.workload import Gemm, Workload

M, K, N = 21, 40, 19  # pixels, columns, outputs


def test_storages_of_real_matrices():
  rng = np.random.default_rng(3)
  batch = rng.integers(1, 9, (3, 5, 8)) * (rng.random((3, 5, 8)) < 0.5)
  assert stored.dense(batch).density == np.mean(batch != 0)
  assert stored.dense(batch).shape == (5, 8)
  one = np.zeros((2, 8), int)
  one[0, 1] = one[0, 2] = one[1, 0] = 7
  found = stored.n_of_m(one, 2, 4)
  assert tree.named_leaves(found) == {
    "columns": 4.0, "density": 3 / 8, "index_bits": 2.0, "inputs": 4.0, "fetched": 8.0
  }  # fmt: skip
  assert stored.n_of_m(np.ones((3, 6)), 1, 1) == stored.dense(np.ones((3, 6)))


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    (lambda: stored.dense(np.ones(3)), r"shape \(3,\): \[\.\.\., rows, columns\]"),
    (lambda: stored.dense(np.zeros((2, 2))), "leave a product of zeros out"),
    (lambda: stored.n_of_m(np.ones((2, 8)), 2, 4),
     "row 0 holds 4 nonzeros in columns 0 to 3, more than n=2"),
    (lambda: stored.n_of_m(np.ones((2, 8)), 2, 3), "n=2, m=3 and 8 columns"),
    (lambda: stored.n_of_m(np.ones((2, 8)), 3, 2), "n=3, m=2"),
    (lambda: Stored(0.0, 0.5, 0.0, 1.0, 8.0), r"Stored\.columns=0\.0 must be above"),
    (lambda: Stored(8.0, 1.5, 0.0, 1.0, 8.0), r"Stored\.density=1\.5 must be in"),
    (lambda: Stored(8.0, 0.5, -1.0, 1.0, 8.0), r"Stored\.index_bits=-1\.0"),
    (lambda: Stored(8.0, 0.5, 0.0, 0.5, 8.0), r"Stored\.inputs=0\.5 must be"),
    (lambda: Stored(8.0, 0.5, 0.0, 1.0, 0.0), r"Stored\.fetched=0\.0 must be"),
    (lambda: cells.mx(cells.mx(cells.parallel(), 2), 2), "selects among 2.0 inputs al"),
    (lambda: dataclasses.replace(cells.parallel(), inputs=0.5), r"Mac\.inputs=0\.5"),
  ],
)  # fmt: skip
def test_impossible_storages_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    wrong()


@pytest.mark.parametrize(
  ("kept", "message"),
  [
    ({"x/kernel": Stored(4.0, 1.0, 0.0, 1.0, 4.0)},
     "stored names no weight of the workload: .*nearest: conv/kernel"),
    ({"conv/kernel": stored.dense(np.ones((K, N)))},
     "conv/kernel: the stored matrix is 40 x 19, .* n=19 .* k=40 columns; transpose"),
    ({"conv/kernel": stored.dense(np.ones((N, 4)))}, "store its own"),
    ({"conv/kernel": Stored(41.0, 1.0, 0.0, 1.0, 41.0)}, "41.0 columns are stored"),
  ],
)  # fmt: skip
@pytest.mark.parametrize("price", [cost.evaluate, cost.exact, cost.folded])
def test_storages_of_other_products_are_refused(price, kept, message):
  work = Workload((Gemm("", "conv/kernel", 1, M, K, N), Gemm("", "", 1, 3, 4, 5)))
  with pytest.raises(ValueError, match=message):
    price(work, presets.int8_45nm(6, 5, dataflow="ws"), stored=kept)


def test_backward_products_are_refused():
  back = Gemm("", "w", 1, M, K, N, role="input_gradient")
  with pytest.raises(ValueError, match="w: a product of role input_gradient contracts"):
    cost.evaluate(
      Workload((back,)),
      presets.int8_45nm(6, 5, dataflow="ws"),
      stored={"w": stored.dense(np.ones((N, K)))},
    )
