"""What a dry run says of a step, against counts by hand and the compiler's own."""

import math
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.runs import mesh, preview
from jaxcodesign.runs.mesh import MeshConfig
from tests.runs import workers

FSDP = MeshConfig(1, 8)


def build(config, devices=None):
  made = config.make(devices)
  step, shardings = workers.step_on(made, config, ())
  state, batch = workers.shapes_on(made, shardings)
  return made, step, state, (batch,)


@pytest.fixture(scope="module")
def found():
  made, step, state, batch = build(FSDP)
  return preview.preview(step, state, batch, mesh=made, platform="cuda")


def test_bytes_are_the_shards_of_state_and_batch(found):
  state, batch = jax.eval_shape(workers.start), next(workers.batches())
  size = lambda x: math.prod(x.shape) * np.dtype(x.dtype).itemsize
  large = sum(size(x) for x in jax.tree.leaves(state) if math.prod(x.shape) >= 1024)
  small = sum(size(x) for x in jax.tree.leaves(state)) - large
  assert large > 10 * 1024
  by_hand = large // 8 + small + sum(size(x) for x in batch.values()) // 8
  assert found.argument_bytes == by_hand
  # The compiler pads small arrays.
  assert by_hand <= found.memory.argument <= 1.05 * by_hand + 1024


def test_the_state_is_updated_in_place(found):
  over = next(workers.batches()).values()
  held = found.argument_bytes - sum(x.nbytes for x in over) // 8
  assert found.memory.alias == held
  # Of the output no more than the loss and a table of pointers is new.
  assert found.memory.output - held < 512
  assert found.memory.peak >= found.memory.argument + found.memory.temp


def products_by_hand():
  """Multiplications of the layers: forward, by weights, and by inputs but the first."""
  b, (one, two), hidden = workers.BATCH, workers.MODEL.channels, workers.MODEL.hidden
  first = b * 8 * 8 * 9 * 1 * one
  second = b * 4 * 4 * 9 * one * two
  dense = b * (2 * 2 * two * hidden + hidden * workers.CLASSES)
  return 2 * first + 3 * (second + dense)


def test_operations_are_those_of_three_products_a_layer(found):
  # The transposed convolution that autodiff writes for an input gradient has no more
  # products than the forward one.
  assert found.macs == products_by_hand() and found.flops == 2 * found.macs


def test_the_time_is_that_of_each_product_at_its_bound(found):
  peak, bandwidth = 67e12, 3.35e12
  values = lambda g: g.lhs_elements + g.rhs_elements + g.out_elements
  times = [
    max(2 * g.macs / peak, 4 * values(g) / bandwidth) for g in found.workload.gemms
  ]
  assert found.format == "fp32" and found.chip.name == "H100 SXM"
  np.testing.assert_allclose(found.time_s, sum(times) / 8, rtol=1e-12)
  assert found.fits


def test_what_was_found_is_printed(found):
  text = str(found)
  for part in ("8 devices", "H100", "all-gather", "FLOP", "cuda program is lowered"):
    assert part in text
  assert found.table().row_count == len(found.rows())


def test_a_step_that_cannot_be_counted_is_counted_by_its_loss(monkeypatch):
  class State(NamedTuple):
    params: Any

  class Outcome(NamedTuple):
    loss: Any

  made = MeshConfig().make()
  everywhere = jax.NamedSharding(made, jax.P())

  def loss(params, batch):
    return Outcome(jnp.sum((batch["x"] @ params) ** 2))

  def step(state, batch):
    grads = jax.grad(lambda p: loss(p, batch).loss)(state.params)
    half = lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 1, lambda x: x / 2, x)
    return State(state.params - half(grads))

  w = jax.ShapeDtypeStruct((4, 4), jnp.float32, sharding=everywhere)
  x = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=mesh.batch_sharding(made))
  arguments = jax.jit(step), State(w), ({"x": x},)
  told = preview.preview(*arguments, mesh=made)
  assert told.macs is told.flops is told.time_s is told.fits is None
  assert "not known" in str(told) and "while loop" in str(told)
  told = preview.preview(*arguments, mesh=made, loss=loss)
  assert told.macs == 2 * 8 * 4 * 4
  assert "loss and its gradient alone" in str(told)


