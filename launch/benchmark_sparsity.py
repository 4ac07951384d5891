"""What masks cost beside a copy, how fast columns are grouped, and how well they pack.

The floor of a mask is a jitted copy of the float32 scores into a fresh buffer; the
unstructured one is measured against a sort as well, the usual way to its threshold.
Grouping runs on the host, on one core. Beside it stands the plain algorithm, a bool a
row and a Python loop over the pairs, on fewer columns of full height; its time is
multiplied by the square of the ratio of columns, as there are as many more pairs.

A pruning step is one of AdamW with the masks of `training.pruning`, the network of
`benchmark_training` masked in the forward pass and the weights after it; the floor is
the step without masks, run in turns.
"""

from collections.abc import Callable, Iterator
import functools
import itertools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcodesign.numerics.schedules import Cubic, OneShot
from jaxcodesign.numerics.sparsity.column_combining import (
  Groups,
  Method,
  PackedColumns,
  group_columns,
  pack,
  prune_conflicts,
)
from jaxcodesign.numerics.sparsity.masks import Rule
from jaxcodesign.numerics.sparsity.patterns import (
  Blocks,
  Channels,
  NOfM,
  Pattern,
  Unstructured,
  magnitude,
)
from jaxcodesign.training import losses, pruning
from launch.benchmark_training import BATCH, CLASSES, PIXELS, networks
from launch.timing import Measurement, ratio

DENSITY = 0.16  # of ResNet-20 in the column combining paper, as recalled
ALPHA, GAMMA = 8, 0.5
PATTERNS: dict[str, tuple[Pattern, str]] = {
  "2:4, last axis": (NOfM(2, 4), "<= 2 x"),
  "2:4, first axis": (NOfM(2, 4, axis=0), "<= 2 x"),
  "4:8, last axis": (NOfM(4, 8), ""),
  "4 x 4 blocks": (Blocks((4, 4), DENSITY), ""),
  "channels": (Channels(DENSITY), ""),
  "unstructured": (Unstructured(DENSITY), ""),
}

RULES = [
  Rule("conv*/kernel", Unstructured(DENSITY)),
  Rule("dense*/kernel", NOfM(2, 4, axis=0)),
]
EVERY = 50  # steps from one event to the next


def sparsity(
  size: int = 4096, draws: int = 20, plain_columns: int = 128, repetitions: int = 15
) -> Iterator[Measurement]:
  """Masks and groups of a square matrix of `size`, small random packings, then steps.

  Args:
    size: Rows and columns; a multiple of 8.
    draws: Random 96 x 94 matrices that are packed.
    plain_columns: Columns that the plain groupers get.
    repetitions: Pairs of pruning and plain steps.
  """
  w = jax.random.normal(jax.random.key(0), (size, size))
  yield from _masks(w)
  kept = np.asarray(jax.jit(Unstructured(DENSITY).mask)(jnp.abs(w)))
  yield from _grouping(kept, plain_columns)
  yield from _packing(draws)
  yield from _steps(repetitions)


def _masks(w: jax.Array) -> Iterator[Measurement]:
  copy = jax.jit(jnp.copy)
  mask = jax.jit(lambda pattern, w: pattern.mask(magnitude(w)))
  for name, (pattern, target) in PATTERNS.items():
    value, took = ratio(lambda p=pattern: mask(p, w), lambda: copy(w))
    title = f"mask {name}, {len(w)}^2"
    yield Measurement(title, value, "x", "copy", target, took)
  by_sort = jax.jit(
    lambda w: magnitude(w) > jnp.sort(magnitude(w), axis=None)[w.size // 2]
  )
  chosen = Unstructured(0.5)
  value, took = ratio(lambda: mask(chosen, w), lambda: by_sort(w), 3)
  yield Measurement(f"mask unstructured, {len(w)}^2", value, "x", "sort", "< 1 x", took)


def _grouping(kept: np.ndarray, plain_columns: int) -> Iterator[Measurement]:
  few = kept[:, :plain_columns]
  title = f"group {kept.shape[0]} x {kept.shape[1]}"
  for method, plain in PLAIN.items():
    took, groups = _timed(lambda m=method: _group(kept, m))
    found = f"{groups.count} groups"
    yield Measurement(f"{title}, {method}", took, "s", found, "< 20 s", took)
    measured, slow = _timed(lambda p=plain: p(few))
    if [sorted(g) for g in slow] != _group(few, method).lists():
      raise RuntimeError(f"the plain {method} grouper finds other groups")
    faster = measured * (kept.shape[1] / few.shape[1]) ** 2 / took
    floor = f"plain, extrapolated from {few.shape[1]} columns"
    yield Measurement(f"{title}, {method}, faster", faster, "x", floor, "", measured)
  took, groups = _timed(lambda: _group(kept, "pairs", sections=256))
  found = f"{groups.count} groups"
  yield Measurement(f"{title}, pairs in 256", took, "s", found, "< 20 s", took)


def _group(
  w: np.ndarray, method: Method, gamma: float = GAMMA, sections: int | None = None
) -> Groups:
  return group_columns(w, alpha=ALPHA, gamma=gamma, method=method, sections=sections)


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
  began = time.perf_counter()
  result = run()
  return time.perf_counter() - began, result


def plain_dense_first(kept: np.ndarray) -> list[list[int]]:
  """Dense-column-first on bool columns, each group tried in turn."""
  limit, groups, unions, totals = GAMMA * len(kept), [], [], []
  counts = kept.sum(axis=0)
  for column in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]:
    best = (-1, 0, 0)
    for i, group in enumerate(groups):
      covered = np.count_nonzero(unions[i] | kept[:, column])
      conflicts = totals[i] + counts[column] - covered
      if len(group) < ALPHA and conflicts <= limit:
        best = max(best, (covered, -conflicts, -i))
    if best[0] < 0:
      best = (0, 0, -len(groups))
      groups.append([])
      unions.append(kept[:, column])
      totals.append(0)
    into = -best[2]
    groups[into].append(int(column))
    unions[into] = unions[into] | kept[:, column]
    totals[into] += counts[column]
  return groups


