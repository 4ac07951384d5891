"""What `launch.simulate` says of kinds of layers, and of a network beside its twin.

A depthwise convolution saves multiplications and leaves an array idle: a product for
each channel has a single column. The twin is the same network with full convolutions.
"""

import argparse
from collections.abc import Callable
from typing import Any

from rich.table import Table

from jaxcodesign.figures import canvas, kinds
from jaxcodesign.figures import layers as layer_tables
from jaxcodesign.hardware.pricing import layers
from jaxcodesign.hardware.pricing.layers import Priced
from jaxcodesign.models import published
from jaxcodesign.programs.precision import Policy
from jaxcodesign.programs.workload import Workload, trace
from jaxcodesign.runs import command_line
from launch.simulate_pictures import write

TWINS: dict[tuple[str, str], Callable[[int], published.Model]] = {
  ("mobilenet", "full"): lambda batch: published.mobilenet(
    separable=False, batch=batch
  ),
}


def twin(args: argparse.Namespace) -> Workload | None:
  """The products of the network to compare with, if one is asked for.

  Raises:
    ConfigError: If the network has no such twin.
  """
  if args.against is None:
    return None
  make = TWINS.get((args.network, args.against))
  if make is None:
    there = ", ".join(f"{name} --against {kind}" for name, kind in TWINS)
    raise command_line.ConfigError(
      f"{args.network} has no twin {args.against!r}; there is {there}"
    )
  fn, params, inputs = make(1 if args.batch is None else args.batch)
  return trace(fn)(params, inputs)


def told(
  args: argparse.Namespace, found: list[Priced], policy: Policy, other: Workload | None
) -> tuple[list[Table], list[dict[str, Any]]]:
  """Tables of kinds, and of what is saved against the twin; the latter for JSON."""
  tables = []
  if len(layers.by_kind(found[0])) > 1:
    tables.append(layer_tables.kinds(found))
  if other is None:
    return tables, []
  full = [layers.price(other, p.machine, policy=policy) for p in found]
  rows = [layers.saved(*pair) for pair in zip(found, full)]
  title = f"{args.network} against its twin of {args.against} convolutions"
  tables.append(layer_tables.saved(rows, title))
  return tables, [
    row._asdict() | {"twin": layers.record(p)} for row, p in zip(rows, full)
  ]


def draw(args: argparse.Namespace, found: list[Priced]) -> None:
  """Writes the shares of kinds, if they are asked for."""
  if args.kinds:
    title = f"{args.network}: multiplications, and cycles on arrays"
    write(args.kinds, canvas.png(kinds.figure(found, title)))
