"""Runs a network on systolic arrays: cycles, utilization, traffic and energy a layer.

python -m launch.simulate configs/topologies/resnet18.csv
python -m launch.simulate resnet50 --array 32x32          os, ws and is side by side
python -m launch.simulate gpt2 --array ws:128x128 os:256x256 --weight-bits 4
python -m launch.simulate configs/fashion_codesign.py --csv a.csv --json a.json
python -m launch.simulate configs/topologies/resnet18.csv --verify
python -m launch.simulate resnet18 --array os:32x32 --map time --timeline tiles.png
python -m launch.simulate vgg16 --array 16x16 --picture fill.png --animation fill.gif
python -m launch.simulate mobilenet --array 128x128 --against full --kinds kinds.png

NETWORK is a config of configs/, a CSV file (a SCALE-Sim topology or a list of products,
see jaxcodesign/hardware/pricing/topology.py), or the name of a published network.
"""

import argparse
from collections.abc import Callable, Iterator
import dataclasses
import inspect
import json
from pathlib import Path
import re
import shlex
import sys
import time
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from jaxcodesign.data import image_sets
from jaxcodesign.experiments import codesign, sweep
from jaxcodesign.figures import layers as layer_tables
from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.machines.spec import Accelerator, Accounting, Dataflow
from jaxcodesign.hardware.mapping import schedule
from jaxcodesign.hardware.mapping.tilings import Objective
from jaxcodesign.hardware.pricing import layers, topology, verify
from jaxcodesign.numerics.formats.fixed import Fixed
from jaxcodesign.programs.precision import Policy, Rule
from jaxcodesign.programs.workload import Workload
from jaxcodesign.runs import command_line, origin
from launch import outcome, roofline, simulate_kinds
from launch.simulate_pictures import draw, write

PROG = "python -m launch.simulate"


def whole_machines() -> dict[str, Callable[[], Accelerator]]:
  """The functions of `presets` that need no argument, by name."""
  found = {}
  for name, make in inspect.getmembers(presets, inspect.isfunction):
    how = inspect.signature(make)
    ready = all(p.default is not p.empty for p in how.parameters.values())
    if ready and how.return_annotation is Accelerator and not name.startswith("_"):
      found[name] = make
  return found


PRESETS = whole_machines()


def parser() -> argparse.ArgumentParser:
  """The command line."""
  found = argparse.ArgumentParser(
    prog=PROG,
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog=f"published networks: {', '.join(roofline.NETWORKS)}",
  )
  add = found.add_argument
  add("network", metavar="NETWORK", help="config, CSV file or published network")
  add("--array", nargs="+", type=arrays, metavar="[FLOW:]RxC", default=[],
      help="dataflow os, ws or is, rows and columns; without a dataflow all three; "
           "default: the preset's own")  # fmt: skip
  add("--preset", default="int8_45nm", choices=PRESETS, help="default int8_45nm")
  add("--accounting", default="rtl", choices=get_args(Accounting),
      help="which cycles of a fold count, default rtl")  # fmt: skip
  add("--weight-bits", type=int, help="integers for weights; default: the cell's")
  add("--activation-bits", type=int, help="integers for activations")
  add("--batch", type=int, help="images or texts at once, of a published network")
  add("--tokens", type=int, help="of a published language model, default 1024")
  add("--smoke", action="store_true", help="the config's smoke() instead of config()")
  add("--csv", type=Path, help="file to write: a line for each layer and array")
  add("--json", type=Path, help="file to write: layers, totals, versions, command")
  add("--picture", type=Path, help="film strip of the array to write, PNG")
  add("--animation", type=Path, nargs="+", default=[], help="to write, GIF or HTML")
  add("--layer", help="of pictures; default: the one with most cycles")
  add("--verify", action="store_true", help="run the cycle-level array beside it all")
  add("--tiles", choices=("all", "distinct"),
      help="what --verify runs: all tiles, or one of each shape; default: the whole "
           "layer at once where that takes about a second, else distinct")  # fmt: skip
  add("--map", choices=get_args(Objective), metavar="FOR",
      help="search the best tiles and loop order of each layer for time, energy, edp "
           "or dram, and simulate them through DRAM and buffers")  # fmt: skip
  add("--timeline", type=Path, help="picture of the mapped layer's tiles, PNG")
  add(
    "--against",
    metavar="TWIN",
    help='"full": mobilenet beside the network with full convolutions',
  )
  add("--kinds", type=Path, help="shares of kinds of layers to draw, PNG")
  add("--dry-run", action="store_true", help="say what would be run and written")
  return found


def arrays(text: str) -> list[tuple[Dataflow, int, int]]:
  """What "os:32x32" or "32x32" stands for."""
  flows: tuple[Dataflow, ...] = get_args(Dataflow)
  size = "0*[1-9][0-9]{0,5}"
  match = re.fullmatch(rf"(?:({'|'.join(flows)}):)?({size})x({size})", text)
  if not match:
    raise argparse.ArgumentTypeError(
      f"{text!r} is no array: write os:32x32, ws:16x64 or 32x32"
    )
  rows, cols = int(match[2]), int(match[3])
  return [(flow, rows, cols) for flow in flows if match[1] in (None, flow)]


