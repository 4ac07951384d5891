"""Any JAX function with its matrix products replaced.

`rewrite_gemms(fn, rule)` traces `fn`, then runs its program step by step, handing every
matrix product to `rule` and binding everything else untouched (relu keeps its own
derivative). The result is an ordinary function of the same arguments: it can be jitted,
differentiated, vmapped and sharded, and what the rule closes over (a learned scale, a
scheduled budget) is traced and differentiated with it.

  grad(rewrite_gemms(f, rule))  the rule sees each forward product, by name; gradients
                                go through what the rule returned.
  rewrite_gemms(grad(f), rule)  the rule sees forward, input-gradient and
                                weight-gradient products, told apart by `gemm.role`.

Outside jit the function is traced anew and run operation by operation at every call:
jit the result.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax

from jaxcodesign import tree
from jaxcodesign.programs import jaxprs, products, provenance
from jaxcodesign.programs.jaxprs import Program, Step, Unsupported
from jaxcodesign.programs.provenance import Origin
from jaxcodesign.programs.workload import Gemm, Site, gemm_of


@dataclasses.dataclass(frozen=True)
class Dot:
  """The original product, on canonical operands.

  Attributes:
    product: (lhs, rhs) -> out; bilinear, without a traced value of its own.
    loops: Numbers of the iterations around it, outermost first, traced; empty unless
      `rewrite_gemms` was asked to count.
    across: Whether lhs, and rhs, lie with their two last axes exchanged in the program:
      what looks along the contraction is faster along axis -2 of `x.swapaxes(-1, -2)`,
      where no data moves.
    taps: Of lhs, and of rhs: 1, or the window of a convolution whose kernel the operand
      is. Its contraction is taps x channels, axes of their own in the program.
  """

  product: Callable[[jax.Array, jax.Array], jax.Array]
  loops: tuple[jax.Array, ...] = ()
  across: tuple[bool, bool] = (False, False)
  taps: tuple[int, int] = (1, 1)

  def __call__(self, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    return self.product(lhs, rhs)


Rule = Callable[[Gemm, jax.Array, jax.Array, Dot], jax.Array]


def rewrite_gemms(
  fn: Callable[..., Any], rule: Rule, *, matrices: bool = False, loops: bool = False
) -> Callable[..., Any]:
  """Returns `fn` with every matrix product computed by `rule`.

  Args:
    fn: Any JAX function `fn(params, *args, **kwargs)`. Array leaves of its arguments
      are traced; Python numbers, strings and functions are passed through as they are.
    rule: `rule(gemm, lhs, rhs, dot) -> out`. `gemm` tells names and sizes. The
      operands are canonical, contraction last and the weight, if there is one, on the
      right: lhs [batch, m, k] (for a convolution the image [B, *spatial, C]) and
      rhs [batch, n, k]. `dot(lhs, rhs)` is the original product on such operands; the
      rule returns what it returns, same shape and dtype: [batch, m, n], or for a
      convolution [B, *spatial, filters]. `lambda gemm, lhs, rhs, dot: dot(lhs, rhs)`
      changes nothing, to the last bit under jit.
    matrices: Whether the rule sees lhs [batch, m, k] for convolutions too, every pixel
      as often as windows hold it, and returns [batch, m, n]; `dot` is then the batched
      product lhs @ rhs.T, so any matrix engine can be the rule. Equal to the
      convolution up to the order of summation.
    loops: Whether `dot.loops` holds the traced numbers of the iterations of every scan
      and while around the product, as a source of noise needs them.

  Returns:
    A function of the same arguments as `fn`. The body of a `jax.custom_vjp` is
    rewritten; its backward pass stays its author's, on the residuals of the rewritten
    forward pass.

  Raises:
    Unsupported: When called, for a product inside a primitive that this library does
      not know, or a ragged one; when differentiated, for a product inside a
      `jax.custom_jvp`. The message has the user's file and line; such products would
      otherwise silently stay as they are.
    TypeError: When called, if the rule returns another shape or dtype.
  """

  @functools.wraps(fn)
  def rewritten(params: Any, *args: Any, **kwargs: Any) -> Any:
    traced = jaxprs.trace_program(fn, (params, *args), kwargs)
    origins = provenance.parameters(params, traced)
    names = provenance.gradient_names(traced.shape, params)
    walk = _Walk(rule, matrices, loops)
    site = Site(source=jaxprs.caller())
    out = walk.run(traced.program, traced.arrays, origins, names, site)
    return jax.tree.unflatten(jax.tree.structure(traced.shape), out)

  return rewritten


@dataclasses.dataclass(frozen=True)
class _Walk:
  """Runs programs with their products handed to `rule`."""

  rule: Rule
  matrices: bool
  count: bool
  loops: tuple[jax.Array, ...] = ()

  def run(
    self,
    program: Program,
    values: Sequence[Any],
    origins: Sequence[Origin],
    names: Sequence[str],
    site: Site,
  ) -> list[Any]:
    known = provenance.flow(program, origins)
    sinks = provenance.sinks(program, names)
    env = dict(zip(program.inputs, values)) | dict(program.constants)
    get = lambda a: a.value if isinstance(a, jaxprs.Literal) else env[a]
    for step in program.steps:
      ins = provenance.read(known, step)
      outputs = [sinks.get(v, "") for v in step.writes]
      with jaxprs.standing_in(step):
        out = self.step(step, [get(a) for a in step.reads], ins, outputs, site)
      env.update(zip(step.writes, out))
    return [get(a) for a in program.outputs]

  def step(
    self,
    step: Step,
    values: list[Any],
    ins: list[Origin],
    outputs: list[str],
    site: Site,
  ) -> Sequence[Any]:
    if step.op in jaxprs.PRODUCTS:
      return [self.product(step, values, ins, outputs[0], site)]
    inner = step.inner
    _refuse(step, site)
    if inner is None or not any(p.has_product for p in inner.programs):
      return jaxprs.bind(step, values)
    site = site.inside(step)
    bodies = [
      functools.partial(self.body, program, origins, outputs, site)
      for program, origins in zip(inner.programs, provenance.enter(step, ins))
    ]
    if inner.kind == "custom":
      # What runs when differentiated: the residuals have no name among the outputs.
      again = lambda program: functools.partial(
        self.body,
        program,
        ins[len(ins) - len(program.inputs) :],
        [""] * len(program.outputs),
        site,
      )
      return jaxprs.execute_custom(step, values, bodies[0], again)
    return jaxprs.execute(step, values, bodies, count=self.count)

  def body(
    self,
    program: Program,
    origins: Sequence[Origin],
    names: Sequence[str],
    site: Site,
    *values: Any,
    index: jax.Array | None = None,
  ) -> list[Any]:
    walk = self
    if index is not None:
      walk = dataclasses.replace(self, loops=(*self.loops, index))
    return walk.run(program, values, origins, names, site)

  def product(
    self, step: Step, values: list[Any], ins: list[Origin], output: str, site: Site
  ) -> Any:
    gemm = gemm_of(step, ins, output, site)
    flip = products.flipped(step, ins)
    lhs, rhs, dot, shape, finish, across, taps = products.canonical(
      step, *values, flip=flip, matrices=self.matrices
    )
    out = self.rule(gemm, lhs, rhs, Dot(dot, self.loops, across, (1, taps)))
    dtype = step.outs[0].dtype
    if not tree.is_array(out) or (out.shape, out.dtype) != (shape, dtype):
      given = f"{out.dtype}{list(out.shape)}" if tree.is_array(out) else repr(out)
      raise TypeError(
        f"{gemm.source}: the rule returned {given} for {gemm.name}; the product is "
        f"{dtype}{list(shape)}"
      )
    return finish(out)


def _refuse(step: Step, site: Site) -> None:
  where = jaxprs.location(step, site.source)
  if step.op in jaxprs.OPAQUE_PRODUCTS:
    raise Unsupported(
      f"{where}: {step.op} cannot be rewritten; write it as a dense einsum"
    )
  inner = step.inner
  if inner is None or not any(p.has_product for p in inner.programs):
    return
  custom = inner.kind == "custom"
  if inner.kind == "other" or (custom and not jaxprs.can_rewrite(step)):
    raise Unsupported(
      f"{where}: a matrix product inside {step.op} cannot be rewritten; rewrite the "
      "function without it, or rewrite its gradient: "
      "rewrite_gemms(jax.grad(loss), rule)"
    )
