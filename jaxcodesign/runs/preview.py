"""What a training step will take of each device, found without running it.

The step is compiled for a mesh of CPU devices, of which a host has as many as asked,
from shapes alone. Where libtpu is installed a step for a TPU is compiled by the TPU's
own compiler as well, which needs no TPU, and its memory is that of the chip.
"""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import importlib.util
import math
import re
from typing import Any, Literal, get_args

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
import numpy as np
from rich.table import Table

from jaxcodesign.hardware.machines import chips
from jaxcodesign.hardware.pricing.roofline import roofline
from jaxcodesign.programs.jaxprs import Unsupported
from jaxcodesign.programs.workload import Workload, trace

Platform = Literal["cpu", "cuda", "tpu"]
Built = tuple[Any, Any, tuple[Any, ...]]  # jitted step, state, the rest of arguments

CHIP: dict[Platform, str] = {"cuda": "h100", "tpu": "tpu_v5e"}
_MOVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_FORMATS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
# libtpu's name of a generation, and the axes of its network.
_TOPOLOGIES = {
  "tpu_v4": ("v4", 3), "tpu_v5e": ("v5e", 2), "tpu_v5p": ("v5p", 3),
  "tpu_v6e": ("v6e", 2),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one device, as the compiler planned them.

  Attributes:
    compiler: Platform of the compiler that planned.
    argument: What goes in: the state and a batch.
    output: What comes out.
    alias: Of the output, what lies in the place of a donated argument.
    temp: Everything between.
    peak: At the worst moment; the sum of the above, less alias, where the compiler does
      not tell.
  """

  compiler: str
  argument: int
  output: int
  alias: int
  temp: int
  peak: int


@dataclasses.dataclass(frozen=True)
class Preview:
  """A step that was compiled and not run; bytes are those of one device.

  Attributes:
    platform: That the step was lowered for.
    devices: Sizes of the mesh by axis.
    argument_bytes: The arguments' shards, counted from their shapes and shardings.
    memory: Planned by the compiler that is nearest to the platform.
    collectives: Number of each kind in the compiled text; one in a loop counts once.
    workload: The products of the step, all devices together; None if not countable.
    chip: That the time is of; None for the CPU.
    format: Of the products on the chip.
    time_s: At best: all products by their roofline, spread evenly, nothing between.
    notes: What could not be found, and why.
  """

  platform: Platform
  devices: dict[str, int]
  argument_bytes: int
  memory: Memory
  collectives: dict[str, int]
  workload: Workload | None
  chip: chips.Chip | None
  format: str
  time_s: float | None
  notes: tuple[str, ...]

  @property
  def macs(self) -> int | None:
    """Multiplications of a step, all devices together."""
    return self.workload.macs if self.workload else None

  @property
  def flops(self) -> int | None:
    """Operations of its matrix products, 2 a multiplication."""
    return 2 * self.workload.macs if self.workload else None

  @property
  def fits(self) -> bool | None:
    """Whether a device of the chip holds the peak; None without a chip."""
    return self.memory.peak <= self.room if self.chip else None

  @property
  def room(self) -> float:
    """Bytes of memory of the chip, 0 without one."""
    return float(np.asarray(self.chip.memory_bytes)) if self.chip else 0.0

  def rows(self) -> list[tuple[str, str]]:
    """What was found, as (what, how much)."""
    size = " x ".join(f"{axis} {n}" for axis, n in self.devices.items())
    m, count = self.memory, math.prod(self.devices.values())
    rows = [
      ("mesh", f"{size} = {count} devices"),
      ("state and batch", f"{_binary(self.argument_bytes)} a device"),
      (
        "memory",
        f"{_binary(m.peak)} a device at the peak, by the {m.compiler} compiler",
      ),
      ("  in, out", f"{_binary(m.argument)}, {_binary(m.output)}"),
      ("  in place", f"{_binary(m.alias)} of the output"),
      ("  between", _binary(m.temp)),
      ("collectives", _counted(self.collectives)),
    ]
    if self.flops is not None:
      each = self.flops / count
      rows.append(("products", f"{self.flops:.4g} FLOP a step, {each:.4g} a device"))
    if self.chip is not None and self.time_s is not None:
      room = _binary(self.room)
      rows += [
        (
          "chip",
          f"{self.chip.name}, {room}: {'fits' if self.fits else 'DOES NOT FIT'}",
        ),
        ("step", f"at least {self.time_s * 1e3:.3g} ms by the {self.format} roofline"),
      ]
    return rows + [("note", note) for note in self.notes]

  def table(self) -> Table:
    """As a rich table."""
    table = Table("", f"one step on {self.platform}", title="dry run", box=None)
    for row in self.rows():
      table.add_row(*row)
    return table

  def __str__(self) -> str:
    return "\n".join(f"{what:16} {told}" for what, told in self.rows())


def preview(
  step: Any,
  state: Any,
  batch: tuple[Any, ...],
  *,
  mesh: Mesh,
  platform: Platform = "cpu",
  chip: str = "",
  loss: Callable[..., Any] | None = None,
  build: Callable[[Sequence[Any]], Built] | None = None,
) -> Preview:
  """Compiles a step and tells what it takes.

  Args:
    step: The jitted (state, *batch) -> anything.
    state: ShapeDtypeStructs with shardings on `mesh`.
    batch: The other arguments, the same.
    mesh: Of CPU devices; `distributed.require_devices` makes a host have enough.
    platform: To lower for as well.
    chip: One of `chips.CHIPS`; "" is the H100 for "cuda", the TPU v5e for "tpu".
    loss: (state.params, batch[0]) -> something with a scalar `loss`. Its gradient is
      counted instead where the step itself cannot be.
    build: (devices) -> step, state and batch on a mesh of these: the chips of a TPU
      that is not there, for its own compiler. Without it, and without libtpu, memory
      and collectives are the CPU compiler's.

  Raises:
    ValueError: If platform or chip are none.
    Exception: What compiling, or lowering for the platform, raises.
  """
  if platform not in get_args(Platform):
    raise ValueError(f"platform={platform!r} is none of {get_args(Platform)}")
  chip = chip or CHIP.get(platform, "")
  if chip and chip not in chips.CHIPS:
    raise ValueError(f"chip={chip!r} is none of {', '.join(chips.CHIPS)}")
  traced = step.trace(state, *batch)
  here = str(mesh.devices.flat[0].platform).replace("gpu", "cuda")
  compiled, notes = None, []
  if platform not in ("cpu", here):
    traced.lower(lowering_platforms=(platform,))
    compiled, why = _compiled_ahead(platform, chip, build, mesh.size)
    if compiled is None:
      notes = [f"memory and collectives are those of the {here} compiler: {why}"]
  maker = platform
  if compiled is None:
    compiled, maker = traced.lower().compile(), here
  work, told = _workload(step, state, batch, loss)
  format, seconds, untimed = _time(work, chip, mesh.size)
  return Preview(
    platform=platform,
    devices=dict(mesh.shape),
    argument_bytes=sum(_shard_bytes(x) for x in jax.tree.leaves((state, batch))),
    memory=_memory(compiled, maker),
    collectives=collectives(compiled.as_text()),
    workload=work,
    chip=chips.CHIPS[chip]() if chip else None,
    format=format,
    time_s=seconds,
    notes=(*notes, *told, *untimed),
  )


def collectives(text: str) -> dict[str, int]:
  """How many collectives of each kind stand in a compiled program's text."""
  return dict(collections.Counter(re.findall(rf"\b({_MOVES})(?:-start)?\(", text)))


def _memory(compiled: Any, maker: str) -> Memory:
  found = compiled.memory_analysis()
  argument, output = found.argument_size_in_bytes, found.output_size_in_bytes
  alias, temp = found.alias_size_in_bytes, found.temp_size_in_bytes
  planned = getattr(found, "peak_memory_in_bytes", 0)
  whole = argument + output - alias + temp
  # The CPU's compiler leaves out what lies between.
  peak = planned if planned > temp else whole
  return Memory(maker, argument, output, alias, temp, peak)


def _workload(
  step: Any, state: Any, batch: tuple[Any, ...], loss: Callable[..., Any] | None
) -> tuple[Workload | None, list[str]]:
  """The products of a step, or of the gradient of its loss; and what to say of it."""
  try:
    return trace(step, branches="max")(state, *batch), []
  except Unsupported as error:
    why = str(error)
  if loss is None:
    return None, [f"operations and time are not known: {why}"]
  gradient = jax.grad(lambda params, batch: loss(params, batch).loss)
  try:
    work = trace(gradient, branches="max")(state.params, batch[0])
  except Unsupported as error:
    return None, [f"operations and time are not known: {error}"]
  return work, [f"operations are those of the loss and its gradient alone: {why}"]


def _time(
  work: Workload | None, chip: str, count: int
) -> tuple[str, float | None, list[str]]:
  """Format and seconds of the products on so many chips; and what to say of it."""
  if work is None or not chip or not work.macs:
    return "", None, []
  by_type = collections.Counter[str]()
  for gemm in work.gemms:
    by_type[gemm.dtype] += gemm.macs
  widest = by_type.most_common(1)[0][0]
  wanted = _FORMATS.get(widest, widest)
  made, notes = chips.CHIPS[chip](), []
  used = wanted
  if wanted == "fp32" and wanted not in made.peak_op_s and "bf16" in made.peak_op_s:
    used = "bf16"
    notes = [f"{made.name} multiplies float32 in bf16 at default precision"]
  if used not in made.peak_op_s:
    return "", None, [f"time is not known: {made.name} has no units for {wanted}"]
  bound = roofline(work, made, weights=used, activations=used)
  return used, bound.time_s / count, notes


def _compiled_ahead(
  platform: Platform,
  chip: str,
  build: Callable[[Sequence[Any]], Built] | None,
  count: int,
) -> tuple[Any, str]:
  """The step as the chip's own compiler makes it; or None, and why not."""
  if platform != "tpu":
    return None, f"a {platform} program is lowered here, and compiled where its chip is"
  if build is None or importlib.util.find_spec("libtpu") is None:
    return None, "pip install libtpu, which needs no TPU, for the TPU's own"
  try:
    name = topology(chip, count)
    devices = topologies.get_topology_desc(name, platform="tpu").devices
  except (ValueError, RuntimeError, NotImplementedError) as error:
    return None, str(error).splitlines()[0]
  step, state, batch = build(devices)
  return step.trace(state, *batch).lower().compile(), ""


def topology(chip: str, count: int) -> str:
  """libtpu's name of a slice of so many chips, as nearly square as can be.

  Raises:
    ValueError: If the chip is no TPU that it knows, or the count no power of two.
  """
  if chip not in _TOPOLOGIES:
    raise ValueError(f"chip={chip!r} is none of {', '.join(_TOPOLOGIES)}")
  if count & (count - 1) or count < 1:
    raise ValueError(f"a slice of {count} TPU chips: make it a power of two")
  name, axes = _TOPOLOGIES[chip]
  doublings = count.bit_length() - 1
  sides = sorted(2 ** ((doublings + i) // axes) for i in range(axes))
  # A host of four is 2x2x1.
  sides = sides[::-1] if sides[0] == 1 else sides
  return f"{name}:{'x'.join(map(str, sides))}"


def _shard_bytes(x: Any) -> int:
  sharding, size = getattr(x, "sharding", None), getattr(x.dtype, "itemsize", 8)
  shape = (
    sharding.shard_shape(x.shape) if isinstance(sharding, NamedSharding) else x.shape
  )
  return math.prod(shape) * size


def _counted(found: dict[str, int]) -> str:
  return ", ".join(f"{n} {kind}" for kind, n in sorted(found.items())) or "none"


def _binary(size: float) -> str:
  power = max(int(math.log2(max(size, 1))) // 10, 0)
  return f"{size / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[power]}"
