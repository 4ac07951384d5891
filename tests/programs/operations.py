"""Random products: every way to multiply that jax has."""

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np

SETTINGS = hypothesis.settings(
  deadline=None,
  max_examples=20,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
  derandomize=True,
)

# For properties that compile several programs an example.
FEW = hypothesis.settings(SETTINGS, max_examples=10)


def integers(shape, seed):
  """Small integers in float32: every sum is exact, so results must be equal."""
  return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


@st.composite
def dots(draw):
  """Operands and dimension numbers: batch, contracting and free axes in any order."""
  sizes = st.lists(st.integers(1, 3), max_size=2)
  batch, summed, left, right = (draw(sizes) for _ in range(4))
  a = draw(st.permutations([("b", i) for i in range(len(batch))]
                           + [("k", i) for i in range(len(summed))]
                           + [("m", i) for i in range(len(left))]))  # fmt: skip
  b = draw(st.permutations([("b", i) for i in range(len(batch))]
                           + [("k", i) for i in range(len(summed))]
                           + [("n", i) for i in range(len(right))]))  # fmt: skip
  size = {"b": batch, "k": summed, "m": left, "n": right}
  at = lambda axes, kind, n: tuple(axes.index((kind, i)) for i in range(n))
  numbers = (
    (at(a, "k", len(summed)), at(b, "k", len(summed))),
    (at(a, "b", len(batch)), at(b, "b", len(batch))),
  )
  shapes = [tuple(size[kind][i] for kind, i in axes) for axes in (a, b)]
  return numbers, shapes, [int(np.prod(s)) for s in (batch, left, summed, right)]


@st.composite
def convolutions(draw, rank=None):
  """A convolution, its weight and its image: any numbers that jax takes."""
  rank = rank or draw(st.integers(1, 2))
  sizes = lambda low, high: [draw(st.integers(low, high)) for _ in range(rank)]
  grouping = draw(st.sampled_from(["none", "feature", "depthwise", "batch"]))
  groups = draw(st.integers(2, 3)) if grouping in ("feature", "depthwise") else 1
  many = 2 if grouping == "batch" else 1
  channels = 1 if grouping == "depthwise" else draw(st.integers(1, 2))
  filters = groups * many * draw(st.integers(1, 2))
  spread = sizes(1, 2)
  strides = sizes(1, 2) if max(spread) == 1 else [1] * rank
  reach, window, pixels = sizes(1, 2), sizes(1, 3), sizes(1, 4)
  # XLA of jaxlib 0.10.2 on CPU is wrong for grouped convolutions that crop (negative
  # padding); cropping is tested without groups.
  low = -1 if grouping == "none" else 0
  padding = [
    (draw(st.integers(low, 2)), draw(st.integers(low, 2))) for _ in range(rank)
  ]
  extent = [(w - 1) * r + 1 for w, r in zip(window, reach)]
  room = [(s - 1) * d + 1 + a + b
          for s, d, (a, b) in zip(pixels, spread, padding)]  # fmt: skip
  hypothesis.assume(all(r >= e for r, e in zip(room, extent)))
  layouts = {1: ["NWC", "NCW"], 2: ["NHWC", "NCHW"]}[rank]
  kernels = {1: ["WIO", "OIW"], 2: ["HWIO", "OIHW"]}[rank]
  numbers = (draw(st.sampled_from(layouts)), draw(st.sampled_from(kernels)),
             draw(st.sampled_from(layouts)))  # fmt: skip
  image = {"N": many, "C": groups * channels, **dict(zip("HW"[-rank:], pixels))}
  kernel = {"I": channels, "O": filters, **dict(zip("HW"[-rank:], window))}
  x = integers([image[c] for c in numbers[0]], 0)
  w = integers([kernel[c] for c in numbers[1]], 1)

  def fn(w, x):
    return jax.lax.conv_general_dilated(
      x, w, strides, padding, spread, reach, numbers, groups, many
    )

  return fn, w, x
