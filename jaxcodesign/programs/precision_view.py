"""Who is quantized to what: a table of products and formats, as text and as HTML."""

import dataclasses
from typing import Any, NamedTuple

import jax

from jaxcodesign import tree
from jaxcodesign.numerics.formats import microscaling, minifloat
from jaxcodesign.numerics.formats.format import Format
from jaxcodesign.programs import matrix_view

HEADER = (
  "product", "kind", "MAC", "left", "right", "input gradient", "weight gradient",
  "rule", "in full precision",
)  # fmt: skip


class Row(NamedTuple):
  """One product. Formats are labels, dtypes where an operand stays as it is.

  Attributes:
    product: Name of its weight, else the line it was written on.
    kind: "dot", "conv" or "transposed_conv".
    macs: Multiplications of the forward product.
    left: Format of the left operand.
    right: Format of the right operand, the weight if there is one.
    input_gradient: Formats of gradient and other operand in the input gradient. Of a
      convolution also what the right operand of that product has its blocks and scales
      along: "9 taps x 16" channels of the window, or within one tap, "16".
    weight_gradient: The same of the weight gradient, "" without a weight.
    rule: The rule that decided, "-" if none.
    note: What stays in full precision, and why; "" if nothing does.
  """

  product: str
  kind: str
  macs: int
  left: str
  right: str
  input_gradient: str
  weight_gradient: str
  rule: str
  note: str


@dataclasses.dataclass(frozen=True)
class Description:
  """What `quantize` would do: `print` it, or leave it at the end of a notebook cell."""

  rows: tuple[Row, ...]

  def table(self) -> str:
    """The rows in fixed width, with a summary."""
    return matrix_view.grid(HEADER, self.rows) + "\n" + self.summary()

  def summary(self) -> str:
    """One line: how many products, and which share of the multiplications."""
    whole = [row for row in self.rows if not row.note]
    total = sum(row.macs for row in self.rows)
    share = sum(row.macs for row in whole) / max(total, 1)
    return (
      f"{len(whole)} of {len(self.rows)} products have both operands rounded, "
      f"{share:.1%} of {total:,} MAC"
    )

  def __str__(self) -> str:
    return self.table()

  def _repr_html_(self) -> str:
    table = matrix_view.html_grid(HEADER, self.rows)
    return f"{table}<p>{self.summary()}</p>"


def label(fmt: Format | None, otherwise: str) -> str:
  """A short name of a format: its public constant, or what is not a default."""
  if fmt is None:
    return otherwise
  leaves = jax.tree.leaves(fmt)
  if all(isinstance(leaf, (int, float)) for leaf in leaves):
    constants = vars(minifloat) | vars(microscaling)
    named = ((n, f) for n, f in constants.items() if isinstance(f, Format))
    for name, known in named:
      if type(known) is type(fmt) and known == fmt:
        return name
  shown = []
  for field in dataclasses.fields(fmt):  # pyright: ignore[reportArgumentType]
    value = getattr(fmt, field.name)
    plain = not shown and not isinstance(value, Format)  # the first says the most
    if plain or tree.is_array(value) or value != field.default:
      shown.append(f"{field.name}={_value(value)}")
  return f"{type(fmt).__name__}({', '.join(shown)})"


def _value(value: Any) -> str:
  if isinstance(value, Format):
    return label(value, "")
  if not tree.is_array(value):
    return repr(value)
  if tree.is_concrete(value) and value.shape == ():
    return f"{float(value):g}"
  return "traced" if value.shape == () else f"array{list(value.shape)}"