@pytest.mark.parametrize(
  ("wrong", "why"), [({"platform": "gpu"}, "platform"), ({"chip": "h1000"}, "chip")]
)
def test_platforms_and_chips_that_are_none_are_refused(wrong, why):
  made, step, state, batch = build(MeshConfig())
  with pytest.raises(ValueError, match=f"{why}='{wrong[why]}' is none of"):
    preview.preview(step, state, batch, mesh=made, **wrong)


@pytest.mark.parametrize(
  ("chip", "count", "name"),
  [
    ("tpu_v5e", 1, "v5e:1x1"), ("tpu_v5e", 8, "v5e:2x4"), ("tpu_v6e", 64, "v6e:8x8"),
    ("tpu_v5p", 4, "v5p:2x2x1"), ("tpu_v5p", 8, "v5p:2x2x2"),
    ("tpu_v4", 16, "v4:2x2x4"), ("tpu_v5p", 32, "v5p:2x4x4"),
  ],
)  # fmt: skip
def test_slices_of_tpus_are_as_square_as_can_be(chip, count, name):
  assert preview.topology(chip, count) == name


@pytest.mark.parametrize(
  ("chip", "count", "why"),
  [("h100", 8, "chip='h100' is none of tpu_v4"), ("tpu_v5e", 12, "a power of two")],
)
def test_other_slices_are_refused(chip, count, why):
  with pytest.raises(ValueError, match=why):
    preview.topology(chip, count)


RESNET = """
import jax, jax.numpy as jnp, optax
from typing import Any, NamedTuple
from jaxcodesign.models import published
from jaxcodesign.runs import mesh, preview
from jaxcodesign.runs import processes as distributed

distributed.require_devices(64)

class State(NamedTuple):
  params: Any
  optimizer: Any

config, optimizer = mesh.MeshConfig(data=8, fsdp=8), optax.sgd(0.1, momentum=0.9)
made, model = config.make(), published.resnet(50, batch=64 * 4)
state = jax.eval_shape(lambda p: State(p, optimizer.init(p)), model.params)
shardings = mesh.state_shardings(made, config, state)
over = mesh.batch_sharding(made)

def step(state, images):
  whole = lambda p: mesh.gathered(p, shardings=shardings.params)
  grads = jax.grad(lambda p: jnp.mean(model.fn(whole(p), images) ** 2))(state.params)
  changes, moved = optimizer.update(grads, state.optimizer)
  return State(optax.apply_updates(state.params, changes), moved)

step = jax.jit(
  step, donate_argnums=0, in_shardings=(shardings, over), out_shardings=shardings
)
images = mesh.shapes(model.inputs, over)
told = preview.preview(
  step, mesh.shapes(state, shardings), (images,), mesh=made, platform="tpu"
)
print(told.argument_bytes, told.memory.alias, told.macs, told.fits)
"""


def test_a_resnet_50_on_64_devices():
  run = subprocess.run(
    [sys.executable, "-c", RESNET], capture_output=True, text=True, cwd=workers.ROOT
  )
  assert run.returncode == 0, run.stderr
  held, alias, macs, fits = run.stdout.split()
  # 25.6 M parameters and as many momenta, all but 0.2 % in eighths, and 4 images.
  images = 4 * 4 * 224 * 224 * 3
  assert int(held) - images == pytest.approx(2 * 4 * 25_557_032 / 8, rel=0.02)
  assert int(alias) == int(held) - images
  # 4.09 G multiplications an image, published; three times, less the stem's input.
  assert int(macs) / 256 == pytest.approx(3 * 4.09e9 - 118e6, rel=0.01)
  assert fits == "True"
