"""FAST: training in block floating point whose precision is chosen as it runs.

Every product rounds its weight W, its activation A and the incoming gradient G to block
floating point, each with the mantissa bits that a schedule decides for that tensor in
that iteration. FAST's own schedule, `Adaptive`, looks at the tensor:

  r(X) = sum |BFP4(X) - BFP2(X)| / sum |BFP2(X)|  >  alpha - beta i/I - beta l/L

A tensor is decided once a step, with blocks along its forward contraction (G: along
that of the input gradient), and has the decided bits in every product of the layer:
W in the forward product and the input gradient, A in the forward product and the
weight gradient, G in both backward products. Each product cuts its own blocks, along
its own contraction. By default W and A are rounded to nearest, G stochastically with
8-bit noise.

A convolution is not multiplied as matrices, so its image has blocks of channels at one
pixel, its kernel blocks along window x channels. They are the same blocks where the
block divides the channels. Where it does not (a first layer of one channel, a depthwise
layer, whose blocks join channels that are never summed) the image is cut otherwise than
an array cuts it, most often finer.

`quantize(fn, scheme, ...)` is the function, `plan(fn, scheme)` its products in order.
What was decided comes back as data: the gradient by a `probe` of zeros.

Reference: Zhang, McDanel, Kung. "FAST: DNN Training Under Variable Precision Block
Floating Point with Stochastic Rounding", HPCA 2022. That the denominator of r sums
magnitudes is this library's reading: a sum of signed values is near zero.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxcodesign import tree
from jaxcodesign.numerics.formats import noise
from jaxcodesign.numerics.formats.block_float import BlockFloat
from jaxcodesign.numerics.precision_schedules import Adaptive, PrecisionSchedule
from jaxcodesign.programs import backward, fast_plan, jaxprs, operands
from jaxcodesign.programs.backward import Side
from jaxcodesign.programs.fast_plan import COLUMNS, Plan
from jaxcodesign.programs.policy import Operand, Rule, choose, refuse_idle
from jaxcodesign.programs.rewrite import Dot, rewrite_gemms
from jaxcodesign.programs.workload import Gemm

__all__ = ["COLUMNS", "Fast", "Plan", "plan", "quantize"]


@tree.pytree
class Fast:
  """Which products are computed in variable precision, and how it is chosen.

  Attributes:
    schedule: Decides the mantissa bits of every tensor.
    weight: Format of the weight. In all three formats the schedule takes the place of
      the mantissa; exponents of 8 bits cost no collective on a sharded batch.
    activation: Format of the other operand, of both where neither is a weight.
    gradient: Format of the incoming gradient.
    stochastic: Which operands are rounded stochastically, which needs a key; the others
      are rounded as their format's `rule` says, to nearest by default.
    noise_bits: Random bits of each rounding, where `quantize` has a PRNG key.
    leaf: Shell-style glob on the weight's name; "" are products of two activations,
      which "*" matches too.
    kind: Glob on the kind of product: "dot", "conv", "transposed_conv".
  """

  schedule: PrecisionSchedule = tree.static(default=Adaptive())
  weight: BlockFloat = BlockFloat()
  activation: BlockFloat = BlockFloat()
  gradient: BlockFloat = BlockFloat()
  stochastic: tuple[Operand, ...] = tree.static(default=("gradient",))
  noise_bits: int = tree.static(default=8)
  leaf: str = tree.static(default="*")
  kind: str = tree.static(default="*")

  def __post_init__(self):
    for name in ("weight", "activation", "gradient"):
      fmt = getattr(self, name)
      if not isinstance(fmt, BlockFloat):
        raise ValueError(f"{name}={fmt!r} is no BlockFloat, whose mantissa FAST moves")
    if not isinstance(self.schedule, PrecisionSchedule):
      raise ValueError(
        f"schedule={self.schedule!r} is no PrecisionSchedule; Constant(4) is fixed"
      )
    if not 1 <= self.noise_bits <= 24:
      raise ValueError(f"noise_bits={self.noise_bits} are outside 1..24")
    self.rule  # noqa: B018  its checks

  @property
  def rule(self) -> Rule:
    """The rule that rounds the same products with mantissas as the formats have."""
    return Rule(
      self.leaf,
      self.weight,
      self.activation,
      self.gradient,
      self.kind,
      stochastic=self.stochastic,
    )

  def matches(self, gemm: Gemm) -> bool:
    """Whether a product is one of the scheme's."""
    return choose((self.rule,), gemm) is not None


