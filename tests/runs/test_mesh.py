"""Where arrays lie on a mesh, and that it does not matter to what is computed."""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcodesign.programs.precision import Rule
from jaxcodesign.runs import mesh, preview
from jaxcodesign.runs.mesh import MeshConfig
from tests.runs import workers

DEVICES = 8


class State(NamedTuple):
  step: Any
  params: Any
  optimizer: Any
  telemetry: Any


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


PARAMS = {
  "blocks": {"up": shape(64, 256), "down": shape(256, 64)},
  "conv": {"kernel": shape(3, 3, 16, 30), "bias": shape(30)},
}


def specs(shardings):
  leaves = jax.tree.leaves(shardings)
  return {n: tuple(s.spec) for n, s in zip(mesh.tree.names(shardings), leaves)}


@pytest.mark.parametrize(
  ("config", "sizes"),
  [
    (MeshConfig(), (8, 1, 1)),
    (MeshConfig(fsdp=2, tensor=2), (2, 2, 2)),
    (MeshConfig(1, -1, 2), (1, 4, 2)),
    (MeshConfig(2, 4, 1), (2, 4, 1)),
  ],
)
def test_a_mesh_covers_the_devices(config, sizes):
  made = config.make()
  assert tuple(made.shape.values()) == sizes and made.axis_names == mesh.AXES
  assert config.size() == (0 if -1 in (config.data, config.fsdp) else DEVICES)
  assert set(made.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
  "config",
  [MeshConfig(3), MeshConfig(fsdp=3), MeshConfig(2, 2, 1), MeshConfig(fsdp=16)],
)
def test_a_mesh_that_does_not_is_refused(config):
  with pytest.raises(ValueError, match="does not cover 8 devices: make the sizes"):
    config.make()


@pytest.mark.parametrize(
  "wrong",
  [
    {"data": 0},
    {"data": -1, "fsdp": -1},
    {"rules": (("*", ("model",)),)},
    {"rules": (("*", ("fsdp", "fsdp")),)},
  ],
)
def test_configs_that_mean_nothing_are_refused(wrong):
  with pytest.raises(ValueError, match=r"sizes are|rules: '\*' has"):
    MeshConfig(**wrong)


def test_parameters_lie_over_their_largest_axis_and_their_outputs():
  config = MeshConfig(2, 2, 2)
  assert specs(mesh.parameter_shardings(config.make(), config, PARAMS)) == {
    "blocks/up": ("fsdp", "tensor"),
    "blocks/down": ("fsdp", "tensor"),
    "conv/kernel": (None, None, "fsdp", "tensor"),
    "conv/bias": (),
  }
  config = MeshConfig(2, 4, 1)
  assert specs(mesh.parameter_shardings(config.make(), config, PARAMS)) == {
    "blocks/up": (None, "fsdp"),
    "blocks/down": ("fsdp", None),
    "conv/kernel": (None, None, "fsdp", None),  # 4 does not divide 30
    "conv/bias": (),
  }


def test_rules_go_first():
  rules = (("blocks/down", ("tensor",)), ("blocks/*", ("data", None)), ("*/bias", ()))
  config = MeshConfig(2, 2, 2, rules)
  found = specs(mesh.parameter_shardings(config.make(), config, PARAMS))
  assert found["blocks/down"] == ("tensor", "fsdp")
  assert found["blocks/up"] == ("data", "fsdp")
  assert found["conv/bias"] == (None,)


@pytest.mark.parametrize(
  ("rule", "why"),
  [
    (("block/*", ("fsdp",)), "matches no name; nearest: .*blocks/"),
    (("conv/bias", ("fsdp", None)), "longer than the shape"),
    (("conv/kernel", ("tensor",)), "tensor=2 does not divide 3"),
  ],
)
def test_rules_that_cannot_be_followed_are_refused(rule, why):
  config = MeshConfig(2, 2, 2, (rule,))
  with pytest.raises(ValueError, match=why):
    mesh.parameter_shardings(config.make(), config, PARAMS)


def test_the_optimizer_lies_as_its_parameters_and_the_rest_everywhere():
  optimizer = optax.chain(optax.adamw(1e-3), optax.trace(0.9), optax.ema(0.9))
  state = jax.eval_shape(
    lambda p: State(jnp.int32(0), p, optimizer.init(p), jnp.zeros((64, 256))), PARAMS
  )
  config = MeshConfig(2, 2, 2)
  found = specs(mesh.state_shardings(config.make(), config, state))
  params = {n: s for n, s in found.items() if n.startswith("params/")}
  assert len(params) == 4
  copies = 0
  for name, spec in found.items():
    owner = next((p for p in params if name.endswith(p.removeprefix("params"))), None)
    assert spec == (params[owner] if owner else ()), name
    copies += bool(owner)
  assert copies == 4 * 5  # themselves, mu, nu, trace, ema
  with pytest.raises(ValueError, match="no attribute params"):
    mesh.state_shardings(config.make(), config, {"params": PARAMS})


