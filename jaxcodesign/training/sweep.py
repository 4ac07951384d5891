"""One trained network under many formats: a table, a curve, rows kept as they come.

A row is a variant's score beside the float reference, and what its products cost a
serial machine in *term pairs*: the additions of a product of two numbers when each is a
sum of signed powers of two. Uniform integers of b bits in plain binary take (b - 1)^2
of them, since no bit may be skipped in lockstep; a term budget of k for g weights and s
for an activation takes k s / g.

Reference: Kung, McDanel, Zhang. "Term Quantization", SC 2020.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import hashlib
import json
import pathlib
import time
from typing import Any, NamedTuple, Protocol

from jaxcodesign.numerics.formats import Fixed, Format, Terms
from jaxcodesign.programs.policy import assign
from jaxcodesign.programs.precision import Policy
from jaxcodesign.programs.workload import Workload
from jaxcodesign.training import experiment
from jaxcodesign.training.codesign import REFERENCE, Variant


class Network(Protocol):
  """What a sweep asks of a network."""

  def load(self) -> Any:
    """Weights and data."""
    ...

  def score(self, loaded: Any, policy: Policy) -> float:
    """Share of right answers under a policy, () for the float reference."""
    ...

  def workload(self, loaded: Any) -> Workload:
    """The products of one example."""
    ...


@dataclasses.dataclass(frozen=True)
class SweepConfig:
  """A network and the formats to measure it in.

  Attributes:
    network: A trained network with its test set.
    variants: Quantizations to measure; names are unique.
  """

  network: Any
  variants: tuple[Variant, ...]

  def __post_init__(self):
    names = [variant.name for variant in self.variants]
    if not names or len(set(names)) < len(names) or REFERENCE in names:
      raise ValueError(
        f"variants need unique names other than {REFERENCE!r}, not {names}"
      )


class Row(NamedTuple):
  """One variant, measured.

  Attributes:
    name: Of the variant; "float32" is the reference.
    score: Accuracy on the whole test set, in [0, 1].
    pairs: Term pairs a multiplication, averaged over all; None for floating point.
    bits: Mean bits of a weight.
    seconds: That the measurement took.
    cached: Whether it was read from an earlier run.
  """

  name: str
  score: float
  pairs: float | None
  bits: float
  seconds: float
  cached: bool


def measure(
  config: SweepConfig, folder: pathlib.Path, on_start: Callable[[str], None] = print
) -> Iterator[Row]:
  """Yields a row for the reference and each variant, the kept ones without work.

  Args:
    config: What to measure.
    folder: Of the run; rows are `folder / "rows" / *.json`, one a variant, named by
      everything that decides them.
    on_start: Called with the name of a variant before it is measured.

  Raises:
    ValueError: If a rule of a variant decides no product.
    OSError: If a row cannot be written.
  """
  loaded = config.network.load()
  work = config.network.workload(loaded)
  for variant in (Variant(REFERENCE, ()), *config.variants):
    assign(variant.policy, work.gemms)  # refuses an idle rule before any work
  (folder / "rows").mkdir(parents=True, exist_ok=True)
  for variant in (Variant(REFERENCE, ()), *config.variants):
    mark = hashlib.sha256(repr((config.network, variant.policy)).encode()).hexdigest()
    path = folder / "rows" / f"{mark[:16]}.json"
    known = _read(path, mark)
    if known is None:
      on_start(variant.name)
      began = time.perf_counter()
      score = config.network.score(loaded, variant.policy)
      known = {"mark": mark, "score": score, "seconds": time.perf_counter() - began}
      text = json.dumps(known | {"name": variant.name}, indent=2)
      experiment.write_atomically(path, text)
      known["fresh"] = True
    yield Row(
      variant.name,
      known["score"],
      pairs(variant.policy, work),
      weight_bits(variant.policy, work),
      known["seconds"],
      "fresh" not in known,
    )


def _read(path: pathlib.Path, mark: str) -> dict[str, Any] | None:
  try:
    found = json.loads(path.read_text())
    return found if found["mark"] == mark and 0 <= found["score"] <= 1 else None
  except (OSError, ValueError, KeyError, TypeError):
    return None  # absent or damaged: measured again


def pairs(policy: Policy, work: Workload) -> float | None:
  """Term pairs a multiplication, averaged over all; None if a format has no terms."""
  total = 0.0
  for gemm, (left, right) in zip(work.gemms, assign(policy, work.gemms)):
    counts = _terms(left), _terms(right)
    if None in counts:
      return None
    total += gemm.macs * counts[0] * counts[1]  # pyright: ignore[reportOperatorIssue]
  return total / work.macs


def _terms(fmt: Format | None) -> float | None:
  if isinstance(fmt, Fixed):
    return float(max(fmt.bits - 1, 1))  # plain binary: every magnitude bit
  return float(fmt.terms_per_value()) if isinstance(fmt, Terms) else None


def weight_bits(policy: Policy, work: Workload) -> float:
  """Mean bits of a weight, scales not counted."""
  sizes = [g.rhs_elements for g in work.gemms if g.rhs]
  formats = [r for g, (_, r) in zip(work.gemms, assign(policy, work.gemms)) if g.rhs]
  bits = [32.0 if fmt is None else float(fmt.bits_per_value()) for fmt in formats]
  return sum(b * n for b, n in zip(bits, sizes)) / max(sum(sizes), 1)


class Saving(NamedTuple):
  """A uniform format and the cheapest term budget that is no less accurate."""

  uniform: Row
  terms: Row
  ratio: float  # of term pairs


def savings(rows: Sequence[Row], terms: Sequence[str]) -> list[Saving]:
  """For each uniform row, the row of `terms` with fewest pairs that is as accurate."""
  found = []
  budgets = [r for r in rows if r.name in terms and r.pairs]
  for uniform in (r for r in rows if r.pairs and r.name not in terms):
    equal = [r for r in budgets if r.score >= uniform.score]
    if equal:
      best = min(equal, key=lambda r: r.pairs or 0)
      found.append(Saving(uniform, best, (uniform.pairs or 0) / (best.pairs or 1)))
  return found


def of_terms(config: SweepConfig) -> list[str]:
  """Names of the variants with a term budget anywhere."""
  budget = lambda v: any(isinstance(r.weight, Terms) for r in v.policy)
  return [v.name for v in config.variants if budget(v)]