def quantize(
  fn: Callable[..., Any],
  scheme: Fast,
  *,
  progress: jax.typing.ArrayLike,
  key: noise.Noise | jax.Array | None = None,
  probe: jax.Array | None = None,
) -> Callable[..., Any]:
  """Returns `fn` with its matrix products in FAST's variable precision.

  Args:
    fn: Any JAX function, parameters first; see `rewrite_gemms` for what it may hold.
    scheme: What is rounded, and how precisely.
    progress: i / I in [0, 1], the share of the run before this iteration.
    key: Of the noise: a PRNG key, which stands for `Counter(key, scheme.noise_bits)`,
      or a source of `noise` with one (`Lfsr(key)`). It must differ from step to step.
    probe: `plan(fn, scheme)(params, *args).probe()`. The gradient by it is the
      telemetry, [L, 6] with the columns `COLUMNS`, whatever the loss is; None does
      without. With a probe, products that feed frozen weights alone count as
      differentiated. Inside a vmap it sums over examples.

  Returns:
    A function of the same arguments, whose values and gradients are those of the
    rounded products; differentiate it in reverse mode. `progress`, `key` and `probe`
    may be traced. The depth l / L counts executions of products in the order of the
    program, so layers stacked by a scan have the depths of the unrolled network; for
    a loop over time the depth moves with time.

  Raises:
    ValueError: If an operand is stochastic and there is no key, or the reverse. When
      called, if the scheme matches no product or the probe is not the plan's.
    TypeError: When called, for a product of integers, or a `key` that is none.
    Unsupported: When called, for a product inside a custom derivative, or one that
      autodiff has made; when rewriting the result once more, if it has a probe.
  """
  if scheme.stochastic and key is None:
    raise ValueError(
      f"{' and '.join(scheme.stochastic)} are rounded stochastically: pass "
      "key=jax.random.fold_in(key, step), or Fast(stochastic=()) to round to nearest"
    )
  if key is not None and not scheme.stochastic:
    raise ValueError("key is given, but Fast(stochastic=()) draws no noise")

  @functools.wraps(fn)
  def quantized(*args: Any, **kwargs: Any) -> Any:
    layers = plan(fn, scheme)(*args, **kwargs)
    walk = _Products(
      _literal(scheme, args),
      layers,
      _source(key, scheme),
      progress,
      _checked(probe, layers),
    )
    return rewrite_gemms(fn, walk.rule, loops=True)(*args, **kwargs)

  quantized.__name__ = f"fast_{getattr(fn, '__name__', 'function')}"
  return quantized


def plan(fn: Callable[..., Any], scheme: Fast) -> Callable[..., Plan]:
  """Makes `fn(params, *args)` into a function that returns its `Plan`; runs nothing.

  Args:
    fn: As for `quantize`; arguments may be ShapeDtypeStructs.
    scheme: As for `quantize`.

  Raises:
    ValueError: When called, if the scheme matches no product.
  """

  @functools.wraps(fn)
  def planned(*args: Any, **kwargs: Any) -> Plan:
    matches = _literal(scheme, args).matches
    places, gemms = fast_plan.places(fn, matches, args, kwargs)
    if not places:
      refuse_idle((scheme.rule,), set(), gemms)
    return Plan(places)

  return planned


def _literal(scheme: Fast, args: tuple[Any, ...]) -> Fast:
  names = tree.names(args[0]) if args else ()
  return dataclasses.replace(scheme, leaf=tree.literal(scheme.leaf, names))


def _source(key: noise.Noise | jax.Array | None, scheme: Fast) -> Any:
  source = operands.source_of(key)
  if source is None or isinstance(key, noise.Noise):
    return source
  return dataclasses.replace(source, bits=scheme.noise_bits)


def _checked(probe: jax.Array | None, layers: Plan) -> jax.Array | None:
  wanted = (len(layers.places), len(COLUMNS))
  if probe is not None and (probe.shape, probe.dtype) != (wanted, jnp.float32):
    raise ValueError(
      f"probe is {probe.dtype}{list(probe.shape)}, but the plan has {wanted[0]} "
      "products; pass plan(fn, scheme)(params, *args).probe()"
    )
  return probe


