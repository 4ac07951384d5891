"""How much dearer than copying an array it is to round it, and to pack it.

The floor is a jitted copy of the same float32 array into a fresh buffer, as every
rounding allocates one too; the two run in turns and the median of the paired ratios
is reported. A stochastic rounding is measured against its nearest twin, and where qwix
is installed, rounding to nearest against its quantize and dequantize.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import importlib.util

import jax
import jax.numpy as jnp

from jaxcodesign.numerics import formats
from launch.timing import Measurement, ratio

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


def numerics(
  sizes: Sequence[int] = (1024, 4096), names: Iterable[str] = FORMATS
) -> Iterator[Measurement]:
  """Rounding to nearest, stochastically, and packing, each format at each size.

  Args:
    sizes: Sides of the square float32 arrays.
    names: Of FORMATS.
  """
  for size in sizes:
    x = jax.random.normal(jax.random.key(0), (size, size))
    for name in names:
      fmt, most = FORMATS[name]
      yield from _measured(f"{name}, {size}^2", fmt, x, most)


def _measured(
  title: str, fmt: formats.Format, x: jax.Array, most: float
) -> Iterator[Measurement]:
  key = jax.random.key(1)
  copy = jax.jit(jnp.copy)
  nearest = jax.jit(lambda fmt, x: fmt.quantize(x))
  noisy = jax.jit(lambda fmt, x, key: fmt.quantize(x, key))
  pack = jax.jit(fmt.pack)  # the format closed over: a traced mantissa has no storage
  value, took = ratio(lambda: nearest(fmt, x), lambda: copy(x))
  yield Measurement(f"nearest {title}", value, "x", "copy", f"<= {most} x", took)
  value, took = ratio(lambda: fmt.quantize(x), lambda: nearest(fmt, x))
  yield Measurement(f"without jit {title}", value, "x", "nearest", "<= 1.5 x", took)
  value, took = ratio(lambda: noisy(fmt, x, key), lambda: nearest(fmt, x))
  yield Measurement(f"stochastic {title}", value, "x", "nearest", "<= 1.5 x", took)
  value, took = ratio(lambda: pack(x), lambda: copy(x))
  yield Measurement(f"pack {title}", value, "x", "copy", "<= 3 x", took)
  peer = _peer(title.partition(",")[0], x.shape[-1])
  if peer is not None:
    value, took = ratio(lambda: nearest(fmt, x), lambda: peer(x))
    yield Measurement(f"nearest {title}", value, "x", "qwix", "<= 1 x", took)


PEER = {
  "int8": ("int8", None),
  "int4 in groups of 32": ("int4", 32),
  "MXFP8": ("mxfp8", 32),
  "MXFP4": ("mxfp4", 32),
  "NVFP4": ("nvfp4", 16),
}


def _peer(name: str, length: int) -> Callable[[jax.Array], jax.Array] | None:
  """qwix's quantize and dequantize in the same format, where both can."""
  if name not in PEER or importlib.util.find_spec("qwix") is None:
    return None
  import qwix

  qtype, tile = PEER[name]
  if length % (tile or 1):
    return None  # it refuses what its tiles do not divide
  tiles = {} if tile is None else {1: tile}
  return jax.jit(lambda x: qwix.dequantize(qwix.quantize(x, qtype, tiled_axes=tiles)))
