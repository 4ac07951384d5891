"""Arrays to arrays: number formats, sparsity, schedules, post-training rounding."""

from typing import TYPE_CHECKING

from jaxcodesign.faces import face

if TYPE_CHECKING:
  from jaxcodesign.numerics import formats as formats
  from jaxcodesign.numerics import interpolation as interpolation
  from jaxcodesign.numerics import post_training as post_training
  from jaxcodesign.numerics import precision_schedules as precision_schedules
  from jaxcodesign.numerics import schedules as schedules
  from jaxcodesign.numerics import smooth as smooth
  from jaxcodesign.numerics import sparsity as sparsity
  from jaxcodesign.numerics.formats import calibration as calibration
  from jaxcodesign.numerics.formats import noise as noise
  from jaxcodesign.numerics.formats import rounding as rounding
  from jaxcodesign.numerics.formats import storage as storage
  from jaxcodesign.numerics.formats import terms as terms
  from jaxcodesign.numerics.sparsity import column_combining as column_combining
  from jaxcodesign.numerics.sparsity import masks as masks

__getattr__, __dir__, __all__ = face(  # pyright: ignore[reportUnsupportedDunderAll]
  __name__,
  formats="formats",
  sparsity="sparsity",
  schedules="schedules",
  precision_schedules="precision_schedules",
  post_training="post_training",
  smooth="smooth",
  interpolation="interpolation",
  calibration="formats.calibration",
  noise="formats.noise",
  rounding="formats.rounding",
  storage="formats.storage",
  terms="formats.terms",
  column_combining="sparsity.column_combining",
  masks="sparsity.masks",
)
