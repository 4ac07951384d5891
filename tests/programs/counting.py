"""A slow, obvious interpreter of jaxprs that counts the multiplications it performs.

Independent of jaxcodesign: it reads jax's own equations and multiplies with loops over
indices, as the docstring of jaxcodesign.programs.products defines each product.
"""

import itertools
import math

import jax
import jax.extend.core as jex
import numpy as np


def broadcast(x, p):
  shape = np.ones(len(p["shape"]), int)
  shape[list(p["broadcast_dimensions"])] = x.shape
  return np.broadcast_to(x.reshape(shape), p["shape"])


def reshape(x, p):
  order = p["dimensions"]
  return (x if order is None else x.transpose(order)).reshape(p["new_sizes"])


# jax would compile each of these for each shape.
NUMPY = {
  "add": lambda x, y, p: x + y,
  "add_any": lambda x, y, p: x + y,
  "mul": lambda x, y, p: x * y,
  "integer_pow": lambda x, p: x ** p["y"],
  "square": lambda x, p: x * x,
  "transpose": lambda x, p: x.transpose(p["permutation"]),
  "rev": lambda x, p: np.flip(x, p["dimensions"]),
  "reduce_sum": lambda x, p: x.sum(axis=tuple(p["axes"])),
  "reshape": reshape,
  "squeeze": lambda x, p: x.squeeze(tuple(p["dimensions"])),
  "broadcast_in_dim": broadcast,
}


class Counter:
  """Runs a jaxpr on numpy arrays; `products` holds the multiplications of each."""

  def __init__(self):
    self.products: list[dict[str, int]] = []  # by kind, where there is a choice

  def run(self, jaxpr, consts, *args):
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))
    read = lambda v: np.asarray(v.val) if isinstance(v, jex.Literal) else env[v]
    for eqn in jaxpr.eqns:
      out = self.step(eqn, [read(v) for v in eqn.invars])
      env.update(zip(eqn.outvars, out))
    return [read(v) for v in jaxpr.outvars]

  def closed(self, closed, *args):
    return self.run(
      getattr(closed, "jaxpr", closed), getattr(closed, "consts", ()), *args
    )

  def step(self, eqn, args):
    name, p = eqn.primitive.name, eqn.params
    if name == "dot_general":
      return [self.dot(*args, p["dimension_numbers"])]
    if name == "conv_general_dilated":
      return [self.conv(*args, p, eqn.outvars[0].aval.shape)]
    if name in ("jit", "pjit", "closed_call", "remat", "remat2", "checkpoint"):
      return self.closed(p["jaxpr"], *args)
    if name.startswith("custom_"):
      return self.closed(p["call_jaxpr"], *args)
    if name == "scan":
      return self.scan(eqn, args)
    if name == "cond":
      return self.cond(args, p["branches"])
    if name in NUMPY:
      return [NUMPY[name](*args, p).astype(eqn.outvars[0].aval.dtype)]
    out = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(p))
    return [np.asarray(x) for x in (out if eqn.primitive.multiple_results else [out])]

  def scan(self, eqn, args):
    # The split of the arguments is read off shapes jax promises: consts and carry come
    # with the types of the body's first inputs, the carry with those of its outputs.
    p = eqn.params
    body = p["jaxpr"]
    if "num_consts" in p:
      n, m = p["num_consts"], p["num_consts"] + p["num_carry"]
    else:
      consts, carry, _ = p["ft_in"].unpack()
      n, m = len(consts), len(consts) + len(carry)
    consts, carry, xs, ys = args[:n], args[n:m], args[m:], []
    order = range(p["length"])
    for i in reversed(order) if p["reverse"] else order:
      out = self.closed(body, *consts, *carry, *(x[i] for x in xs))
      carry, y = out[: m - n], out[m - n :]
      ys.append(y)
    ys = [np.stack(column) for column in zip(*(ys[::-1] if p["reverse"] else ys))]
    return [*carry, *ys]

  def cond(self, args, branches):
    index, *operands = args
    tried = []
    for branch in branches:
      one = Counter()
      tried.append((one.closed(branch, *operands), one.products))
    total = lambda products: sum(p for (p,) in map(dict.values, products))
    self.products += max((products for _, products in tried), key=total)
    return tried[int(np.clip(index, 0, len(branches) - 1))][0]

  def dot(self, a, b, numbers):
    (a_sum, b_sum), (a_batch, b_batch) = numbers
    free = lambda x, used: [i for i in range(x.ndim) if i not in used]
    a_free, b_free = free(a, (*a_sum, *a_batch)), free(b, (*b_sum, *b_batch))
    dims = lambda x, axes: [x.shape[i] for i in axes]
    shapes = [dims(a, a_batch), dims(a, a_free), dims(b, b_free), dims(a, a_sum)]
    out, count = np.zeros([*shapes[0], *shapes[1], *shapes[2]], np.float32), 0
    for g, i, j, k in itertools.product(*(np.ndindex(*s) for s in shapes)):
      at_a, at_b = [0] * a.ndim, [0] * b.ndim
      for axes, index in ((a_batch, g), (a_free, i), (a_sum, k)):
        for axis, position in zip(axes, index):
          at_a[axis] = position
      for axes, index in ((b_batch, g), (b_free, j), (b_sum, k)):
        for axis, position in zip(axes, index):
          at_b[axis] = position
      out[(*g, *i, *j)] += a[tuple(at_a)] * b[tuple(at_b)]
      count += 1
    self.products.append({"dot": count})
    return out

  def conv(self, x, w, p, shape):
    numbers = p["dimension_numbers"]
    last = lambda spec: (spec[0], *spec[2:], spec[1])
    orders = [last(s) for s in numbers]
    x, w = x.transpose(orders[0]), w.transpose(orders[1])
    out = np.zeros([shape[i] for i in orders[2]], np.float32)
    where = Geometry(p, x.shape[1:-1], w.shape[1:-1], out.shape[1:-1])
    groups, many = p["feature_group_count"], p["batch_group_count"]
    channels, filters = w.shape[-1], w.shape[0] // (groups * many)
    count, ways = 0, where.multiplications()
    for group, block in itertools.product(range(groups), range(many)):
      for b, o, c in np.ndindex(out.shape[0], filters, channels):
        feature = (group + block) * filters + o
        image = x[block * out.shape[0] + b, ..., group * channels + c]
        kernel = w[feature, ..., c]
        count += 1
        for place, pixel, tap in next(iter(ways.values())):
          if place is not None and where.inside(pixel) and tap is not None:
            out[(b, *place, feature)] += image[pixel] * kernel[tap]
    self.products.append({way: count * len(all_) for way, all_ in ways.items()})
    return out.transpose(np.argsort(orders[2]))


