"""Where a step comes from: the user's line, the pass, the package."""

from collections.abc import Iterable, Iterator
import functools
import pathlib
import sys
import sysconfig
import traceback
from typing import Any

from jax._src import source_info_util
import jax.extend.core as jex

from jaxcodesign.programs.jaxprs.program import Step

# Not the user's: installed packages, the standard library, and programs/.
_NOT_USER = (
  *(sysconfig.get_paths()[part] for part in ("purelib", "platlib", "stdlib")),
  str(pathlib.Path(__file__).parents[1]),
  "<",
)


def location(step: Step, otherwise: str = "<unknown>") -> str:
  """`file:line` of the user's code that made `step`, the call of a flax layer rather
  than the line of flax that multiplies; `otherwise` if nobody knows."""
  for frame in source_info_util.user_frames(step.equation.source_info.traceback):
    if not frame.file_name.startswith(_NOT_USER):
      return f"{frame.file_name}:{frame.start_line}"
  return otherwise


def caller() -> str:
  """`file:line` of the user's innermost call; a jaxpr knows no frame outside of it."""
  return next(_own(traceback.walk_stack(None)), "<unknown>")


def blamed(error: BaseException) -> str:
  """`file:line` of the user's innermost call that led to an error."""
  return ["<unknown>", *_own(traceback.walk_tb(error.__traceback__))][-1]


def _own(frames: Iterable[tuple[Any, int]]) -> Iterator[str]:
  for frame, line in frames:
    if not frame.f_code.co_filename.startswith(_NOT_USER):
      yield f"{frame.f_code.co_filename}:{line}"


def is_foreign(step: Step) -> bool:
  """Whether a package other than jax defined what `step` does."""
  if step.op not in _native():
    _native.cache_clear()  # jax imports some of its modules late
  return step.op not in _native()


@functools.cache
def _native() -> frozenset[str]:
  modules = [m for name, m in sys.modules.items() if name.startswith("jax._src.")]
  values = (v for module in modules for v in list(vars(module).values()))
  return frozenset(v.name for v in values if isinstance(v, jex.Primitive))


def passes(step: Step) -> tuple[bool, bool]:
  """Whether jax.grad made `step` while transposing; jax.checkpoint, to recompute."""
  stack = str(step.equation.source_info.name_stack)
  return "transpose(" in stack, "rematted_computation" in stack
