"""Bounds a published network on a chip: time, what limits it, memory, training cost.

python -m launch.roofline resnet50 --chip h100 --picture roof.png
python -m launch.roofline llama31-8b --chip b200 --weights fp8 --tokens 2048
python -m launch.roofline --memory           LLaMA 3.1 in every format
python -m launch.roofline --chips            the chips and their numbers
python -m launch.roofline llama31-405b --train 15.6e12 --number 16000
python -m launch.roofline resnet50 --batch 8 --achievable
python -m launch.roofline gpt2 --measure --picture scatter.png     times this device
"""

import argparse
from collections.abc import Callable
import math
from pathlib import Path
import sys
from typing import Any

from matplotlib.figure import Figure
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxcodesign.figures import canvas
from jaxcodesign.figures import roofline as roofline_figure
from jaxcodesign.hardware.machines import chips
from jaxcodesign.hardware.pricing import roofline
from jaxcodesign.models import published
from jaxcodesign.programs.workload import Workload, trace
from jaxcodesign.runs.disk import files
from launch import measure, outcome

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
  "gpt2": lambda batch, tokens: published.gpt2(tokens=tokens, batch=batch),
} | {
  name: lambda batch, tokens, size=size: published.llama(
    size, tokens=tokens, batch=batch
  )
  for name, size in LLAMAS.items()
}

LANGUAGE = ("gpt2", *LLAMAS)


def workload(name: str, batch: int, tokens: int) -> Workload:
  """The trace of a network of NETWORKS."""
  fn, params, inputs = NETWORKS[name](batch, tokens)
  return trace(fn)(params, inputs)


def chip_table() -> Table:
  """All chips, a row each."""
  table = Table(
    "chip", "dense Top/s", "GB", "GB/s", "ridge op/B", "source", "notes", title="chips"
  )
  for key, make in chips.CHIPS.items():
    c: Any = make()
    peaks = ", ".join(f"{k} {v / 1e12:g}" for k, v in c.peak_op_s.items())
    ridges = ", ".join(f"{c.ridge(k):.0f}" for k in c.peak_op_s)
    row = (f"{c.memory_bytes / 1e9:.0f}", f"{c.bandwidth_bytes_s / 1e9:.0f}", ridges)
    recalled = f"recalled: {', '.join(c.recalled)}" if c.recalled else ""
    notes = "; ".join(filter(None, (recalled, c.notes)))
    table.add_row(f"{key}\n{c.name}", peaks, *row, c.source, notes)
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
  share = {"type": float, "metavar": "SHARE"}
  add("network", nargs="?", choices=NETWORKS, metavar="NETWORK", help="see below")
  add("--chip", choices=chips.CHIPS, metavar="CHIP",
      help="see below, default h100; with --measure this device")  # fmt: skip
  add("--weights", default="bf16", choices=chips.BITS, help="format, default bf16")
  add("--activations", default="bf16", choices=chips.BITS, help="default bf16")
  add("--batch", type=int, default=1, help="images or texts at once")
  add("--tokens", type=int, help="in the context of a language model, default 1024; "
      "1000 with --memory")  # fmt: skip
  add("--picture", type=Path, help="PNG to write: the roofline, or the scatter")
  add("--memory", action="store_true", help="LLaMA 3.1's weights and cache")
  add("--chips", action="store_true", help="the chips and their numbers")
  roof = found.add_mutually_exclusive_group()
  roof.add_argument("--achievable", action="store_true",
                    help="peaks are what products reached")  # fmt: skip
  roof.add_argument("--compute-share", default=1.0, **share, help="of the peak")
  add("--bandwidth-share", default=1.0, **share, help="of the bandwidth")
  add("--train", type=float, metavar="SAMPLES",
      help="cost of training on so many images or tokens")  # fmt: skip
  add("--by-parameters", action="store_true",
      help="6 operations a parameter and token instead of the traced ones")  # fmt: skip
  add("--number", type=int, default=1, help="of chips that train")
  add("--utilization", type=float, default=0.4, help="of the peak while training")
  add("--dollars", type=float, default=2.0, help="a chip and hour")
  add("--measure", action="store_true",
      help="time the network and 20 products, fit the peak's share")  # fmt: skip
  add("--largest", type=int, help="side of the largest product of --measure")
  return found


