"""What column combining pays out on a trained network, and what it costs in accuracy.

The network of a config is trained, pruned without structure and combined, for several
seeds; both then run on the same array, weights stationary, with plain cells and with
cells that select. Ratios are over the whole network, layers that stay dense included.
Trained networks are kept in the folder of the run: a second time takes seconds.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import pathlib
import statistics
import time
from typing import Any

from jaxcodesign.data import image_sets
from jaxcodesign.experiments import codesign, payoff
from jaxcodesign.runs import command_line
from launch.timing import Measurement

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "fashion_codesign.py"
DENSE, PRUNED = "int8", "pruned int8"
COMBINED = ("combined int8", "combined, distilled int8")
# Of these the accuracy alone is told, where a config has them.
OTHERS = ("2:4 int8", "combined TQ 16/8 s3", "combined, distilled TQ 16/8 s3")


def combining(
  seeds: int = 3, out: str | pathlib.Path = "runs", config: Any = None
) -> Iterator[Measurement]:
  """Accuracies, and tiles, cycles and utilization against dense and pruned weights.

  Args:
    seeds: Trainings, from 0 on.
    out: Folder of all runs.
    config: A `CodesignConfig` with variants of the names above; the main job's if None.
  """
  config = config or command_line.load(CONFIG).config()
  names = (DENSE, PRUNED, *COMBINED, *OTHERS)
  kept = tuple(v for v in config.variants if v.name in names)
  config = dataclasses.replace(config, variants=kept)
  images = image_sets.check(config.data.load())
  began = time.perf_counter()
  found = [_seed(config, seed, images, out) for seed in range(seeds)]
  took = (time.perf_counter() - began) / seeds
  at = lambda title, key: [rows[title][key] for rows, _ in found]
  over = lambda x, y: [a / b for a, b in zip(x, y)]
  for variant in kept:
    each = [accuracies[variant.name] for _, accuracies in found]
    yield _mean(f"accuracy, {variant.name}", each, "%", "", took)
  for title in COMBINED:
    drop = [a - b for a, b in zip(at(DENSE, "accuracy"), at(title, "accuracy"))]
    yield _mean(f"drop, {title}", drop, "points", "<= 1 point", took)
    yield _mean(f"not zero, {title}", at(title, "density"), "%", "", took)
    used = over(at(title, "utilization"), at(PRUNED, "utilization"))
    name = f"utilization over unstructured, {title}"
    yield _mean(name, used, "x", ">= 4 x", took)
    for key in ("tiles", "cycles"):
      fewer = over(at(DENSE, key), at(title, key))
      yield _mean(f"{key} fewer than dense, {title}", fewer, "x", ">= 3 x", took)


def _seed(
  config: codesign.CodesignConfig, seed: int, images: image_sets.Images, out: Any
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
  """The rows of `payoff` of one seed by title, and accuracies by variant."""
  reseeded = lambda how: how and dataclasses.replace(how, seed=seed)
  config = dataclasses.replace(
    config,
    train=reseeded(config.train),
    variants=tuple(
      dataclasses.replace(v, tune=reseeded(v.tune)) for v in config.variants
    ),
  )
  folder = command_line.run_folder(out, f"benchmark_combining_{seed}")
  trained = codesign.train(config, images, folder)
  networks: dict[Any, Any] = {None: trained}
  for how in codesign.tunings(config):
    networks[how] = codesign.tune(config, how, trained, images, folder)
  accuracies = {
    variant.name: accuracy
    for variant, accuracy in codesign.measure(config, networks, images)
  }
  work = codesign.workload(config, images)
  rows = payoff.payoff(config, work, networks, accuracies)["rows"]
  return {row["title"]: row for row in rows}, accuracies


def _mean(
  name: str, values: Sequence[float], unit: str, target: str, took: float
) -> Measurement:
  """A mean over seeds, all of them beside it; shares in percent."""
  values = [x * (100 if unit in ("%", "points") else 1) for x in values]
  each = "seeds: " + ", ".join(f"{x:.2f}" for x in values)
  return Measurement(name, statistics.mean(values), unit, each, target, took)