def main(argv: list[str]) -> int:
  """Runs the program; returns its exit code."""
  line = parser()
  args = line.parse_args(argv)
  console = Console()

  def program() -> None:
    try:
      check(args)
      work, other = network(args), simulate_kinds.twin(args)
    except command_line.ConfigError as error:
      line.error(str(error))
    machines = build(args)
    if args.dry_run:
      dry_run(args, work, machines, console)
    else:
      command = shlex.join([*PROG.split(), *argv])
      run(args, command, work, other, machines, console)

  return outcome.exit_code(PROG, program, "nothing half-written is left")


def check(args: argparse.Namespace) -> None:
  """Refuses before any work what would do nothing, or could not be written after it."""
  pictures = args.picture or args.animation or args.timeline
  for option, idle, needs in (
    ("--tiles", args.tiles and not args.verify, "--verify"),
    ("--layer", args.layer and not pictures, "a picture"),
    ("--timeline", args.timeline and not args.map, "--map"),
    ("--smoke", args.smoke and Path(args.network).suffix != ".py", "a config"),
  ):
    if idle:
      raise command_line.ConfigError(f"{option} does nothing without {needs}")
  if args.map and (args.weight_bits or args.activation_bits):
    raise command_line.ConfigError(
      "--map moves operands as wide as the cell: leave out --weight-bits and "
      "--activation-bits, or choose another --preset"
    )
  wanted = [
    (args.picture, (".png",)),
    (args.timeline, (".png",)),
    (args.kinds, (".png",)),
    *((f, (".gif", ".html")) for f in args.animation),
  ]
  for file, kinds in wanted:
    if file and file.suffix.lower() not in kinds:
      raise command_line.ConfigError(
        f"{file}: write a file ending in {' or '.join(kinds)}"
      )
  for file in outputs(args):
    if file.is_dir() or not file.parent.is_dir():
      raise OSError(f"cannot write {file}: name a file in a folder that is there")


def outputs(args: argparse.Namespace) -> list[Path]:
  """The files to write."""
  files = (args.csv, args.json, args.picture, args.timeline, args.kinds)
  return [f for f in (*files, *args.animation) if f]


def network(args: argparse.Namespace) -> Workload:
  """The products of NETWORK."""
  path, published = Path(args.network), args.network in roofline.NETWORKS
  if not published and (args.batch, args.tokens) != (None, None):
    raise command_line.ConfigError("--batch and --tokens are for published networks")
  if published:
    sizes = [1 if args.batch is None else args.batch,
             1024 if args.tokens is None else args.tokens]  # fmt: skip
    if min(sizes) < 1:
      raise command_line.ConfigError("--batch and --tokens are at least 1")
    return roofline.workload(args.network, *sizes)
  if path.suffix == ".py":
    module = command_line.load(path)
    config = module.smoke() if args.smoke else module.config()
    if isinstance(config, sweep.SweepConfig):
      return config.network.workload(config.network.load())
    if isinstance(config, codesign.CodesignConfig):
      return codesign.workload(config, image_sets.check(config.data.load()))
    raise command_line.ConfigError(f"{path} describes no network: {type(config)}")
  if path.is_file():
    return topology.read(path)
  raise command_line.ConfigError(
    f"there is no file {path} and no published network of that name; there are "
    f"{', '.join(roofline.NETWORKS)}, configs/*.py and configs/topologies/*.csv"
  )


def build(args: argparse.Namespace) -> list[Accelerator]:
  """The preset in every size and dataflow asked for."""
  base = dataclasses.replace(PRESETS[args.preset](), accounting=args.accounting)
  chosen = [one for many in args.array for one in many]
  if not chosen:
    return [base]
  return [
    dataclasses.replace(base, dataflow=flow, rows=float(rows), cols=float(cols))
    for flow, rows, cols in dict.fromkeys(chosen)
  ]


def policy(args: argparse.Namespace) -> Policy:
  """Integers of the widths asked for."""
  weight, data = args.weight_bits, args.activation_bits
  if weight is None and data is None:
    return ()
  fixed = lambda bits: None if bits is None else Fixed(bits)
  return (Rule("*", fixed(weight), fixed(data)),)


def run(
  args: argparse.Namespace,
  command: str,
  work: Workload,
  other: Workload | None,
  machines: list[Accelerator],
  console: Console,
) -> None:
  """Prices, prints, verifies, draws and writes."""
  found = [layers.price(work, m, policy=policy(args)) for m in machines]
  one = len(found) == 1
  show(layer_tables.one(found[0]) if one else layer_tables.beside(found), console)
  tables, against = simulate_kinds.told(args, found, policy(args), other)
  for table in tables:
    show(table, console)
  record: dict[str, Any] = {
    "command": command,
    "versions": origin.versions(),
    "network": args.network,
    "arrays": [layers.record(priced) for priced in found],
    "against": against,
  }
  verify_and_map(args, work, found, record["arrays"], console)
  if args.csv:
    write(args.csv, layers.table(found))
  if args.json:
    write(args.json, json.dumps(record, indent=2) + "\n")
  draw(args, work, found)
  simulate_kinds.draw(args, found)
  for file in outputs(args):
    console.print(f"wrote {file}", highlight=False, soft_wrap=True)


