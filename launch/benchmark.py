"""Measures speed as ratios, each against its floor in the same process.

  python -m launch.benchmark              all, as a table
  python -m launch.benchmark --json       one JSON object a line
  python -m launch.benchmark trace cost   only the groups named
  python -m launch.benchmark --one-core hardware   what one core does
  python -m launch.benchmark exactness --shapes 2000   mismatches with published tools
  python -m launch.benchmark device       steps and MFU on this chip, no ratios

A machine's seconds change from hour to hour; a ratio to work done beside it does not.
Each number is the median of several repetitions, its floor measured in between.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import json
import os
import statistics
import sys
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxcodesign import models
from jaxcodesign.hardware.machines import presets
from jaxcodesign.hardware.pricing import cost
from jaxcodesign.models import published
from jaxcodesign.programs.workload import trace
from launch.benchmark_combining import combining
from launch.benchmark_device import device
from launch.benchmark_exactness import exactness
from launch.benchmark_faults import faults
from launch.benchmark_hardware import hardware
from launch.benchmark_launcher import launcher
from launch.benchmark_numerics import numerics
from launch.benchmark_sparsity import sparsity
from launch.benchmark_training import training
from launch.timing import Measurement, ratio, seconds


def tracing() -> Iterator[Measurement]:
  """Tracer time over that of jax.make_jaxpr, jax's caches cleared before each."""
  for name, (fn, params, *inputs) in programs().items():

    def traced(fn=fn, params=params, inputs=inputs):
      jax.clear_caches()
      return trace(fn)(params, *inputs).macs

    def jaxpr(fn=fn, params=params, inputs=inputs):
      jax.clear_caches()
      return len(jax.make_jaxpr(fn)(params, *inputs).eqns)

    value, taken = ratio(traced, jaxpr, 5)
    target = "< 2 s" if "equations" in name else "< 1 s more"
    yield Measurement(f"trace {name}", value, "x", "jax.make_jaxpr", target, taken)


def programs() -> dict[str, tuple[Any, ...]]:
  """Functions with shapes of their parameters and inputs; GPT-2 scans its layers."""
  cnn = models.Cnn(channels=(16, 32, 64), hidden=128)
  params = jax.eval_shape(lambda: cnn.init(jax.random.key(0), (28, 28, 1), 10))
  matrix = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  return {
    "CNN": (cnn.apply, params, jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)),
    "VGG-16": tuple(published.vgg16()),
    "MobileNet": tuple(published.mobilenet()),
    "GPT-2 XL": tuple(published.gpt2(published.GPT2_XL)),
    "10,000 equations": (chain, matrix, matrix),
  }


def chain(w: jax.Array, x: jax.Array) -> jax.Array:
  """A jaxpr of 10,000 equations."""
  for _ in range(5_000):
    x = jnp.tanh(x @ w)
  return x


def pricing(designs: int = 100_000) -> Iterator[Measurement]:
  """Throughput of evaluate over designs, and the cost of its gradient."""
  fn, params, *inputs = published.vgg16()
  work = trace(fn)(params, *inputs)
  layers = len(work.gemms)
  machine = presets.int8_45nm()
  spread = jax.random.uniform(jax.random.key(0), (designs,), minval=0.5, maxval=2.0)
  many = jax.tree.map(lambda leaf: leaf * spread, machine)
  edp = lambda a: cost.evaluate(work, a).edp_js
  forward = jax.jit(jax.vmap(edp))
  backward = jax.jit(jax.vmap(jax.value_and_grad(edp)))
  hot = dataclasses.replace(many, temperature=jnp.full((designs,), 0.2))
  taken = statistics.median(seconds(lambda: forward(many), 7))
  yield Measurement(
    "evaluate, designs x layers",
    designs * layers / taken / 1e6,
    "M/s",
    f"{designs:,} designs, VGG-16",
    "",
    taken,
  )
  copy = jax.jit(lambda a: jax.tree.map(lambda leaf: leaf * 1.5, a))
  value, taken = ratio(lambda: forward(many), lambda: copy(many))
  yield Measurement("evaluate, time", value, "x", "copying the designs", "", taken)
  for name, point in (("exact", many), ("smooth", hot)):
    value, taken = ratio(lambda p=point: backward(p), lambda p=point: forward(p))
    yield Measurement(
      f"gradient of evaluate, {name}", value, "x", "its forward pass", "<= 5 x", taken
    )


GROUPS = {
  "trace": tracing,
  "cost": pricing,
  "hardware": hardware,
  "exactness": exactness,
  "numerics": numerics,
  "sparsity": sparsity,
  "combining": combining,
  "training": training,
  "faults": faults,
  "launcher": launcher,
  "device": device,
}


def main(argv: list[str]) -> int:
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m launch.benchmark",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}; all if none")
  parser.add_argument("--json", action="store_true", help="one JSON object a line only")
  parser.add_argument("--shapes", type=int, default=100,
                      help="random products of exactness, default 100")  # fmt: skip
  parser.add_argument("--one-core", action="store_true", help="use a single core")
  args = parser.parse_args(argv)
  for name in args.groups:
    if name not in GROUPS:
      parser.error(f"no group {name!r}; there are {', '.join(GROUPS)}")
  if args.one_core:  # before the first computation makes its threads
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  console = Console(stderr=True)
  table = Table("what", "measured", "against", "target", title=f"jax {jax.__version__}")
  for name, group in GROUPS.items():
    if args.groups and name not in args.groups:
      continue
    with console.status(f"measuring {name}"):
      options = {"shapes": args.shapes} if name == "exactness" else {}
      for found in group(**options):
        print(json.dumps(found._asdict() | {"jax": jax.__version__}), flush=True)
        value = f"{found.value:.3g} {found.unit} ({found.seconds:.2g} s)"
        table.add_row(found.name, value, found.floor, found.target)
  if not args.json:
    Console().print(table)
  return 0


if __name__ == "__main__":
  raise SystemExit(main(sys.argv[1:]))
