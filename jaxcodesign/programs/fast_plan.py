"""The products of a network in the order of its layers, and what a step's passes cost.

An fMAC multiplies mantissas in chunks of two bits, so a product of operands with m_x
and m_y bits takes ceil(m_x / 2) * ceil(m_y / 2) passes. `fast.quantize` reports, for
every product, the bits that were chosen and the passes that followed; a `Plan` says
which row is which product, where it stands, and how many multiplications a pass makes.

Reference: Zhang, McDanel, Kung. "FAST: DNN Training Under Variable Precision Block
Floating Point with Stochastic Rounding", HPCA 2022.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign.programs import jaxprs, provenance
from jaxcodesign.programs.jaxprs import Program
from jaxcodesign.programs.provenance import Origin
from jaxcodesign.programs.workload import Gemm, Site, gemm_of

COLUMNS = (
  "weight_bits", "activation_bits", "gradient_bits",
  "forward_passes", "input_gradient_passes", "weight_gradient_passes",
)  # fmt: skip
CHUNK_BITS = 2
FIXED_PASSES = 4  # of 4 x 4 bits


@dataclasses.dataclass(frozen=True)
class Place:
  """A product and the depth at which it runs.

  Attributes:
    gemm: The product; `gemm.count` are its executions in a step.
    before: Executions of such products before the first of this one.
    strides: Executions in one iteration of each loop around it, outermost first.
    total: Executions of products that the scheme matches, in a forward pass: L.
  """

  gemm: Gemm
  before: int
  strides: tuple[int, ...]
  total: int

  def depth(self, loops: Sequence[jax.Array]) -> jax.typing.ArrayLike:
    """l / L in [0, 1), from the numbers of the iterations around the product.

    A network whose layers a scan stacks has the depths of the same network unrolled.
    """
    layer: Any = jnp.float32(self.before)
    for stride, index in zip(self.strides, loops):
      layer = layer + stride * index.astype(jnp.float32)
    return layer / self.total


@dataclasses.dataclass(frozen=True)
class Plan:
  """The products that a scheme decides, one row of the telemetry each.

  Telemetry is float32 [L, 6], its columns COLUMNS, summed over the executions of a
  product in one step; it may be summed over steps and devices as well. A backward
  product that autodiff does not ask for, as the input gradient of the first layer, has
  no passes.

  Attributes:
    places: In the order of the program.
  """

  places: tuple[Place, ...]

  @property
  def gemms(self) -> tuple[Gemm, ...]:
    """The forward products."""
    return tuple(place.gemm for place in self.places)

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the weights, else the lines where two activations are multiplied."""
    return tuple(gemm.name for gemm in self.gemms)

  @property
  def counts(self) -> np.ndarray:
    """int64 [L]: executions in one step."""
    return np.array([gemm.count for gemm in self.gemms], np.int64)

  @property
  def macs(self) -> np.ndarray:
    """int64 [L, 3]: multiplications of one execution of the forward product, of its
    input gradient and of its weight gradient; autodiff makes them equal."""
    once = [gemm.macs // gemm.count for gemm in self.gemms]
    return np.repeat(np.array(once, np.int64)[:, None], 3, axis=1)

  def probe(self) -> jax.Array:
    """float32 [L, 6] zeros: the argument whose gradient is the telemetry."""
    return jnp.zeros((len(self.places), len(COLUMNS)), jnp.float32)

  def bits(self, telemetry: jax.Array, *, steps: float = 1) -> jax.Array:
    """float32 [L, 3]: mean bits of W, A and G over the executions in `steps` steps."""
    return telemetry[:, :3] / self._executions(steps)[:, None]

  def passes(self, telemetry: jax.Array) -> jax.Array:
    """float32 []: passes times the multiplications of each, over all products."""
    return jnp.sum(telemetry[:, 3:] * jnp.asarray(self.macs, jnp.float32))

  def share(self, telemetry: jax.Array, *, steps: float = 1) -> jax.Array:
    """float32 []: `passes` over those that fixed 4 bits take for the same products.

    Args:
      telemetry: [L, 6].
      steps: Steps that it sums over; microbatches of a step count as steps.
    """
    ran = (telemetry[:, 3:] > 0).astype(jnp.float32)
    fixed = FIXED_PASSES * ran * self._executions(steps)[:, None]
    return self.passes(telemetry) / self.passes(_with_passes(telemetry, fixed))

  def _executions(self, steps: float) -> jax.Array:
    return jnp.asarray(self.counts, jnp.float32) * steps


def _with_passes(telemetry: jax.Array, passes: jax.Array) -> jax.Array:
  return jnp.concatenate([telemetry[:, :3], passes], axis=1)


def passes(left: jax.Array, right: jax.Array) -> jax.Array:
  """Passes of int32 mantissa bits [] by int32 bits []."""
  chunks = lambda bits: -(-bits // CHUNK_BITS)
  return chunks(left) * chunks(right)


def places(
  fn: Callable[..., Any],
  matches: Callable[[Gemm], bool],
  args: Sequence[Any],
  kwargs: dict[str, Any],
) -> tuple[tuple[Place, ...], list[Gemm]]:
  """The matched products of `fn(*args, **kwargs)`, and all of its products."""
  traced = jaxprs.trace_program(fn, args, kwargs)
  names = provenance.gradient_names(traced.shape, args[0])
  walk = _Walk(matches, [])
  found, total = walk.program(
    traced.program,
    provenance.parameters(args[0], traced),
    names,
    Site(source=jaxprs.caller()),
  )
  return tuple(Place(*where, total) for where in found), walk.seen


@dataclasses.dataclass(frozen=True)
class _Walk:
  """Counts executions of matched products; see `Place`."""

  matches: Callable[[Gemm], bool]
  seen: list[Gemm]

  def program(
    self,
    program: Program,
    ins: Sequence[Origin],
    names: Sequence[str],
    site: Site,
  ) -> tuple[list[tuple[Gemm, int, tuple[int, ...]]], int]:
    known, total, found = provenance.flow(program, ins), 0, []
    sinks = provenance.sinks(program, names)
    for step in program.steps:
      origins = provenance.read(known, step)
      outputs = [sinks.get(v, "") for v in step.writes]
      if step.op in jaxprs.PRODUCTS:
        gemm = gemm_of(step, origins, outputs[0], site)
        self.seen.append(gemm)
        if self.matches(gemm):
          found.append((gemm, total, ()))
          total += 1
      elif step.inner is not None and any(p.has_product for p in step.inner.programs):
        inside, size = self.inside(step, origins, outputs, site.inside(step), total)
        found += inside
        total += size
    return found, total

  def inside(
    self,
    step: jaxprs.Step,
    origins: Sequence[Origin],
    outputs: Sequence[str],
    site: Site,
    total: int,
  ) -> tuple[list[tuple[Gemm, int, tuple[int, ...]]], int]:
    inner = step.inner
    assert inner is not None
    found, sizes = [], []
    for program, entered in zip(inner.programs, provenance.enter(step, origins)):
      some, size = self.program(program, entered, outputs, site)
      # How often a while runs is data: all its iterations have one depth.
      stride = {"scan": (size,), "while": (0,)}.get(inner.kind, ())
      found += [(g, total + before, (*stride, *more)) for g, before, more in some]
      sizes.append(size)
    return found, max(sizes) * (inner.times if inner.kind == "scan" else 1)