def main(argv: list[str]) -> int:
  """Runs the program; returns its exit code."""
  line = parser()
  args = line.parse_args(argv)
  if args.network is None and not (args.chips or args.memory):
    line.error("name a network, or --chips or --memory")
  if min(args.batch, 1 if args.tokens is None else args.tokens) < 1:
    line.error("--batch and --tokens are at least 1")
  for wrong, message in (
    (args.network is None and (args.train is not None or args.measure),
     "--train and --measure need a network"),
    (args.train is not None and not (args.train > 0 and math.isfinite(args.train)),
     f"--train {args.train}: train on more than 0 samples"),
    (args.by_parameters and args.train is None, "--by-parameters is for --train"),
    (args.by_parameters and args.network not in LANGUAGE,
     f"--by-parameters is for {', '.join(LANGUAGE)}: a convolution uses its "
     "parameters many times"),
    (args.measure and args.weights != args.activations,
     "--measure has one format: give --weights and --activations the same"),
    (args.measure and (args.achievable or args.train is not None
                       or (args.compute_share, args.bandwidth_share) != (1, 1)),
     "--measure fits the share of the peak, and costs no training"),
  ):  # fmt: skip
    if wrong:
      line.error(message)
  return outcome.exit_code(PROG, lambda: run(args, Console()), "nothing was written")


def run(args: argparse.Namespace, console: Console) -> None:
  """Prints and draws what was asked for."""
  if args.chips:
    console.print(chip_table())
  if args.memory:
    console.print(memory_table(args.tokens or 1000))
  if args.network is None:
    return
  picture = measured(args) if args.measure else bounded(args)
  if args.picture:
    files.write_atomically(args.picture, canvas.png(picture))
    print(f"wrote {args.picture}")


def measured(args: argparse.Namespace) -> Figure:
  """Prints predicted against measured times; returns them as a scatter."""
  found = measure.compare(
    args.network, NETWORKS[args.network](args.batch, args.tokens or 1024),
    chip=chips.CHIPS[args.chip]() if args.chip else None,
    format=args.activations, largest=args.largest,
  )  # fmt: skip
  print(found.table())
  return measure.figure(found)


def bounded(args: argparse.Namespace) -> Figure:
  """Prints the roofline, the memory and what training costs; returns the picture."""
  key = args.chip or "h100"
  sold = chip = chips.CHIPS[key]()
  work = workload(args.network, args.batch, args.tokens or 1024)
  if args.achievable:
    right = {args.weights if g.rhs else args.activations for g in work.gemms}
    chip = chips.achievable(key, {chip.unit(args.activations, x) for x in right})
  found = roofline.roofline(
    work, chip, weights=args.weights, activations=args.activations,
    compute_share=args.compute_share, bandwidth_share=args.bandwidth_share,
  )  # fmt: skip
  print(found.table())
  if args.achievable:
    print("peaks are what products reached in public measurements")
  weights = work.parameters * chips.BITS[args.weights] / 8
  memory = float(np.asarray(chip.memory_bytes))
  room = "fit" if weights <= memory else "do not fit"
  print(f"{weights / 1e9:.2f} GB of weights {room} {memory / 1e9:.0f} GB")
  if args.train is not None:
    print(training(args, work, sold))
  title = f"{args.network} on {chip.name}, {args.weights} weights"
  return roofline_figure.figure(found, title)


def training(args: argparse.Namespace, work: Workload, chip: chips.Chip) -> str:
  """What training costs, and what was counted."""
  what, samples = "an image", args.batch
  if args.network in LANGUAGE:
    what, samples = "a token", args.batch * (args.tokens or 1024)
  each = roofline.training_operations(work, samples)
  counted = "6 a multiply-accumulate of the traced forward pass"
  if args.network in LANGUAGE:
    counted += f" at {args.tokens or 1024:,} tokens of context"
  if args.by_parameters:
    each = roofline.language_operations(work.parameters)
    counted = f"6 for each of {work.parameters:,} parameters, attention left out"
  cost = roofline.training_cost(
    each, args.train, chip, chips=args.number, precision=args.activations,
    utilization=args.utilization, dollars_per_hour=args.dollars,
  )  # fmt: skip
  return (
    f"training on {args.train:.4g} {what.split()[1]}s at {args.utilization:.0%} of the "
    f"{args.activations} peak: {each:.4g} operations {what} ({counted}), "
    f"{cost.operations:.4g} in all, {cost.chip_hours:,.2f} chip-hours, "
    f"{cost.days:,.2f} days on {args.number:,} chips, ${cost.dollars:,.2f}"
  )


if __name__ == "__main__":
  raise SystemExit(main(sys.argv[1:]))