def plain_pairs(kept: np.ndarray) -> list[list[int]]:
  """Densest-union pairs on bool columns; the best is looked for among all scores."""
  limit = GAMMA * len(kept)
  groups = {int(c): [int(c)] for c in np.flatnonzero(kept.any(axis=0))}
  unions = {c: kept[:, c] for c in groups}
  totals = {c: int(np.count_nonzero(kept[:, c])) for c in groups}

  def score(a: int, b: int) -> tuple[int, int, int, int] | None:
    covered = int(np.count_nonzero(unions[a] | unions[b]))
    conflicts = totals[a] + totals[b] - covered
    if conflicts > limit or len(groups[a]) + len(groups[b]) > ALPHA:
      return None
    return covered, -conflicts, -a, -b

  scores = {pair: score(*pair) for pair in itertools.combinations(groups, 2)}
  while legal := [s for s in scores.values() if s]:
    _, _, a, b = max(legal)
    a, b = -a, -b
    groups[a] += groups.pop(b)
    totals[a] += totals.pop(b)
    unions[a] = unions[a] | unions.pop(b)
    scores = {pair: s for pair, s in scores.items() if a not in pair and b not in pair}
    scores |= {
      (min(a, c), max(a, c)): score(min(a, c), max(a, c)) for c in groups if c != a
    }
  return list(groups.values())


PLAIN: dict[Method, Callable[[np.ndarray], list[list[int]]]] = {
  "dense_first": plain_dense_first,
  "pairs": plain_pairs,
}
PACKED: tuple[tuple[Method, float, str, str], ...] = (
  ("dense_first", GAMMA, "", ""),
  ("pairs", GAMMA, "<= 12", ">= 0.84"),
  ("pairs", 0.0, ">= 45", ""),
)


def _packing(draws: int) -> Iterator[Measurement]:
  """Columns and utilization of random 96 x 94 matrices."""
  keep = jax.jit(lambda w: jnp.where(Unstructured(DENSITY).mask(magnitude(w)), w, 0.0))
  rng = [np.random.default_rng(seed) for seed in range(draws)]
  matrices = [np.array(keep(r.normal(size=(96, 94)).astype(np.float32))) for r in rng]
  for method, gamma, fewest, fullest in PACKED:
    began = time.perf_counter()
    packed = [_packed(w, method, gamma) for w in matrices]
    took = (time.perf_counter() - began) / draws
    name = f"94 columns packed, {method}, gamma = {gamma}"
    counts = [p.groups.count for p in packed]
    against = f"{draws} draws, {min(counts)} to {max(counts)}"
    for how in (statistics.mean, statistics.median):
      title = f"{name}, {how.__name__}"
      yield Measurement(title, how(counts), "columns", against, fewest, took)
    used = [float(p.utilization()) for p in packed]
    against = f"{draws} draws, {min(used):.2f} to {max(used):.2f}"
    mean = statistics.mean(used)
    yield Measurement(f"{name}, utilization", mean, "", against, fullest, took)


def _packed(w: np.ndarray, method: Method, gamma: float) -> PackedColumns:
  groups = _group(w, method, gamma)
  return pack(prune_conflicts(w, groups), groups)


def _steps(repetitions: int) -> Iterator[Measurement]:
  """A step of the CNN under masks: without an event, with one, and the mean of both."""
  plain = _stepper(optax.adamw(1e-3))
  pruned = lambda schedule: _stepper(pruning.prune(optax.adamw(1e-3), RULES, schedule))
  floor = "its step without masks"
  quiet = pruned(OneShot(0))
  quiet()  # the only event
  value, took = ratio(quiet, plain, repetitions)
  title = "pruning step, CNN"
  yield Measurement(title, value, "x", floor, "<= 1.15 x", took)
  event, took = ratio(pruned(Cubic(0, 10_000, events=10_000)), plain, repetitions)
  yield Measurement(f"{title}, with an event", event, "x", floor, "", took)
  mean = (value * (EVERY - 1) + event) / EVERY
  name = f"{title}, an event in {EVERY} steps"
  yield Measurement(name, mean, "x", floor, "<= 1.15 x", took)


def _stepper(optimizer: optax.GradientTransformation) -> Callable[[], Any]:
  """A function that makes one step from where the last one ended."""
  apply, params = networks()["CNN"]
  images = jax.random.normal(jax.random.key(0), (BATCH, PIXELS, PIXELS, 1))
  labels = jnp.arange(BATCH) % CLASSES
  init = optimizer.init(params)

  def loss(params: Any) -> jax.Array:
    return losses.cross_entropy(apply(params, images), labels)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def update(params: Any, state: Any) -> Any:
    masked = isinstance(state, pruning.PruneState)
    seen = pruning.sparse(params, state) if masked else params
    value, grads = jax.value_and_grad(loss)(seen)
    # optax raises floats to integer powers, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
      changes, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, changes), state, value

  held = [jax.tree.map(jnp.copy, params), init]

  def run() -> Any:
    *held[:], value = update(*held)
    return value

  return run
