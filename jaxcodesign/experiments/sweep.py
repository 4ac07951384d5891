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
import math
import pathlib
import time
from typing import Any, NamedTuple, Protocol

import jax

from jaxcodesign import tree
from jaxcodesign.data import content
from jaxcodesign.experiments.codesign import REFERENCE, Variant
from jaxcodesign.numerics.formats.fixed import Fixed
from jaxcodesign.numerics.formats.format import Format
from jaxcodesign.numerics.formats.term_budget import Terms
from jaxcodesign.programs.policy import assign
from jaxcodesign.programs.workload import Gemm, Workload
from jaxcodesign.runs import origin
from jaxcodesign.runs.disk import files


class Network(Protocol):
  """What a sweep asks of a network."""

  metric: str  # "accuracy", the more the better, or "perplexity", the less

  def load(self) -> Any:
    """Weights and data."""
    ...

  def score(self, loaded: Any, variant: Variant) -> float:
    """The metric under a variant; one without rules is the float reference."""
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
    tuned = [variant.name for variant in self.variants if variant.tune is not None]
    if tuned:
      raise ValueError(
        f"{tuned[0]!r} is fine-tuned, and a sweep measures one network as it is; run "
        "it with launch.codesign"
      )


class Row(NamedTuple):
  """One variant, measured.

  Attributes:
    name: Of the variant; "float32" is the reference.
    score: The network's metric; an accuracy is in [0, 1].
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
    ValueError: If a rule of a variant decides no product, or a number that was read is
      not finite.
    OSError: If a row cannot be written.
  """
  loaded = config.network.load()
  tree.check_finite(loaded, "what the network and its data are read from")
  read = content.digest(*jax.tree.leaves(loaded))
  work = config.network.workload(loaded)
  for variant in (Variant(REFERENCE, ()), *config.variants):
    assign(variant.policy, work.gemms)  # refuses an idle rule before any work
  (folder / "rows").mkdir(parents=True, exist_ok=True)
  for variant in (Variant(REFERENCE, ()), *config.variants):
    nameless = dataclasses.replace(variant, name="")
    decisive = repr((config.network, nameless, read, origin.numbers()))
    mark = hashlib.sha256(decisive.encode()).hexdigest()
    path = folder / "rows" / f"{mark[:16]}.json"
    known = _read(path, mark)
    if known is None:
      on_start(variant.name)
      began = time.perf_counter()
      score = config.network.score(loaded, variant)
      known = {"mark": mark, "score": score, "seconds": time.perf_counter() - began}
      text = json.dumps(known | {"name": variant.name}, indent=2)
      files.write_atomically(path, text)
      known["fresh"] = True
    yield Row(
      variant.name,
      known["score"],
      pairs(variant, work),
      weight_bits(variant, work),
      known["seconds"],
      "fresh" not in known,
    )


def _read(path: pathlib.Path, mark: str) -> dict[str, Any] | None:
  try:
    found = files.strict_json(path.read_bytes())
    numbers = float(found["score"]), float(found["seconds"])
    whole = found["mark"] == mark and min(numbers) >= 0 and max(numbers) < math.inf
    return found if whole else None
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return None  # absent or damaged: measured again


def pairs(variant: Variant, work: Workload) -> float | None:
  """Term pairs a multiplication, averaged over all that are rounded.

  None if a format has no terms.
  """
  total = macs = 0.0
  for gemm, (left, right) in _formats(variant, work):
    if left is None and right is None:
      continue
    counts = _terms(left), _terms(right)
    if counts[0] is None or counts[1] is None:
      return None
    total += gemm.macs * counts[0] * counts[1]
    macs += gemm.macs
  return total / macs if macs else None


def _formats(variant: Variant, work: Workload) -> list[tuple[Gemm, Any]]:
  """Formats of both operands of each product; prepared weights have theirs too."""
  ready = getattr(variant, "weight", None)
  found = []
  for gemm, (left, right) in zip(work.gemms, assign(variant.policy, work.gemms)):
    if right is None and gemm.rhs and left is not None:
      right = ready
    found.append((gemm, (left, right)))
  return found


def _terms(fmt: Format | None) -> float | None:
  if isinstance(fmt, Fixed):
    return float(max(fmt.bits - 1, 1))  # plain binary: every magnitude bit
  return float(fmt.terms_per_value()) if isinstance(fmt, Terms) else None


def weight_bits(variant: Variant, work: Workload) -> float:
  """Mean bits of a weight, scales not counted, over the products that are rounded."""
  bits = size = 0.0
  for gemm, formats in _formats(variant, work):
    if gemm.rhs and (formats != (None, None) or not variant.policy):
      fmt = formats[1]
      wide = 32.0 if fmt is None else float(fmt.bits_per_value())
      bits += wide * gemm.rhs_elements
      size += gemm.rhs_elements
  return bits / max(size, 1)


class Saving(NamedTuple):
  """A uniform format and the cheapest term budget that is no worse."""

  uniform: Row
  terms: Row
  ratio: float  # of term pairs


def savings(
  rows: Sequence[Row], terms: Sequence[str], metric: str = "accuracy"
) -> list[Saving]:
  """For each uniform row, the row of `terms` with fewest pairs that is as good."""
  found, sign = [], 1 if metric == "accuracy" else -1
  budgets = [r for r in rows if r.name in terms and r.pairs]
  for uniform in (r for r in rows if r.pairs and r.name not in terms):
    equal = [r for r in budgets if sign * r.score >= sign * uniform.score]
    if equal:
      best = min(equal, key=lambda r: r.pairs or 0)
      found.append(Saving(uniform, best, (uniform.pairs or 0) / (best.pairs or 1)))
  return found


def of_terms(config: SweepConfig) -> list[str]:
  """Names of the variants with a term budget anywhere."""
  budget = lambda v: any(isinstance(r.weight, Terms) for r in v.policy)
  return [v.name for v in config.variants if budget(v)]
