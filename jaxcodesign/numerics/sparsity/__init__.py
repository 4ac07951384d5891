"""Which values stay: patterns, masks of a tree, and columns that share one column."""

from typing import TYPE_CHECKING

from jaxcodesign.faces import face

if TYPE_CHECKING:
  from jaxcodesign.numerics.sparsity.patterns import Blocks as Blocks
  from jaxcodesign.numerics.sparsity.patterns import Channels as Channels
  from jaxcodesign.numerics.sparsity.patterns import NOfM as NOfM
  from jaxcodesign.numerics.sparsity.patterns import Pattern as Pattern
  from jaxcodesign.numerics.sparsity.patterns import Unstructured as Unstructured
  from jaxcodesign.numerics.sparsity.patterns import check_density as check_density
  from jaxcodesign.numerics.sparsity.patterns import magnitude as magnitude

__getattr__, __dir__, __all__ = face(  # pyright: ignore[reportUnsupportedDunderAll]
  __name__,
  Blocks="patterns:Blocks",
  Channels="patterns:Channels",
  NOfM="patterns:NOfM",
  Pattern="patterns:Pattern",
  Unstructured="patterns:Unstructured",
  check_density="patterns:check_density",
  magnitude="patterns:magnitude",
)
