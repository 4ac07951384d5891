"""Everything that this library knows about the insides of a jaxpr.

jax changes these every few releases, so nothing outside this folder imports
`jax.extend` or `jax._src`, or reads the parameters of an equation. The rest of the
library sees a `Program`: a list of `Step`s that read and write variables, some of
which hold inner programs (`Inner`). jax 0.10 (ClosedJaxpr, num_consts) to 0.12 (Jaxpr,
ft_in).

  program   a jaxpr read                    tracing   a function made a program
  source    whose line a step is            numbers   dimension numbers of products
  execute   steps run, bodies replaced      custom    the same with own derivatives
"""

from jaxcodesign.programs.jaxprs.custom import can_rewrite, execute_custom
from jaxcodesign.programs.jaxprs.execute import bind, execute, standing_in, varying
from jaxcodesign.programs.jaxprs.numbers import (
  Conv,
  Dot,
  accuracy,
  conv_numbers,
  dot_numbers,
)
from jaxcodesign.programs.jaxprs.program import (
  OPAQUE_PRODUCTS,
  PRODUCTS,
  Inner,
  Literal,
  Program,
  Step,
  Traced,
  Unsupported,
  read,
)
from jaxcodesign.programs.jaxprs.source import caller, is_foreign, location, passes
from jaxcodesign.programs.jaxprs.tracing import trace_program

__all__ = [
  "OPAQUE_PRODUCTS",
  "PRODUCTS",
  "Conv",
  "Dot",
  "Inner",
  "Literal",
  "Program",
  "Step",
  "Traced",
  "Unsupported",
  "accuracy",
  "bind",
  "caller",
  "can_rewrite",
  "conv_numbers",
  "dot_numbers",
  "execute",
  "execute_custom",
  "is_foreign",
  "location",
  "passes",
  "read",
  "standing_in",
  "trace_program",
  "varying",
]
