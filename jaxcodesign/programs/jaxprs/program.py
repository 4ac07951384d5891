"""A jaxpr as this library sees it: programs of steps that read and write variables."""

from collections.abc import Hashable
import dataclasses
import math
from typing import Any, NamedTuple

import jax.extend.core as jex

PRODUCTS = ("dot_general", "conv_general_dilated")
# Products as well, but their sizes are data or their operands no plain arrays.
OPAQUE_PRODUCTS = (
  "ragged_dot", "ragged_dot_general", "scaled_dot", "scaled_matmul_wrapper",
  "dot_product_attention_fwd_wrapper", "dot_product_attention_fp8_fwd_wrapper",
)  # fmt: skip

_KINDS = {
  "call": ("jit", "pjit", "closed_call", "call", "eval_jaxpr", "composite"),
  "remat": ("remat", "remat2", "checkpoint"),
  "custom": ("custom_jvp_call", "custom_vjp_call", "custom_vmap_call"),
  "cond": ("cond",),
}


class Unsupported(ValueError):
  """A program that cannot be counted or rewritten; says where, and a way out."""


class Literal(NamedTuple):
  """A constant written into a step."""

  value: Any


class Inner(NamedTuple):
  """The programs inside one step, and how they run.

  A "while" has the programs (condition, body), a "cond" its branches, "other" any
  number, the kinds "call", "remat", "custom", "scan" and "shard_map" one.
  """

  kind: str
  programs: tuple["Program", ...]
  times: int = 1  # the length of a scan, the devices of a shard_map
  consts: tuple[int, ...] = ()  # inputs that stay, of a scan, of each part of a while
  carry: int = 0  # inputs of a scan body, after its consts, that it returns first


class Step(NamedTuple):
  """One equation: `writes = op(reads)`."""

  op: str
  reads: tuple[Any, ...]  # variables or Literals
  writes: tuple[Hashable, ...]
  ins: tuple[Any, ...]  # abstract values, with .shape .dtype .size
  outs: tuple[Any, ...]
  inner: Inner | None
  equation: Any  # opaque outside this file


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
  """A jaxpr as this library sees it.

  `notes` keeps what analyses found out, so that a program inside many loops is asked
  once; it is no part of the program.
  """

  steps: tuple[Step, ...]
  inputs: tuple[Hashable, ...]
  outputs: tuple[Any, ...]  # variables or Literals
  constants: tuple[tuple[Hashable, Any], ...]  # variable, value
  has_product: bool  # anywhere inside
  closed: Any  # opaque outside this file
  notes: dict[Hashable, Any] = dataclasses.field(default_factory=dict)


class Traced(NamedTuple):
  """A function made a program, with what is needed to call it again."""

  program: Program
  arrays: list[Any]  # the array leaves of the arguments, in order of program.inputs
  shape: Any  # tree of jax.ShapeDtypeStruct: what the function returns


def read(closed: Any, seen: dict[int, "Program"]) -> Program:
  """The `Program` of a (Closed)Jaxpr; `seen` keeps shared bodies shared."""
  if id(closed) not in seen:
    jaxpr = getattr(closed, "jaxpr", closed)
    steps = tuple(_step(eqn, seen) for eqn in jaxpr.eqns)
    inner = (p for step in steps if step.inner for p in step.inner.programs)
    seen[id(closed)] = Program(
      steps=steps,
      inputs=tuple(jaxpr.invars),
      outputs=tuple(_atom(v) for v in jaxpr.outvars),
      constants=tuple(zip(jaxpr.constvars, getattr(closed, "consts", ()))),
      has_product=any(step.op in PRODUCTS + OPAQUE_PRODUCTS for step in steps)
      or any(p.has_product for p in inner),
      closed=closed,
    )
  return seen[id(closed)]


def _atom(v: Any) -> Any:
  return Literal(v.val) if isinstance(v, jex.Literal) else v


def _step(eqn: Any, seen: dict[int, Program]) -> Step:
  return Step(
    op=eqn.primitive.name,
    reads=tuple(_atom(v) for v in eqn.invars),
    writes=tuple(eqn.outvars),
    ins=tuple(v.aval for v in eqn.invars),
    outs=tuple(v.aval for v in eqn.outvars),
    inner=_inner(eqn, seen),
    equation=eqn,
  )


def _inner(eqn: Any, seen: dict[int, Program]) -> Inner | None:
  name, params = eqn.primitive.name, eqn.params
  bodies = tuple(read(j, seen) for j in _jaxprs_in(params))
  if not bodies:
    return None
  if name == "scan":
    if "ft_in" in params:
      consts, carry = (len(part) for part in params["ft_in"].unpack()[:2])
    else:
      consts, carry = params["num_consts"], params["num_carry"]
    return Inner("scan", bodies, params["length"], (consts,), carry)
  if name == "while":
    pair = read(params["cond_jaxpr"], seen), read(params["body_jaxpr"], seen)
    return Inner("while", pair, 1, (params["cond_nconsts"], params["body_nconsts"]))
  if name == "shard_map":
    devices = math.prod(params["mesh"].shape[axis] for axis in manual_axes(params))
    return Inner("shard_map", bodies, devices)
  kind = next((kind for kind, known in _KINDS.items() if name in known), "other")
  if kind == "other" and all(map(_is_combiner, bodies)):
    return None
  return Inner(kind, bodies)


def _is_combiner(program: Program) -> bool:
  # What scatter or reduce does to two scalars: no program that runs on its own.
  jaxpr = getattr(program.closed, "jaxpr", program.closed)
  atoms = (*jaxpr.invars, *jaxpr.outvars)
  return all(v.aval.shape == () for v in atoms) and not program.has_product


def _jaxprs_in(params: dict[str, Any]) -> list[Any]:
  found = []
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if hasattr(item, "eqns") or hasattr(getattr(item, "jaxpr", None), "eqns"):
        found.append(item)
  return found


def manual_axes(params: dict) -> frozenset[str]:
  """Mesh axes over which a shard_map with these parameters divides its work."""
  return params.get("newly_manual_axes", params.get("manual_axes", frozenset()))