def test_batches_are_split_over_data_and_fsdp():
  made = MeshConfig(2, 2, 2).make()
  local = {"image": np.arange(24.0).reshape(8, 3), "label": np.arange(8)}
  batch = mesh.global_batch(made, local)
  for name, values in batch.items():
    np.testing.assert_array_equal(values, local[name])
    assert values.sharding.shard_shape(values.shape)[0] == 2
  assert mesh.part(made) == mesh.Part(0, 1)


@pytest.mark.parametrize(
  ("rows", "why"),
  [
    ((6, 6), "a batch of 6 does not divide over data \\* fsdp = 4; make it a multiple"),
    ((8, 4), "same first axis"),
    ((0, 0), "does not divide"),
  ],
)
def test_batches_that_cannot_be_shared_are_refused(rows, why):
  local = {"image": np.zeros((rows[0], 3)), "label": np.zeros(rows[1])}
  with pytest.raises(ValueError, match=why):
    mesh.global_batch(MeshConfig(2, 2, 2).make(), local)


def test_placed_values_are_the_same_and_lie_as_told():
  config = MeshConfig(2, 2, 2)
  made = config.make()
  values = {"w": np.arange(4096.0).reshape(64, 64), "key": jax.random.key(3)}
  shardings = {
    "w": mesh.parameter_shardings(made, config, values)["w"],
    "key": jax.NamedSharding(made, jax.P()),
  }
  placed = mesh.place(values, shardings)
  np.testing.assert_array_equal(placed["w"], values["w"])
  assert placed["w"].addressable_shards[0].data.shape == (32, 32)
  assert placed["key"] == values["key"]


@pytest.fixture(scope="module")
def curves():
  """The loss of five steps: on one device, on meshes of eight, on two processes."""
  runs = workers.spawn("train", 2, 4)
  alone = jax.devices()[:1]
  found: dict[str, Any] = {
    name: {
      "1 device": workers.curve(MeshConfig(), policy, alone),
      "4 x 2": workers.curve(MeshConfig(4, 2), policy),
      "2 x 2 x 2": workers.curve(MeshConfig(2, 2, 2), policy),
    }
    for name, policy in workers.POLICIES.items()
  }
  for i, run in enumerate(runs):
    out, told = run.communicate(timeout=100)
    assert run.returncode == 0, told
    for name, curve in json.loads(out.splitlines()[-1]).items():
      found[name][f"process {i} of 2 x 4"] = curve
  return found


@pytest.mark.parametrize("policy", workers.POLICIES)
def test_the_loss_curve_is_the_same_on_every_mesh(curves, policy):
  # Measured: 1.6e-7 at most, in both; sums are in another order.
  reference = curves[policy].pop("1 device")
  assert len(curves[policy]) == 4 and reference[-1] < reference[0]
  for where, curve in curves[policy].items():
    np.testing.assert_allclose(curve, reference, rtol=1e-6, err_msg=where)
  assert not np.allclose(curves["float32"]["4 x 2"], curves["bfp"]["4 x 2"], rtol=1e-3)


@pytest.mark.parametrize(
  "config", [MeshConfig(8), MeshConfig(2, 4), MeshConfig(2, 2, 2)]
)
def test_quantization_adds_no_collectives(config, monkeypatch):
  # A device holds 16 rows or more: what the groups of weight gradients run over.
  monkeypatch.setattr(workers, "BATCH", 16 * DEVICES)
  bfp, made, found = workers.BFP, config.make(), []
  # Split over "tensor", the few channels of the convolutions are no whole blocks.
  gradient = None if config.tensor > 1 else bfp
  rules = (
    Rule("dense*", bfp, bfp, gradient=bfp),
    Rule("conv*", bfp, bfp, gradient=gradient),
  )
  for policy in ((), rules):
    step, shardings = workers.step_on(made, config, policy)
    lowered = step.lower(*workers.shapes_on(made, shardings))
    found.append(preview.collectives(lowered.compile().as_text()))
  assert found[0] == found[1]
  assert found[0]["all-reduce"] >= 1
  if config.fsdp == 4:  # the textbook: each sharded weight gathered once
    assert found[0] == {"all-gather": 2, "all-reduce": 1}