class Geometry:
  """Which output pixel, input pixel and tap of one plane meet in a multiplication."""

  def __init__(self, p, pixels, taps, places):
    self.pixels, self.taps, self.places = pixels, taps, places
    self.strides, self.padding = p["window_strides"], [q[0] for q in p["padding"]]
    self.spread, self.reach = p["lhs_dilation"], p["rhs_dilation"]

  def inside(self, pixel):
    return all(0 <= i < n for i, n in zip(pixel, self.pixels))

  def multiplications(self):
    """Ways to multiply: name -> (output pixel, input pixel, tap), None for nowhere."""
    if max(self.spread) == 1:
      return {"conv": list(self.im2col())}
    if max(self.strides) > 1:
      return {"conv": list(self.slide())}
    # A kernel that is no weight may be slid over, if that takes fewer multiplications.
    narrow = math.prod(self.places) < math.prod(self.taps) and max(self.reach) == 1
    slide = {"conv": list(self.slide())} if narrow else {}
    return {"transposed_conv": list(self.col2im())} | slide

  def im2col(self):
    for place in np.ndindex(*self.places):
      for tap in np.ndindex(*self.taps):
        pixel = [
          o * s + t * r - q
          for o, s, t, r, q in zip(place, self.strides, tap, self.reach, self.padding)
        ]
        yield place, tuple(pixel), tap  # outside: padding, a multiplication by zero

  def col2im(self):
    for pixel in np.ndindex(*self.pixels):
      for tap in np.ndindex(*self.taps):
        place = [
          i * d + q - t * r
          for i, d, q, t, r in zip(pixel, self.spread, self.padding, tap, self.reach)
        ]
        lands = all(0 <= o < n for o, n in zip(place, self.places))
        yield (tuple(place) if lands else None), pixel, tap

  def slide(self):
    for pixel in np.ndindex(*self.pixels):
      for place in np.ndindex(*self.places):
        tap = [
          i * d + q - o * s
          for i, d, q, o, s in zip(
            pixel, self.spread, self.padding, place, self.strides
          )
        ]
        meets = all(0 <= t < n for t, n in zip(tap, self.taps))
        yield place, pixel, (tuple(tap) if meets else None)


def execute(fn, *args):
  """Value and multiplications of each product of `fn(*args)`, in order."""
  closed = jax.make_jaxpr(fn)(*args)
  counter = Counter()
  out = counter.closed(closed, *map(np.asarray, args))
  return out, counter.products
