"""What a co-design result says: its baseline, its Pareto front and its best design."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

SMOKE = "SMOKE: a small run that tries the path; its numbers say nothing"
ALLOWANCE = 0.01  # accuracy that the best design may lose against the reference


@dataclasses.dataclass(frozen=True)
class Findings:
  """The designs that a report points at, all of them entries of `result["costs"]`.

  Attributes:
    reference: The variant that accuracy is compared with, the first of the result.
    baseline: int8 on the accelerator int8 if that was priced, else the first cost.
    chosen: For each accelerator the cheapest design (EDP) that loses no more accuracy
      than `ALLOWANCE`; if there is none, the most accurate one. Equal EDP: the more
      accurate one.
    best: The cheapest of all designs within the allowance, None if there is none.
    front: Designs that no other beats in both accuracy and EDP, by rising EDP.
    compared: For each accelerator the design with the best variant, or the chosen one
      where that variant was not priced.
  """

  reference: dict[str, Any]
  baseline: dict[str, Any]
  chosen: dict[str, dict[str, Any]]
  best: dict[str, Any] | None
  front: list[dict[str, Any]]
  compared: list[dict[str, Any]]


def find(result: Mapping[str, Any]) -> Findings:
  """Picks out what a reader wants to know first; see `Findings`."""
  costs, reference = result["costs"], result["variants"][0]
  # Accuracies are counts over a test set: half a thousandth of a point is no image.
  enough = reference["accuracy"] - ALLOWANCE - 5e-6
  cheapest = lambda c: (c["edp_js"], -c["accuracy"])
  kept = [c for c in costs if c["accuracy"] >= enough]
  chosen = {}
  for name in dict.fromkeys(c["accelerator"] for c in costs):
    good = [c for c in kept if c["accelerator"] == name]
    own = [c for c in costs if c["accelerator"] == name]
    most = max(c["accuracy"] for c in own)
    chosen[name] = min(good or [c for c in own if c["accuracy"] == most], key=cheapest)
  best = min(kept, key=cheapest, default=None)
  same = {
    c["accelerator"]: c for c in costs if best and c["variant"] == best["variant"]
  }
  int8 = [c for c in costs if c["variant"] == c["accelerator"] == "int8"]
  return Findings(
    reference=reference,
    baseline=[*int8, costs[0]][0],
    chosen=chosen,
    best=best,
    front=[costs[i] for i in pareto([(c["accuracy"], c["edp_js"]) for c in costs])],
    compared=[same.get(name, chosen[name]) for name in chosen],
  )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
  """Finds the points that no other point beats.

  Args:
    points: (value, cost) pairs; a higher value and a lower cost are better.

  Returns:
    Indices of the front by rising cost. A point is off the front when another is at
    least as good in both and better in one; equal points are on it together, in their
    given order.
  """
  order = sorted(range(len(points)), key=lambda i: (points[i][1], -points[i][0]))
  front: list[int] = []
  for i in order:
    last = points[front[-1]] if front else (-math.inf, 0.0)
    if points[i][0] > last[0] or points[i] == last:
      front.append(i)
  return front


def is_smoke(command: str) -> bool:
  """Whether the command that made a result asked for its small twin."""
  return "--smoke" in command.split()


def answer(result: Mapping[str, Any]) -> str:
  """Answers which design is best and by how much; of a smoke run, that it does not."""
  if is_smoke(result["command"]):
    return f"{SMOKE}."
  found = find(result)
  baseline, reference = found.baseline, found.reference
  limit = f"{100 * ALLOWANCE:g} point of {reference['name']} accuracy"
  if found.best is None:
    top = max(result["costs"], key=lambda c: c["accuracy"])
    lost = points(top["accuracy"] - reference["accuracy"])
    return f"No design stays within {limit}; the closest, {title(top)}, is at {lost}."
  if found.best is baseline:
    return f"Nothing beats {title(baseline)} without losing more than {limit}."
  return (
    f"Compared with {title(baseline)}, {title(found.best)} needs "
    f"{change(found.best, baseline, 'edp_js')} energy-delay product, at "
    f"{points(found.best['accuracy'] - reference['accuracy'])} of accuracy against "
    f"{reference['name']}."
  )


def title(cost: Mapping[str, Any]) -> str:
  """Names a design."""
  return f"{cost['variant']} on the {cost['accelerator']} array"


def points(difference: float) -> str:
  """Writes a difference of accuracies in percentage points, with its sign."""
  return f"{100 * difference:+.2f} points".replace("-", "\u2212").replace(
    "+0.00", "±0.00"
  )


def change(cost: Mapping[str, Any], baseline: Mapping[str, Any], key: str) -> str:
  """Compares a cost with the baseline's: 3.1 times less, 1.2 times more."""
  ratio = baseline[key] / cost[key]
  if abs(ratio - 1) < 0.005:
    return "as much"
  return f"{ratio:.3g}\u00d7 less" if ratio > 1 else f"{1 / ratio:.3g}\u00d7 more"


def prefix(value: float) -> tuple[float, str]:
  """Returns the power of 1000 and its SI prefix that show `value` best."""
  rounded = abs(float(f"{value:.3g}"))
  exponent = math.floor(math.log10(rounded) / 3) if rounded else 0
  exponent = min(max(exponent, -6), 6)
  return 1000.0**exponent, "afpnµm kMGTPE"[exponent + 6].strip()


def quantity(value: float, unit: str) -> str:
  """Writes `value` with three digits and an SI prefix: 1.234e-5, "J" is 12.3 µJ."""
  factor, letter = prefix(value)
  return f"{value / factor:.3g} {letter}{unit}".strip()
