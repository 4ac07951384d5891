"""What multiplies in a way that cannot be counted, and why."""

from jaxcodesign.programs import jaxprs
from jaxcodesign.programs.jaxprs import Step, Unsupported

_FACTORIZATIONS = (
  "cholesky", "cholesky_update", "eig", "eigh", "geqp3", "geqrf", "hessenberg",
  "householder_product", "lu", "ormqr", "qr", "schur", "svd", "symmetric_product",
  "tridiagonal",
)  # fmt: skip
_OPAQUE = "a kernel is opaque; trace the function it implements"
_REFUSED = {
  "ragged_dot": "its group sizes are data; use a dense einsum over the experts",
  "ragged_dot_general": "its group sizes are data; use a dense einsum over the experts",
  "scaled_matmul": "its block scales are a format; quantize a plain product instead",
  "custom_linear_solve": "solvers iterate; trace the product inside",
  "triangular_solve": "solvers are no single product",
  "tridiagonal_solve": "solvers are no single product",
  "fft": "its multiplications are no matrix product",
  "pure_callback": "what runs on the host cannot be counted",
  "io_callback": "what runs on the host cannot be counted",
  **dict.fromkeys(("pallas_call", "core_map", "ffi_call", "cudnn_fusion"), _OPAQUE),
  **dict.fromkeys(_FACTORIZATIONS, "factorizations are no single product"),
}


def check(step: Step, source: str) -> None:
  """Raises Unsupported if what `step` multiplies cannot be counted.

  Args:
    step: Any.
    source: `file:line` that called the program, for a step without a line of its own.
  """
  reason = _REFUSED.get(step.op)
  if step.op.startswith(("dot_product_attention", "scaled_dot")):
    reason = _OPAQUE
  if reason is None and jaxprs.is_foreign(step):
    reason = "it is no primitive of jax's own; trace the function it implements"
  if reason is not None:
    where = jaxprs.location(step, source)
    raise Unsupported(f"{where}: {step.op} cannot be counted: {reason}")
