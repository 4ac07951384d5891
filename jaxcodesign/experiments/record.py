"""What a co-design run found, as the plain numbers that a report is made of."""

from collections.abc import Sequence
import dataclasses
import datetime
import math
from typing import Any

import jax

from jaxcodesign import tree
from jaxcodesign.data import image_sets
from jaxcodesign.experiments import codesign, payoff, schema, storage
from jaxcodesign.experiments.codesign import REFERENCE, CodesignConfig, Priced, Variant
from jaxcodesign.experiments.networks import Networks, Trained
from jaxcodesign.figures import findings
from jaxcodesign.hardware.machines.spec import Accelerator
from jaxcodesign.numerics.formats.format import Format
from jaxcodesign.programs.workload import Workload
from jaxcodesign.runs import origin


def result(
  config: CodesignConfig,
  images: image_sets.Images,
  networks: Networks,
  work: Workload,
  accuracies: Sequence[tuple[Variant, float]],
  name: str,
  command: str,
) -> dict[str, Any]:
  """Everything a report shows, as plain numbers; see `schema.SCHEMA`.

  Prices all designs, and differentiates those that the report points at.
  """
  trained, measured = networks[None], {v.name: a for v, a in accuracies}
  found = {
    "schema": schema.VERSION,
    "name": name,
    "command": command,
    "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    "versions": origin.versions(),
    "config": origin.plain(config),
    "model": {
      "name": type(config.model).__name__,
      "parameters": work.parameters,
      "macs": work.macs,
    },
    "training": {
      "dataset": images.name,
      "train_images": len(images.train_images),
      "test_images": len(images.test_images),
      "restored": trained.restored,
      "seconds": trained.seconds,
      "test_accuracy": trained.accuracy,
      "history": [epoch._asdict() for epoch in trained.history],
    },
    "layers": _layers(config, images, work),
    "vector_ops": [dataclasses.asdict(v) for v in work.vector_ops],
    "variants": [_reference(trained)]
    + [_variant(variant, accuracy) for variant, accuracy in accuracies],
    "accelerators": [_machine(machine) for machine in config.accelerators],
    "costs": [
      _cost(priced, measured[priced.variant])
      for priced in codesign.price(config, work, networks)
    ],
    "storage": payoff.payoff(config, work, networks, measured),
    "sensitivities": [],
  }
  found["sensitivities"] = _sensitivities(config, networks, work, found)
  return found


def _sensitivities(
  config: CodesignConfig, networks: Networks, work: Workload, found: dict[str, Any]
) -> list[dict[str, Any]]:
  """Slopes of the best variant on each machine by every leaf of it."""
  by_name, rows = {v.name: v for v in config.variants}, []
  chosen = findings.find(found).chosen
  for machine in config.accelerators:
    variant = by_name[chosen[machine.name]["variant"]]
    stored = storage.stored(variant.policy, networks[variant.tune], work)
    slopes = codesign.sensitivities(config, work, variant, machine, stored)
    where = {"variant": variant.name, "accelerator": machine.name}
    rows += [where | {"leaf": leaf, "value": x} for leaf, x in slopes.items()]
  return rows


def _layers(
  config: CodesignConfig, images: image_sets.Images, work: Workload
) -> list[dict[str, Any]]:
  sizes = {
    name: math.prod(leaf.shape)
    for name, leaf in tree.named_leaves(
      jax.eval_shape(lambda: codesign.initial(config, images))
    ).items()
  }
  return [
    {
      "name": g.name,
      "kind": g.kind,
      "batch": g.batch,
      "m": g.m,
      "k": g.k,
      "n": g.n,
      "count": g.count,
      "macs": g.macs,
      "parameters": sizes.get(g.rhs, 0),
    }
    for g in work.gemms
  ]


def _reference(trained: Trained) -> dict[str, Any]:
  return {
    "name": REFERENCE,
    "weight": REFERENCE,
    "activation": REFERENCE,
    "weight_bits": 32.0,
    "weight_terms": None,
    "activation_terms": None,
    "accuracy": trained.accuracy,
  }


def _variant(variant: Variant, accuracy: float) -> dict[str, Any]:
  # The rule for most of the model stands last, after its exceptions.
  rule = variant.policy[-1]
  terms = lambda fmt: None if fmt is None else float(fmt.terms_per_value())
  return {
    "name": variant.name,
    "weight": _words(rule.weight),
    "activation": _words(rule.activation),
    "weight_bits": rule.weight.bits_per_value() if rule.weight else None,
    "weight_terms": terms(rule.weight),
    "activation_terms": terms(rule.activation),
    "accuracy": accuracy,
  }


def _words(fmt: Format | None) -> str:
  """A format as its class and the fields that differ from their defaults."""
  if fmt is None:
    return REFERENCE
  assert dataclasses.is_dataclass(fmt)
  told = [
    f"{f.name}={value}"
    for f in dataclasses.fields(fmt)
    if (value := getattr(fmt, f.name)) != f.default
  ]
  return f"{type(fmt).__name__}({', '.join(told)})"


def _machine(machine: Accelerator) -> dict[str, Any]:
  leaves = {name: float(x) for name, x in tree.named_leaves(machine).items()}
  del leaves["temperature"]
  return {
    "name": machine.name,
    "rows": leaves["rows"],
    "cols": leaves["cols"],
    "area_mm2": float(machine.area_mm2()),
    "dataflow": machine.dataflow,
    "leaves": leaves,
  }


def _cost(priced: Priced, accuracy: float) -> dict[str, Any]:
  r = priced.report
  columns = {
    "time_s": r.product_time_s,
    "energy_j": r.product_energy_j,
    "cycles": r.product_cycles,
    "utilization": r.product_utilization,
    "sram_bytes": r.product_sram_bytes,
    "dram_bytes": r.product_dram_bytes,
  }
  return {
    "variant": priced.variant,
    "accelerator": priced.accelerator,
    "accuracy": accuracy,
    "time_s": float(r.time_s),
    "energy_j": float(r.energy_j),
    "edp_js": float(r.edp_js),
    "cycles": float(r.cycles),
    "utilization": float(r.utilization),
    "traffic_bytes": float(r.traffic_bytes),
    "energy_parts_j": {name: float(part) for name, part in r.parts_j.items()},
    "layers": [
      {"name": name} | {key: float(column[i]) for key, column in columns.items()}
      for i, name in enumerate(r.names)
    ],
  }