class _Products:
  """The rule behind `quantize`, which remembers how far it has come."""

  def __init__(
    self, scheme: Fast, layers: Plan, source: Any, progress: Any, probe: Any
  ):
    self.scheme, self.layers, self.source = scheme, layers, source
    self.progress = jnp.asarray(progress).astype(jnp.float32)
    self.probe = probe
    self.seen, self.row = 0, 0

  def rule(self, gemm: Gemm, lhs: jax.Array, rhs: jax.Array, dot: Dot) -> jax.Array:
    """A rule for `rewrite_gemms`."""
    self.seen += 1
    if not self.scheme.matches(gemm):
      return dot(lhs, rhs)
    operands.refuse_backward(gemm)
    place, row = self.next(gemm)
    depth = jnp.asarray(place.depth(dot.loops))
    activation = self.scheme.activation
    templates = (activation, self.scheme.weight if gemm.rhs else activation)
    names: list[Operand] = ["activation", "weight" if gemm.rhs else "activation"]
    draw = operands.draws(self.source, self.seen, dot.loops, self.scheme.stochastic)
    formats, values = [], []
    for i, (x, template) in enumerate(zip((lhs, rhs), templates)):
      side = f"{('left', 'right')[i]} operand"
      bits = self.bits(gemm, side, template, x, dot.across[i], depth)
      fmt = dataclasses.replace(template, mantissa=bits)
      formats.append(fmt)
      source = draw(names[i], i)
      where = dot.across[i], dot.taps[i]
      values.append(operands.round_operand(gemm, side, False, fmt, x, source, *where))
    left, right = backward.sides(
      formats,
      formats,
      (self.scheme.gradient,) * 2,
      (lhs, rhs),
      values,
      [(draw("gradient", 2 + i), draw(names[1 - i], 4 + i)) for i in range(2)],
    )
    decision = backward.Decision(
      functools.partial(_decide, self.scheme.schedule, gemm),
      (self.progress, depth, *(fmt.mantissa for fmt in formats)),
      None if self.probe is None else self.probe[row],
    )
    rounded = functools.partial(operands.round_operand, gemm, "backward operand", False)
    lhs, rhs = values
    return backward.product(dot, lhs, rhs, left, right, rounded, decision=decision)

  def next(self, gemm: Gemm) -> tuple[fast_plan.Place, int]:
    """Where the product stands that the rewriting has come to, and its row."""
    places = self.layers.places
    if self.row >= len(places) or places[self.row].gemm != gemm:
      raise jaxprs.Unsupported(
        f"{gemm.source}: {gemm.name} is not the product that the plan has there; the "
        "function must compute the same products every time it is traced"
      )
    self.row += 1
    return places[self.row - 1], self.row - 1

  def bits(
    self, gemm: Gemm, side: str, fmt: BlockFloat, x: Any, across: bool, depth: Any
  ) -> jax.Array:
    ratio = _ratio(self.scheme.schedule, gemm, side, fmt, x, across)
    return self.scheme.schedule.bits(ratio, self.progress, depth)


def _ratio(
  schedule: PrecisionSchedule,
  gemm: Gemm,
  side: str,
  fmt: BlockFloat,
  x: jax.Array,
  across: bool,
) -> jax.Array | None:
  if not schedule.needs_ratio:
    return None
  along, lying = operands.lying(fmt, x, across)
  with operands.blaming(gemm, side, x):
    return along.refinement(lying)  # pyright: ignore[reportAttributeAccessIssue]


def _decide(
  schedule: PrecisionSchedule,
  gemm: Gemm,
  g: jax.Array,
  left: Side | None,
  right: Side | None,
  known: Any,
) -> tuple[Side | None, Side | None, jax.Array]:
  """The sides with the gradient's bits decided, and the row of telemetry."""
  progress, depth, activation, weight = known
  template = next((s.gradient for s in (left, right) if s is not None), None)
  bits = jnp.int32(0)
  if isinstance(template, BlockFloat):
    ratio = _ratio(schedule, gemm, "incoming gradient", template, g, False)
    bits = schedule.bits(ratio, progress, depth)
  # Both sides have the scheme's one format; without sides there is nothing to decide.
  scheme_format = template if isinstance(template, BlockFloat) else BlockFloat()
  decided = [
    s and s._replace(gradient=dataclasses.replace(scheme_format, mantissa=bits))
    for s in (left, right)
  ]
  none = jnp.int32(0)
  report = [
    weight,
    activation,
    bits,
    fast_plan.passes(weight, activation),
    none if left is None else fast_plan.passes(bits, weight),
    none if right is None else fast_plan.passes(bits, activation),
  ]
  return decided[0], decided[1], jnp.stack(report).astype(jnp.float32)
