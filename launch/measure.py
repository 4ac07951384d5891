"""Predicted against measured time of products and of a network, on this jax backend.

A roofline is calibrated by one number a format, the share of the peak that products
reach. It is fitted to products of spread sizes; the network's time is predicted with
it and takes no part in the fit.
"""

from collections.abc import Callable
from functools import partial
import math
import os
import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np

from jaxcodesign.figures import canvas
from jaxcodesign.hardware.machines.chips import Chip
from jaxcodesign.hardware.pricing import roofline
from jaxcodesign.models import published
from jaxcodesign.programs.workload import Workload, trace
from launch import timing

DTYPES = {"fp32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}
REPETITIONS = 11
# A repetition is as many calls in a row, so that what Python adds to a call is hidden.
_REPETITION_S, _MOST_CALLS = 0.02, 32

Shape = tuple[int, int, int]  # m, k, n


class Comparison(NamedTuple):
  """Times of products and of a network.

  Attributes:
    chip: What predicted.
    format: Of all operands.
    network: Its name.
    shapes: (m, k, n) of the products.
    compute_share: Of the chip's peak, fitted to the products.
    compute_bound: Whether the prediction is bound by compute, [products].
    predicted_s: [products + 1], the network last.
    measured_s: [products + 1], medians.
  """

  chip: Chip
  format: str
  network: str
  shapes: list[Shape]
  compute_share: float
  compute_bound: np.ndarray
  predicted_s: np.ndarray
  measured_s: np.ndarray

  @property
  def errors(self) -> np.ndarray:
    """Predicted over measured time, less 1; [products + 1]."""
    return self.predicted_s / self.measured_s - 1

  @property
  def mean_error(self) -> float:
    """Mean of the sizes of the products' errors."""
    return float(np.mean(np.abs(self.errors[:-1])))

  def table(self) -> str:
    """A line for each product, the network, and the fit."""
    lines = [f"{'m x k x n':24} {'predicted us':>13} {'measured us':>13} {'error':>8}"]
    names = [" x ".join(map(str, shape)) for shape in self.shapes] + [self.network]
    rows = zip(names, self.predicted_s, self.measured_s, self.errors)
    lines += [
      f"{n:24} {p * 1e6:13.2f} {m * 1e6:13.2f} {e:+8.1%}" for n, p, m, e in rows
    ]
    device = jax.devices()[0]
    return "\n".join([
      *lines,
      f"measured on {device.platform} ({device.device_kind}), predicted for "
      f"{self.chip.name} in {self.format} with {self.compute_share:.4g} of its peak",
      f"mean error {self.mean_error:.1%} over {len(self.shapes)} products, "
      f"{self.errors[-1]:+.1%} for {self.network}, which was not fitted",
    ])  # fmt: skip


def compare(
  network: str,
  model: published.Model,
  *,
  chip: Chip | None = None,
  format: str = "bf16",
  largest: int | None = None,
) -> Comparison:
  """Times products and a network's forward pass, and predicts both.

  Args:
    network: Name of `model`.
    model: The network; its parameters are drawn and cast to `format`.
    chip: What predicts. None is this device with the peak that the best product and
      the bandwidth that a streaming pass reached.
    format: "fp32", "bf16" or "fp16", of all operands.
    largest: Side of the largest square product, at least 8; 8192 by default, on a
      CPU 1024.

  Raises:
    ValueError: If the format is not one that jax multiplies, the chip has no units for
      it, `largest` is below 8, or the network does not fit or does not run in it.
  """
  if format not in DTYPES:
    raise ValueError(f"format {format!r} cannot be timed, only {', '.join(DTYPES)}")
  if chip is not None:
    chip.unit(format, format)
  on_cpu = jax.default_backend() == "cpu"
  shapes = spread(largest or (1024 if on_cpu else 8192))
  bound = partial(roofline.roofline, weights=format, activations=format)
  # By default a GPU rounds fp32 operands to fewer bits (TF32).
  precision = "highest" if format == "fp32" else None
  with jax.default_matmul_precision(precision):
    forward = _forward(network, model, format)
    measured = [_product_s(shape, DTYPES[format]) for shape in shapes]
    chip = chip or _this_device(shapes, measured, format)
    measured = np.asarray([*measured, _median_s(forward)])
  work = Workload(tuple(g for shape in shapes for g in _product(shape).gemms))
  found = bound(work, chip)
  share = fit(found.compute_s, found.memory_s, measured[:-1])
  whole = bound(trace(model.fn)(model.params, model.inputs), chip, compute_share=share)
  compute_s = found.compute_s / share
  products_s = np.maximum(compute_s, found.memory_s)
  predicted = np.asarray([*products_s, whole.time_s])
  slower = compute_s >= found.memory_s
  return Comparison(chip, format, network, shapes, share, slower, predicted, measured)


def spread(largest: int) -> list[Shape]:
  """20 products: square, wide, flat and thin of five sides, down to half of `largest`.

  The thin have few rows, as a network that generates text: memory bounds them.
  """
  if largest < 8:
    raise ValueError(f"largest={largest}: the largest product has a side of 8 or more")
  shapes = []
  for eighths in (8, 7, 6, 5, 4):
    side = largest * eighths // 8
    shapes += [
      (side, side, side),
      (side, side // 4, 4 * side),
      (side // 4, side, side),
      (max(1, side // 256), 2 * side, 2 * side),
    ]
  return shapes


def fit(compute_s: np.ndarray, memory_s: np.ndarray, measured_s: np.ndarray) -> float:
  """The share of the peak, at most 1, whose predictions have the least mean error.

  A prediction max(compute_s / share, memory_s) is piecewise linear in 1 / share, and so
  is the mean of |predicted / measured - 1|: its minimum is at one of the kinks.
  """
  kinks = np.concatenate([measured_s / compute_s, memory_s / compute_s, [1.0]])
  kinks = np.sort(kinks[kinks >= 1])
  predicted = np.maximum(kinks[:, None] * compute_s, memory_s)
  errors = np.mean(np.abs(predicted / measured_s - 1), axis=1)
  return float(1 / kinks[np.argmin(errors)])


def figure(found: Comparison) -> Figure:
  """Measured over predicted time, both logarithmic; the diagonal is a right answer."""
  picture = canvas.blank(5.6, 5.0)
  axes = picture.add_subplot()
  canvas.style(axes, xlabel="predicted, us", ylabel="measured, us")
  x, y = found.predicted_s * 1e6, found.measured_s * 1e6
  ends = [min(x.min(), y.min()) / 1.5, max(x.max(), y.max()) * 1.5]
  axes.loglog(ends, ends, color=canvas.MUTED, lw=1, zorder=1)
  for mask, colour, name in (
    (found.compute_bound, canvas.COLOURS[0], "products bound by compute"),
    (~found.compute_bound, canvas.COLOURS[1], "products bound by memory"),
  ):
    axes.scatter(x[:-1][mask], y[:-1][mask], 34, colour, lw=0, alpha=0.75, label=name)
  axes.scatter(x[-1:], y[-1:], 60, canvas.COLOURS[2], marker="D", label=found.network)
  axes.legend(loc="upper left", frameon=False, fontsize=8.5)
  axes.set_title(
    f"{found.chip.name}, {found.format}: mean error {found.mean_error:.1%} at "
    f"{found.compute_share:.3g} of the peak", fontsize=10, loc="left",
  )  # fmt: skip
  return picture


def _product(shape: Shape) -> Workload:
  m, k, n = shape
  array = lambda *size: jax.ShapeDtypeStruct(size, jnp.float32)
  return trace(lambda b, a: a @ b)(array(k, n), array(m, k))


def _product_s(shape: Shape, dtype: Any) -> float:
  m, k, n = shape
  # Noise, as a GPU's clock follows the data; from the host, as draws would compile.
  noise = np.random.default_rng(0).standard_normal(65521).astype(dtype)
  a, b = (jnp.asarray(np.resize(noise, size)) for size in ((m, k), (k, n)))
  multiply = jax.jit(jnp.matmul)
  return _median_s(lambda: multiply(a, b))


def _forward(
  network: str, model: published.Model, format: str
) -> Callable[[], jax.Array]:
  """The jitted forward pass on drawn parameters and inputs, nothing left to pass."""
  drawn = 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.params))
  if drawn > _memory_bytes():
    raise ValueError(
      f"{network} draws {drawn / 1e9:.0f} GB of float32 parameters, this device has "
      f"{_memory_bytes() / 1e9:.0f} GB: measure a smaller one"
    )
  cast = lambda x: (
    x.astype(DTYPES[format]) if jnp.issubdtype(x.dtype, jnp.floating) else x
  )
  shape = model.inputs
  inputs = jnp.zeros(shape.shape, shape.dtype)
  if jnp.issubdtype(shape.dtype, jnp.floating):
    inputs = jax.random.normal(jax.random.key(0), shape.shape, DTYPES[format])
  params = jax.tree.map(cast, model.init(jax.random.key(1)))
  try:
    jax.eval_shape(model.fn, params, inputs)
  except TypeError as error:
    raise ValueError(
      f"{network} keeps no {format} from end to end, measure it in fp32: {error}"
    ) from error
  run = jax.jit(model.fn)
  return lambda: run(params, inputs)


def _median_s(call: Callable[[], jax.Array]) -> float:
  """Seconds of a warm call, the median of REPETITIONS."""
  jax.block_until_ready(call())
  once = timing.seconds(call, 1)[0]
  calls = max(1, min(_MOST_CALLS, round(_REPETITION_S / once)))

  def repetition() -> jax.Array:
    for _ in range(calls - 1):
      call()
    return call()

  return statistics.median(timing.seconds(repetition, REPETITIONS)) / calls


def _this_device(shapes: list[Shape], measured: list[float], format: str) -> Chip:
  side = shapes[0][0]
  x = jnp.ones((4 * side, 4 * side), DTYPES[format])
  stream = jax.jit(lambda x: x + 1)
  bandwidth = 2 * x.nbytes / _median_s(lambda: stream(x))
  peak = max(2 * math.prod(shape) / s for shape, s in zip(shapes, measured))
  name = f"this {jax.devices()[0].device_kind}"
  memory = float(_memory_bytes())
  return Chip(name, "measured here", (), {format: peak}, bandwidth, memory)


def _memory_bytes() -> int:
  limits = jax.devices()[0].memory_stats() or {}
  host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return limits.get("bytes_limit", host)
