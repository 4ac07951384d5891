"""Time and energy to accuracy: first evaluation at the target, times the price."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from jaxcodesign.experiments import to_accuracy
from jaxcodesign.experiments.to_accuracy import Price, summarize

CURVES = {
  "FP32": {0: [(10, 0.5), (20, 0.8), (30, 0.9)], 1: [(10, 0.6), (20, 0.9), (30, 0.7)]},
  "LowBFP": {0: [(10, 0.3), (20, math.nan), (30, 0.6)], 1: [(10, 0.9), (20, 0.1)]},
  "FAST": {0: [(10, 0.4), (25, 0.8)], 1: [(10, 0.4), (25, 0.85)]},
}
FAST = Price(time_s=[1.0, 2.0], energy_j=[10.0, 30.0], until=[20, 40])
PRICES = {
  "FP32": Price(4.0, 100.0),
  "LowBFP": Price(0.5, 1.0),
  "FAST": {0: FAST, 1: Price(2.0, 20.0)},
}


def test_rows_are_the_first_evaluation_at_the_target():
  rows = to_accuracy.to_accuracy(CURVES, PRICES, 0.8)
  assert rows == (
    ("FP32", 0, 20, 80.0, 2000.0, 0.9),
    ("FP32", 1, 20, 80.0, 2000.0, 0.9),
    ("LowBFP", 0, None, None, None, 0.6),
    ("LowBFP", 1, 10, 5.0, 10.0, 0.9),
    ("FAST", 0, 25, 20 * 1.0 + 5 * 2.0, 20 * 10.0 + 5 * 30.0, 0.8),
    ("FAST", 1, 25, 50.0, 500.0, 0.85),
  )


def test_summaries_are_means_over_seeds_and_ratios():
  high, low, fast = summarize(to_accuracy.to_accuracy(CURVES, PRICES, 0.8))
  assert (fast.iterations, fast.time_s, fast.energy_j) == (
    (25, 0), (40.0, 10.0), (425.0, 75.0)
  )  # fmt: skip
  assert fast.best == (pytest.approx(0.825), pytest.approx(0.025))
  assert fast.time_over == {"FAST": 1, "FP32": 0.5}
  assert high.energy_over == {"FAST": 2000 / 425, "FP32": 1}
  # A mean over those that got there would reward giving up.
  assert (low.seeds, low.reached, low.time_s, low.iterations) == (2, 1, None, None)
  assert low.time_over == {"FAST": None, "FP32": None}
  (alone,) = summarize(
    to_accuracy.to_accuracy({"FP32": CURVES["FP32"]}, PRICES, 0.9), ("FAST",)
  )
  assert alone.iterations == (25, 5) and alone.time_over == {"FAST": None}


def test_a_price_in_stretches_is_the_sum_of_its_iterations():
  rng = np.random.default_rng(0)
  each = rng.uniform(1, 2, (2, 30))
  price = Price(*each, until=np.arange(1, 31))
  for done in (0, 1, 7, 30):
    np.testing.assert_allclose(price.spent([done])[:, 0], each[:, :done].sum(1))
  same = Price(np.full(3, 2.0), np.full(3, 5.0), [1, 10, 30])
  done = np.array([0, 3, 30])
  np.testing.assert_allclose(same.spent(done), Price(2.0, 5.0).spent(done))


def test_the_table_says_what_was_missed():
  out = Console(file=io.StringIO(), width=200)
  out.print(to_accuracy.table(to_accuracy.to_accuracy(CURVES, PRICES, 0.8), 0.8))
  text = out.file.getvalue()  # type: ignore
  low, fast = (
    next(x for x in text.splitlines() if n in x) for n in ("LowBFP", "FAST ")
  )
  fast = next(x for x in text.splitlines() if x.startswith("│ FAST"))
  assert "1 of 2" in low and low.count(" - ") == 7
  assert "40 s ± 25.0%" in fast and "425 J ± 17.6%" in fast
  assert "time / FP32" in text and "0.8" in text


@pytest.mark.parametrize(
  ("curves", "prices", "target", "message"),
  [
    ({"A": {0: [(1, 0.5)]}}, {}, 0.5, "'A', seed 0, has no price; .* none"),
    ({"A": {3: [(1, 0.5)]}}, {"A": {0: FAST}}, 0.5, "'A', seed 3, has no price"),
    ({"A": {0: []}}, {"A": FAST}, 0.5, "has no evaluation"),
    ({"A": {0: [(0, 0.5)]}}, {"A": FAST}, 0.5, "before training has no price"),
    ({"A": {0: [(2, 0.1), (2, 0.5)]}}, {"A": FAST}, 0.5, "must ascend from 1"),
    ({"A": {0: [(50, 0.5)]}}, {"A": FAST}, 0.5, "iteration 50 is beyond 40"),
    ({"A": {0: [(1, 0.5)]}}, {"A": FAST}, math.nan, "target=nan must be a finite"),
  ],
)
def test_what_has_no_answer_is_refused(curves, prices, target, message):
  with pytest.raises(ValueError, match=message):
    to_accuracy.to_accuracy(curves, prices, target)


@pytest.mark.parametrize(
  ("price", "message"),
  [
    (lambda: Price(0.0, 1.0), "Price.time_s=0.0 must be positive"),
    (lambda: Price(1.0, math.inf), "Price.energy_j=inf must be positive"),
    (lambda: Price([1.0], [1.0]), r"Price.time_s has shape \(1,\): \(\) is needed"),
    (lambda: Price([1.0, 2.0], [1.0], [5, 6]), r"energy_j has shape \(1,\): \(2,\)"),
    (lambda: Price([1.0, 2.0], [1.0, 2.0], [5, 5]), "must be positive and ascend"),
  ],
)
def test_impossible_prices_are_refused(price, message):
  with pytest.raises(ValueError, match=message):
    price()
