"""How much dearer than copying an array it is to round it, and to pack it.

The floor is a jitted copy of the same float32 array into a fresh buffer, as every
rounding allocates one too; the two run in turns and the median of the paired ratios
is reported. A stochastic rounding is measured against its nearest twin.
"""

from collections.abc import Callable, Iterator
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from jaxcodesign.numerics import formats

Row = tuple[str, float, str, str, str, float]

FORMATS: dict[str, tuple[formats.Format, float]] = {
  "int8": (formats.Fixed(8), 1.5),
  "int4 in groups of 32": (formats.Fixed(4, 32), 1.5),
  "e4m3": (formats.E4M3, 1.5),
  "BFP 4 bit in blocks of 16": (formats.BlockFloat(4), 1.5),
  "logarithmic 4 bit": (formats.Logarithmic(4), 1.5),
  "MXFP8": (formats.MXFP8_E4M3, 2.3),
  "MXFP4": (formats.MXFP4, 2.3),
  "MXINT8": (formats.MXINT8, 2.3),
  "NVFP4": (formats.NVFP4, 2.3),
  "TQ 8 bit, 12 of 8": (formats.Terms(12), 20.0),
}


def numerics(sizes: tuple[int, ...] = (1024, 4096)) -> Iterator[Row]:
  """Yields (name, value, unit, floor, target, seconds), one measurement each.

  Args:
    sizes: Sides of the square float32 arrays.
  """
  for size in sizes:
    x = jax.random.normal(jax.random.key(0), (size, size))
    for name, (fmt, most) in FORMATS.items():
      yield from _measured(f"{name}, {size}^2", fmt, x, most)


def _measured(
  title: str, fmt: formats.Format, x: jax.Array, most: float
) -> Iterator[Row]:
  key = jax.random.key(1)
  copy = jax.jit(jnp.copy)
  nearest = jax.jit(lambda fmt, x: fmt.quantize(x))
  noisy = jax.jit(lambda fmt, x, key: fmt.quantize(x, key))
  pack = jax.jit(fmt.pack)  # the format closed over: a traced mantissa has no storage
  value, took = ratio(lambda: nearest(fmt, x), lambda: copy(x))
  yield f"nearest {title}", value, "x", "fresh copy", f"<= {most}", took
  value, took = ratio(lambda: noisy(fmt, x, key), lambda: nearest(fmt, x))
  yield f"stochastic {title}", value, "x", "its nearest twin", "<= 1.5", took
  value, took = ratio(lambda: pack(x), lambda: copy(x))
  yield f"pack {title}", value, "x", "fresh copy", f"<= {max(most, 3.0)}", took


def ratio(
  run: Callable[[], Any], floor: Callable[[], Any], repetitions: int = 9
) -> tuple[float, float]:
  """Median ratio of paired runs, after one each, and the median seconds of `run`."""
  for warm in (run, floor):
    _seconds(warm)
  pairs = [(_seconds(run), _seconds(floor)) for _ in range(repetitions)]
  return (
    statistics.median(a / b for a, b in pairs),
    statistics.median(a for a, _ in pairs),
  )


def _seconds(run: Callable[[], Any]) -> float:
  began = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - began
