"""What pruning pays out: one array, the weights of a network stored in different ways.

Zeros in a plain matrix are executed; n:m and combined columns are not, on cells that
select their inputs. Rows are the dense network, each sparse one, and an unstructured
one whose columns are packed without pruning a conflict, gamma = 0.
"""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import numpy as np

from jaxcodesign import tree
from jaxcodesign.experiments import storage
from jaxcodesign.experiments.codesign import CodesignConfig, Variant
from jaxcodesign.experiments.networks import Networks, Trained
from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.machines.spec import Accelerator
from jaxcodesign.hardware.mapping.stored import Stored
from jaxcodesign.hardware.pricing import layers as layer_costs
from jaxcodesign.numerics.sparsity.column_combining import Groups, group_columns
from jaxcodesign.numerics.sparsity.patterns import Unstructured
from jaxcodesign.programs.workload import Workload
from jaxcodesign.training.combining import Combine, as_matrix
from jaxcodesign.training.masked import Prune

_ALPHA = 8  # of the packing without pruning


def payoff(
  config: CodesignConfig,
  work: Workload,
  networks: Networks,
  accuracies: Mapping[str, float],
) -> dict[str, Any]:
  """`storage` of a result, see `schema.SCHEMA`; no rows where nothing is sparse.

  The array is the first of the config with plain cells, its weights stationary, as
  column combining has it; without one there are no rows. The formats are those of the
  first variant; rows are all variants with the same formats. Costs are of one image of
  `config.stream`, as everywhere in a report.

  Args:
    config: Of the run.
    work: Of one image.
    networks: Trained and fine-tuned.
    accuracies: By variant.
  """
  sparse = any(networks[v.tune].sparsity is not None for v in config.variants)
  plain = next((a for a in config.accelerators if _is_plain(a)), None)
  if plain is None or not sparse:
    return {"machine": "", "rows": [], "packing": []}
  plain = dataclasses.replace(plain, dataflow="ws")
  side = f"{plain.rows:g} x {plain.cols:g}"
  machine = f"{plain.name}, {side} cells, weights stationary"
  rows = []
  for title, variant, stored in _cases(config, work, networks):
    alpha = max((float(np.asarray(x.inputs)) for x in stored.values()), default=1.0)
    array = plain if alpha == 1 else presets.mx(plain, alpha)
    found = layer_costs.compare(
      work,
      [(title, array, stored)],
      policy=variant.policy,
      repeats=float(config.stream),
    )
    trained = networks[variant.tune]
    rows.append(_row(found, accuracies[variant.name], _density(trained, work)))
  return {"machine": machine, "rows": rows, "packing": _packing(networks, plain)}


def _cases(
  config: CodesignConfig, work: Workload, networks: Networks
) -> Iterator[tuple[str, Variant, dict[str, Stored]]]:
  seen = []
  for variant in config.variants:
    if variant.policy != config.variants[0].policy or variant.tune in seen:
      continue
    seen.append(variant.tune)
    trained = networks[variant.tune]
    yield variant.name, variant, storage.stored(variant.policy, trained, work)
    if _is_unstructured(trained):
      packed = trained._replace(groups=_without_conflicts(trained, work))
      title = f"{variant.name}, packed with gamma = 0"
      yield title, variant, storage.stored(variant.policy, packed, work)


def _is_plain(machine: Accelerator) -> bool:
  return float(np.asarray(machine.mac.inputs)) == 1


def _is_unstructured(trained: Trained) -> bool:
  sparsity = trained.sparsity
  return isinstance(sparsity, Prune) and any(
    isinstance(rule.pattern, Unstructured) for rule in sparsity.rules
  )


def _without_conflicts(trained: Trained, work: Workload) -> dict[str, Groups]:
  """Groups of columns that are disjoint as they are."""
  return {
    name: group_columns(matrix, alpha=_ALPHA, gamma=0.0, method="pairs")
    for name, matrix in storage.sparse_matrices(trained, work).items()
  }


def _density(trained: Trained, work: Workload) -> float:
  """Part of the weights of all products that is not zero."""
  leaves = tree.named_leaves(trained.params)
  weights = [np.asarray(leaves[name]) for name in {g.rhs for g in work.gemms} if name]
  return sum(np.count_nonzero(w) for w in weights) / sum(w.size for w in weights)


def _row(
  found: tuple[layer_costs.Compared, ...], accuracy: float, density: float
) -> dict[str, Any]:
  *layers, total = found
  keys = ("name", "columns", "tiles", "cycles", "utilization")
  sums = ("tiles", "cycles", "utilization", "time_s", "energy_j", "edp_js", "area_mm2")
  return {
    "title": total.title,
    "density": density,
    "accuracy": accuracy,
    **{key: getattr(total, key) for key in sums},
    "layers": [{key: getattr(layer, key) for key in keys} for layer in layers],
  }


def _packing(networks: Networks, machine: Accelerator) -> list[dict[str, Any]]:
  """The combined layer with most columns, before and after."""
  for trained in networks.values():
    if not trained.groups or not isinstance(trained.sparsity, Combine):
      continue
    name = max(trained.groups, key=lambda n: trained.groups[n].columns)
    leaf = tree.named_leaves(trained.params)[name]
    packed = storage.pack_leaf(leaf, trained.groups[name])
    if packed.groups.alpha > 36:  # a character for each input
      continue
    held, channel = np.asarray(packed.values) != 0, np.asarray(packed.channel)
    letter = lambda c, h: np.base_repr(c, 36) if h else "."
    return [
      {
        "layer": name,
        "array": int(float(np.asarray(machine.rows))),
        "kept": ["".join("01"[int(x != 0)] for x in row) for row in as_matrix(leaf)],
        "channel": [
          "".join(letter(int(c), h) for c, h in zip(*pair))
          for pair in zip(channel, held)
        ],
      }
    ]
  return []