def verify_and_map(
  args: argparse.Namespace,
  work: Workload,
  found: list[layers.Priced],
  records: list[dict[str, Any]],
  console: Console,
) -> None:
  """Simulates and searches what is asked for, prints it and adds it to the records."""
  if args.verify:
    for priced, kept in zip(found, records):
      refuse_serial(priced.machine, args)
      began = time.perf_counter()
      checked = list(verified(args, work, priced, console))
      taken = time.perf_counter() - began
      show(layer_tables.verified(checked, f"verified on {priced.name}"), console)
      console.print(
        f"{len(checked)} layers on {priced.name}: every product is a @ b.T; cycles, "
        f"reads and writes are the closed form's; {taken:.1f} s",
        highlight=False,
        soft_wrap=True,
      )
      kept["verified"] = [row._asdict() for row in checked]
  if args.map:
    for priced, kept in zip(found, records):
      rows = list(scheduled(args, work, priced, console))
      show(
        layer_tables.mapped(rows, f"mapped for {args.map} on {priced.name}"), console
      )
      kept["mapped"] = [schedule.record(row) for row in rows]


def show(table: Table, console: Console) -> None:
  """Prints a table in full width: a number cut short would be another number."""
  options = console.options.update(max_width=10_000)
  width = max(console.width, console.measure(table, options=options).maximum)
  Console(width=width, height=console.height).print(table)


def verified(
  args: argparse.Namespace,
  work: Workload,
  priced: layers.Priced,
  console: Console,
) -> Iterator[verify.Checked]:
  """Simulates layer after layer, with a bar on a terminal."""
  machine = priced.machine
  cuts, total = plan(args, work, machine)
  hidden = not console.is_terminal
  with Progress(console=console, transient=True, disable=hidden) as bar:
    task = bar.add_task("", total=total)
    for i, (g, cut) in enumerate(zip(work.gemms, cuts)):
      bar.update(task, description=f"simulating {g.name} on {priced.name}")
      step = lambda: bar.advance(task)
      yield verify.product(g, machine, cut=cut, seed=i, on_tile=step)


def scheduled(
  args: argparse.Namespace,
  work: Workload,
  priced: layers.Priced,
  console: Console,
) -> Iterator[schedule.Scheduled]:
  """Searches layer after layer, with a bar on a terminal."""
  hidden = not console.is_terminal
  with Progress(console=console, transient=True, disable=hidden) as bar:
    task = bar.add_task(f"mapping on {priced.name}", total=len(work.gemms))
    for row in schedule.schedule(work, priced.machine, objective=args.map):
      bar.advance(task)
      yield row


def plan(
  args: argparse.Namespace, work: Workload, machine: Accelerator
) -> tuple[list[verify.Tiles], int]:
  """How each layer is cut, and how many tiles are simulated."""
  cuts: list[verify.Tiles] = [args.tiles or verify.how(g, machine) for g in work.gemms]
  return cuts, sum(verify.count(g, machine, cut) for g, cut in zip(work.gemms, cuts))


def refuse_serial(machine: Accelerator, args: argparse.Namespace) -> None:
  """The cycle-level array takes a cycle for a multiply-accumulate."""
  mac = machine.mac
  wide = [
    bits is not None and bits > float(np.asarray(native))
    for bits, native in (
      (args.weight_bits, mac.weight_bits),
      (args.activation_bits, mac.activation_bits),
    )
  ]
  if mac.kind != "parallel" or any(wide):
    raise ValueError(
      f"--verify: cells of {args.preset} take more than a cycle for a multiplication "
      "here, and the cycle-level array takes one; use int8_45nm and at most 8 bits"
    )


def dry_run(
  args: argparse.Namespace,
  work: Workload,
  machines: list[Accelerator],
  console: Console,
) -> None:
  """Prints the products, the arrays and the files; runs and writes nothing."""
  told = lambda text: console.print(text, highlight=False, soft_wrap=True)
  told(work.table() + "\n")
  for machine in machines:
    rows, cols = verify.array(machine)
    told(f"{machine.dataflow}, {rows} x {cols} cells of {args.preset}")
    if args.verify:
      refuse_serial(machine, args)
      cuts, tiles = plan(args, work, machine)
      told(f"  would simulate {tiles:,} tiles of {len(cuts)} layers")
  for file in outputs(args):
    told(f"would write {file}")


if __name__ == "__main__":
  raise SystemExit(main(sys.argv[1:]))
