"""Published implementations, bit for bit: tests/reference/golden_formats.npz.

Its vectors were made with exact float64 arithmetic (spec), torchao, gfloat and
ml_dtypes. What they keep of float32 subnormals, the library's policy flushes.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.numerics import formats
from jaxcodesign.numerics.formats import exponents, noise, normal_float

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / "reference/golden_formats.npz")
TINY = 2.0**-126
HUGE = np.finfo(np.float32).max
ELEMENTS = {
  "mxfp4_e2m1": formats.E2M1,
  "mxfp6_e3m2": formats.E3M2,
  "mxfp6_e2m3": formats.E2M3,
  "mxfp8_e4m3": formats.E4M3,
  "mxfp8_e5m2": formats.E5M2,
  "mxint8": formats.Fixed(8),
  "mxint4": formats.Fixed(4),
  "mxint2": formats.Fixed(2),
}
SHORT = {
  "e4m3": formats.E4M3,
  "e5m2": formats.E5M2,
  "e2m1": formats.E2M1,
  "e2m3": formats.E2M3,
  "e3m2": formats.E3M2,
  "fp6_e2m3": formats.E2M3,
  "fp6_e3m2": formats.E3M2,
}
CASTS = {
  "float8_e4m3fn": formats.Minifloat(4, 3, "fn", "special"),
  "float8_e5m2": formats.Minifloat(5, 2, "ieee", "special"),
  "float8_e4m3": formats.Minifloat(4, 3, "ieee", "special"),
  "float8_e3m4": formats.Minifloat(3, 4, "ieee", "special"),
  "float4_e2m1fn": formats.E2M1,
  "float6_e2m3fn": formats.E2M3,
  "float6_e3m2fn": formats.E3M2,
  "bfloat16": formats.Minifloat(8, 7, "ieee", "special"),
  "float16": formats.Minifloat(5, 10, "ieee", "special"),
}
MODES = {"Stochastic": "stochastic", "StochasticFast": "fast"}
quantize = jax.jit(lambda fmt, x, key=None: fmt.quantize(x, key))
scale_of = jax.jit(lambda fmt, x: fmt.scale(x))
elements_of = jax.jit(lambda fmt, x, scale: fmt.elements(x, scale, None))


def keys(prefix):
  return sorted(k for k in GOLDEN if k.startswith(prefix))


def families(prefix, parts):
  """Keys that agree in their first `parts` parts, without the name of the input."""
  return sorted({"/".join(k.split("/")[:parts]) for k in keys(prefix)})


def inputs(key):
  """The input that a vector was made from, and where it is no subnormal."""
  x = GOLDEN["in/" + key.split("/")[-1]]
  return jnp.asarray(x), np.abs(x) >= TINY


def expect(found, wanted, normal):
  """Equal bits, and zero for a subnormal, put in or got out."""
  wanted = np.where((np.abs(wanted) < TINY) | ~normal, 0, wanted)
  np.testing.assert_array_equal(found, wanted)


def block_format(name, block, rule):
  rule, block = {"even": "even", "nearest": "away"}[rule], int(block[1:])
  if name.startswith("bfp"):
    return formats.BlockFloat(int(name[5:]), block, rule=rule)
  return formats.Microscaling(dataclasses.replace(ELEMENTS[name], rule=rule), block)


@pytest.mark.parametrize("family", families("spec/", 4))
def test_blocks_are_those_of_the_specification(family):
  fmt = block_format(*family.split("/")[1:])
  # Blocks end within 64 values: rows of any length are rows of 64, one compilation.
  rows = [key for key in keys(family + "/") if inputs(key)[0].size % 64 == 0]
  odd = sorted({*keys(family + "/")} - {*rows})
  assert len(rows) >= 4 and odd
  flat = lambda arrays: np.concatenate([np.reshape(a, (-1, 64)) for a in arrays])
  x, normal = map(flat, zip(*map(inputs, rows)))
  expect(quantize(fmt, x), flat(GOLDEN[key] for key in rows), normal)
  for key in odd:
    x, normal = inputs(key)
    expect(quantize(fmt, x), GOLDEN[key], normal)


@pytest.mark.parametrize("family", families("spec/", 4))
def test_the_specification_holds_out_of_jit_and_inside_vmap(family):
  fmt = block_format(*family.split("/")[1:])
  # No multiple of a block; below it, rows next to powers of two, cut where all blocks
  # have ended: both in one shape, as every operation is compiled for each.
  odd, near = inputs("odd_a"), inputs("pow2")
  rows, columns = odd[0].shape
  x = jnp.asarray(np.concatenate([odd[0], near[0][:, :columns]]))
  for found in (fmt.quantize(x), jax.jit(jax.vmap(fmt.quantize))(x)):
    expect(found[:rows], GOLDEN[f"{family}/odd_a"], odd[1])
    wanted = GOLDEN[f"{family}/pow2"][:, :32]
    expect(found[rows:, :32], wanted, near[1][:, :32])


@pytest.mark.parametrize("name", sorted(ELEMENTS))
def test_shared_exponents(name):
  fmt = formats.Microscaling(ELEMENTS[name])
  for key in keys(f"specexp/{name}/"):
    np.testing.assert_array_equal(fmt.scale(inputs(key)[0]), GOLDEN[key])


@pytest.mark.parametrize("family", families("torchao_mx/", 3))
def test_torchao_scale_rules(family):
  _, element, rule = family.split("/")
  fmt = formats.Microscaling(SHORT[element], 32, rule)
  most = 254 - fmt.element.top
  for key in keys(family + "/scale_e8m0/"):
    e = fmt.scale(inputs(key)[0])
    # Beyond `most` torchao's largest element is infinite.
    wanted = np.minimum(GOLDEN[key].reshape(e.shape), most)
    np.testing.assert_array_equal(e + 127, wanted)
  for key in keys(family + "/deq/"):
    if key.endswith("/denorm"):
      continue  # torchao clamps these scales to 2^-126, against the specification
    x, normal = inputs(key)
    scales = GOLDEN[key.replace("/deq/", "/scale_e8m0/")].reshape(x.shape[0], -1)
    same = np.repeat(scales <= most, 32, -1)[:, : x.shape[1]]
    found, wanted = quantize(fmt, x), GOLDEN[key]
    expect(np.where(same, found, 0), np.where(same, wanted, 0), normal)


@pytest.mark.parametrize("key", keys("torchao_nvfp4/"))
def test_nvfp4_without_a_scale_for_the_tensor(key):
  x, normal = inputs(key)
  expect(quantize(formats.ScaledBlocks(tensor=False), x), GOLDEN[key], normal)


TORCHAO = {
  "int8_row": formats.Fixed(8, "channel", "full"),
  "int8_row_noclip": formats.Fixed(8, "channel", "full"),
  "int4_g32": formats.Fixed(4, 32, "full"),
  "uint4_asym_g32": formats.Fixed(4, 32, "affine"),
}


@pytest.mark.parametrize("family", sorted(TORCHAO))
def test_torchao_integers(family):
  fmt = TORCHAO[family]
  for key in keys(f"torchao/{family}/q/"):
    x, _ = inputs(key)
    other = {k: GOLDEN[key.replace("/q/", f"/{k}/")] for k in ("scale", "zp", "deq")}
    scale = scale_of(fmt, x)
    # torchao's largest codes overflow near the end of float32; there ours stop before.
    if fmt.grid == "affine":
      step, zero = (a.reshape(scale.zero.shape) for a in (other["scale"], other["zp"]))
      used = np.asarray(exact_peak(x, step.shape) > 0) & (step < HUGE / 32)
      scale, own = scale._replace(step=step, zero=zero.astype("f4")), scale
      np.testing.assert_array_max_ulp(np.asarray(own.step)[used], step[used], 1)
      np.testing.assert_array_equal(np.asarray(own.zero)[used], zero[used])
    else:
      step = other["scale"].reshape(scale.shape)
      used = np.asarray(exact_peak(x, step.shape) > 0) & (step < HUGE / 256)
      if family != "int8_row_noclip":  # another rule for its scale: taken as given
        np.testing.assert_array_max_ulp(np.asarray(scale)[used], step[used], 1)
      scale = step
    codes = np.asarray(elements_of(fmt, x, scale))
    steps = np.asarray(x, "f8").reshape(*step.shape, -1) / step[..., None].astype("f8")
    tie = np.abs(np.abs(steps - np.floor(steps)) - 0.5) < 1e-6
    wanted = GOLDEN[key].astype("f4")
    np.testing.assert_array_equal(
      codes[~tie.reshape(x.shape)], wanted[~tie.reshape(x.shape)]
    )


def exact_peak(x, shape):
  return np.abs(np.asarray(x).reshape(*shape, -1)).max(-1)


@pytest.mark.parametrize("family", families("qwix/int", 2))
def test_qwix_integers(family):
  bits, lanes = family.removeprefix("qwix/int").split("_")
  fmt = formats.Fixed(int(bits), "channel" if lanes == "row" else 32, "full")
  for key in keys(family + "/q/"):
    x, _ = inputs(key)
    step = GOLDEN[key.replace("/q/", "/scale/")]
    scale = scale_of(fmt, x)
    zero = np.asarray(exact_peak(x, scale.shape) == 0)
    step = step.reshape(scale.shape)
    np.testing.assert_array_max_ulp(np.asarray(scale)[~zero], step[~zero], 1)
    codes = np.asarray(elements_of(fmt, x, step))
    steps = np.asarray(x, "f8").reshape(*step.shape, -1) / step[..., None].astype("f8")
    tie = (np.abs(steps - np.floor(steps) - 0.5) < 1e-6).reshape(x.shape)
    np.testing.assert_array_equal(codes[~tie], GOLDEN[key].astype("f4")[~tie])


def test_qwix_normal_floats():
  fmt = formats.NormalFloat(32)
  for key in keys("qwix/nf4_t32/q/"):
    x, _ = inputs(key)
    of = lambda what, key=key: GOLDEN[key.replace("/q/", f"/{what}/")]
    scale = scale_of(fmt, x)
    np.testing.assert_array_equal(scale, of("scale").reshape(scale.shape))
    codes = GOLDEN[key].astype("i4")
    found = elements_of(fmt, x, scale)
    np.testing.assert_array_equal(found, np.float32(normal_float.LEVELS)[codes])
    np.testing.assert_allclose(quantize(fmt, x), of("deq"), rtol=3e-7)


@pytest.mark.parametrize(
  ("family", "element"), [("mxfp8", formats.E4M3), ("mxfp4", formats.E2M1)]
)
def test_qwix_microscaling(family, element):
  """Its scale is the smallest that saturates nothing."""
  fmt = formats.Microscaling(element, scale_rule="rceil")
  for key in keys(f"qwix/{family}/deq/"):
    x, _ = inputs(key)
    np.testing.assert_array_equal(quantize(fmt, x), GOLDEN[key])
    scale = np.asarray(scale_of(fmt, x))
    wanted = GOLDEN[key.replace("/deq/", "/scale/")]
    used = exact_peak(x, scale.shape) > 0
    np.testing.assert_array_equal((2.0**scale)[used], wanted[used])


def test_e8m0_codes_are_those_of_ml_dtypes():
  codes = jax.jit(
    lambda x: jax.lax.bitcast_convert_type(exponents.nearest_e8m0(x), jnp.uint8)
  )
  for key in keys("mldtypes/float8_e8m0fnu/"):
    np.testing.assert_array_equal(codes(inputs(key)[0]), GOLDEN[key])
  odd = jnp.float32([0, -0.0, -1, jnp.nan, jnp.inf, -jnp.inf, 2.0**127, 3e38])
  np.testing.assert_array_equal(codes(odd), [255] * 6 + [254, 255])


@pytest.mark.parametrize("name", sorted(CASTS))
def test_codes_are_those_of_ml_dtypes(name):
  fmt = CASTS[name]
  codes = jax.jit(lambda x: fmt.codes(fmt.elements(x, fmt.scale(x), None)))
  for key in keys(f"mldtypes/{name}/"):
    x, normal = inputs(key)
    # bfloat16 alone has room for what the policy flushes.
    kept = normal | (fmt.exponent < 8) | (GOLDEN["in/" + key.split("/")[-1]] == 0)
    np.testing.assert_array_equal(np.where(kept, codes(x), 0), GOLDEN[key] * kept)


@pytest.mark.parametrize("key", keys("gfloat/"))
def test_gfloat_saturates_to_nearest(key):
  x, normal = inputs(key)
  expect(quantize(SHORT[key.split("/")[1]], x), GOLDEN[key], normal)


@pytest.mark.parametrize("family", families("gfloat_sr/e", 4))
def test_stochastic_rounding_from_explicit_bits(family):
  _, element, mode, width = family.split("/")
  for key in keys(family + "/"):
    x, normal = inputs(key)
    bits = jnp.asarray(GOLDEN[f"gfloat_sr/bits{width}/{key.split('/')[-1]}"])
    source = noise.Explicit(bits, int(width), MODES.get(mode, "fastest"))
    expect(quantize(SHORT[element], x, source), GOLDEN[key], normal)
