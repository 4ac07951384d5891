"""Bounds a published network on a chip: time, what limits it, memory, training cost.

python -m launch.roofline resnet50 --chip h100 --picture roof.png
python -m launch.roofline llama31-8b --chip b200 --weights fp8 --tokens 2048
python -m launch.roofline --memory           LLaMA 3.1 in every format
python -m launch.roofline --chips            the chips and their numbers
python -m launch.roofline llama31-405b --train 15.6e12 --number 16000
"""

import argparse
from collections.abc import Callable
from pathlib import Path
import sys
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxcodesign.hardware import chips, roofline
from jaxcodesign.programs.workload import Workload, trace
from jaxcodesign.training import canvas, experiment, published, roofline_figure
from launch import outcome

PROG = "python -m launch.roofline"

LLAMAS = {
  "llama31-8b": published.LLAMA31_8B,
  "llama31-70b": published.LLAMA31_70B,
  "llama31-405b": published.LLAMA31_405B,
}
NETWORKS: dict[str, Callable[[int, int], published.Model]] = {
  "vgg16": lambda batch, tokens: published.vgg16(batch=batch),
  "resnet18": lambda batch, tokens: published.resnet(18, batch=batch),
  "resnet50": lambda batch, tokens: published.resnet(50, batch=batch),
  "mobilenet": lambda batch, tokens: published.mobilenet(batch=batch),
  "gpt2": lambda batch, tokens: published.gpt2(tokens=min(tokens, 1024), batch=batch),
} | {
  name: lambda batch, tokens, size=size: published.llama(
    size, tokens=tokens, batch=batch
  )
  for name, size in LLAMAS.items()
}


def workload(name: str, batch: int, tokens: int) -> Workload:
  """The trace of a network of NETWORKS."""
  fn, params, inputs = NETWORKS[name](batch, tokens)
  return trace(fn)(params, inputs)


def chip_table() -> Table:
  """All chips, a row each."""
  table = Table(
    "chip", "dense Top/s", "GB", "GB/s", "ridge op/B", "source", title="chips"
  )
  for key, make in chips.CHIPS.items():
    c: Any = make()
    peaks = ", ".join(f"{k} {v / 1e12:g}" for k, v in c.peak_op_s.items())
    ridges = ", ".join(f"{c.ridge(k):.0f}" for k in c.peak_op_s)
    row = (f"{c.memory_bytes / 1e9:.0f}", f"{c.bandwidth_bytes_s / 1e9:.0f}", ridges)
    source = c.source + (f"; recalled: {', '.join(c.recalled)}" if c.recalled else "")
    table.add_row(f"{key}\n{c.name}", peaks, *row, source)
  return table


def memory_table(tokens: int = 1000) -> Table:
  """Weights and cache of the LLaMA 3.1 models in GB, from traces of their shapes."""
  formats = ("fp16", "fp8", "int4")
  columns = [f"{name} weights, GB" for name in formats]
  table = Table("model", *columns, f"fp16 cache at {tokens:,} tokens, GiB")
  for name in LLAMAS:
    work = workload(name, 1, tokens)
    sizes = [roofline.footprint(work, weights=f, cache="fp16") for f in formats]
    weights = [f"{size.weights / 1e9:.1f}" for size in sizes]
    table.add_row(name, *weights, f"{sizes[0].cache / 2**30:.3f}")
  return table


def parser() -> argparse.ArgumentParser:
  """The command line."""
  found = argparse.ArgumentParser(
    prog=PROG,
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog=f"networks: {', '.join(NETWORKS)}; chips: {', '.join(chips.CHIPS)}",
  )
  add = found.add_argument
  add("network", nargs="?", choices=NETWORKS, metavar="NETWORK", help="see below")
  add("--chip", default="h100", choices=chips.CHIPS, metavar="CHIP",
      help="see below, default h100")  # fmt: skip
  add("--weights", default="bf16", choices=chips.BITS, help="format, default bf16")
  add("--activations", default="bf16", choices=chips.BITS, help="default bf16")
  add("--batch", type=int, default=1, help="images or texts at once")
  add("--tokens", type=int, default=1024, help="of a language model, default 1024")
  add("--picture", type=Path, help="PNG to write")
  add("--memory", action="store_true", help="LLaMA 3.1's weights and cache")
  add("--chips", action="store_true", help="the chips and their numbers")
  add("--train", type=float, metavar="TOKENS", help="cost of training on so many")
  add("--number", type=int, default=1, help="of chips that train")
  add("--utilization", type=float, default=0.4, help="of the peak while training")
  add("--dollars", type=float, default=2.0, help="a chip and hour")
  return found


def main(argv: list[str]) -> int:
  """Runs the program; returns its exit code."""
  line = parser()
  args = line.parse_args(argv)
  if args.network is None and not (args.chips or args.memory):
    line.error("name a network, or --chips or --memory")
  if min(args.batch, args.tokens) < 1:
    line.error("--batch and --tokens are at least 1")
  return outcome.exit_code(PROG, lambda: run(args, Console()), "nothing was written")


def run(args: argparse.Namespace, console: Console) -> None:
  """Prints and draws what was asked for."""
  if args.chips:
    console.print(chip_table())
  if args.memory:
    console.print(memory_table())
  if args.network is None:
    return
  chip = chips.CHIPS[args.chip]()
  work = workload(args.network, args.batch, args.tokens)
  found = roofline.roofline(
    work, chip, weights=args.weights, activations=args.activations
  )
  print(found.table())
  weights = work.parameters * chips.BITS[args.weights] / 8
  memory = float(np.asarray(chip.memory_bytes))
  room = "fit" if weights <= memory else "do not fit"
  print(f"{weights / 1e9:.2f} GB of weights {room} {memory / 1e9:.0f} GB")
  if args.train:
    cost = roofline.training_cost(
      work.parameters, args.train, chip, chips=args.number,
      utilization=args.utilization, dollars_per_hour=args.dollars,
    )  # fmt: skip
    print(
      f"training on {args.train:.3g} tokens at {args.utilization:.0%} of the peak: "
      f"{cost.operations:.3g} operations, {cost.chip_hours:,.0f} chip-hours, "
      f"{cost.days:,.1f} days on {args.number:,} chips, ${cost.dollars:,.0f}"
    )
  if args.picture:
    title = f"{args.network} on {chip.name}, {args.weights} weights"
    picture = canvas.png(roofline_figure.figure(found, title))
    experiment.write_atomically(args.picture, picture)
    print(f"wrote {args.picture}")


if __name__ == "__main__":
  raise SystemExit(main(sys.argv[1:]))
