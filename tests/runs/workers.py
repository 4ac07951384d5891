"""A small training on any mesh, and the processes that tests start: workers.py NAME."""

import json
import pathlib
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcodesign.models import Cnn
from jaxcodesign.numerics.formats import BlockFloat
from jaxcodesign.programs.precision import Rule, quantize
from jaxcodesign.runs import mesh
from jaxcodesign.runs import processes as distributed
from jaxcodesign.runs.mesh import MeshConfig
from jaxcodesign.training import losses
from launch import children

ROOT = pathlib.Path(__file__).parents[2]
MODEL, IMAGE, CLASSES, BATCH, STEPS = Cnn((8, 16), 32), (8, 8, 1), 10, 32, 5
BFP = BlockFloat(4)
POLICIES = {"float32": (), "bfp": (Rule("*", BFP, BFP, gradient=BFP),)}
OPTIMIZER = optax.adamw(1e-2)
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


class State(NamedTuple):
  step: Any
  params: Any
  optimizer: Any


def batches(rows=slice(None)):
  rng = np.random.default_rng(0)
  for _ in range(STEPS):
    image = rng.normal(size=(BATCH, *IMAGE)).astype("f4")
    label = rng.integers(CLASSES, size=BATCH).astype("i4")
    yield {"image": image[rows], "label": label[rows]}


def start():
  params = MODEL.init(jax.random.key(0), IMAGE, CLASSES)
  return State(jnp.int32(0), params, OPTIMIZER.init(params))


def step_on(made, config, policy):
  """The jitted step, and where its state lies."""
  shardings = mesh.state_shardings(made, config, jax.eval_shape(start))

  def loss_of(params, batch):
    return losses.cross_entropy(
      MODEL.apply(params, batch["image"]), batch["label"], 0.1
    )

  precise = quantize(loss_of, policy) if policy else loss_of
  loss = lambda params, batch: precise(
    mesh.gathered(params, shardings=shardings.params), batch
  )

  def step(state, batch):
    value, grads = jax.value_and_grad(loss)(state.params, batch)
    with jax.numpy_dtype_promotion("standard"):
      changes, moved = OPTIMIZER.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, changes)
    return State(state.step + 1, params, moved), value

  everywhere = jax.NamedSharding(made, jax.P())
  jitted = jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(shardings, mesh.batch_sharding(made)),
    out_shardings=(shardings, everywhere),
  )
  return jitted, shardings


def shapes_on(made, shardings):
  """ShapeDtypeStructs of the step's arguments."""
  over = mesh.batch_sharding(made)
  batch = next(batches())
  state = mesh.shapes(jax.eval_shape(start), shardings)
  return state, mesh.shapes(batch, dict.fromkeys(batch, over))


def curve(config, policy, devices=None):
  """Loss of each step."""
  made = config.make(devices)
  step, shardings = step_on(made, config, policy)
  state, found = mesh.place(start(), shardings), []
  part = mesh.part(made)
  own = BATCH // part.count
  for local in batches(slice(part.index * own, (part.index + 1) * own)):
    state, loss = step(state, mesh.global_batch(made, local))
    found.append(float(loss))
  return found


def spawn(name, processes, cpu_devices, *args):
  """Starts the processes of a run; [Popen]."""
  environment = children.environment(
    JAXCODESIGN_COORDINATOR=children.address(),
    JAXCODESIGN_PROCESSES=str(processes),
    PYTHONPATH=str(ROOT),
  )
  command = [sys.executable, __file__, name, str(cpu_devices), *args]
  return [
    subprocess.Popen(
      command, env=environment | {"JAXCODESIGN_PROCESS": str(i)}, **PIPES
    )
    for i in range(processes)
  ]


def pair(code, *args):
  """Two processes that run `code` with `args`, the coordinator and their number."""
  command = [sys.executable, "-c", code, *args, children.address()]
  return [
    subprocess.Popen([*command, str(i)], env=children.environment(), **PIPES)
    for i in range(2)
  ]


def train(processes):
  """Prints the curves of both policies on the mesh of all processes."""
  found = {n: curve(MeshConfig(fsdp=2), p) for n, p in POLICIES.items()}
  print(json.dumps(found), flush=True)


def loop(processes):
  """Sums over all devices until something ends it."""
  made = MeshConfig().make()
  total = jax.jit(lambda x: x / jnp.sum(x))
  rows = np.ones(jax.local_device_count(), np.float32)
  x = mesh.global_batch(made, {"x": rows})["x"]
  fails = sys.argv[3:] == ["fails"] and processes.index == processes.count - 1
  for i in range(10_000):
    x = total(x)
    jax.block_until_ready(x)
    if i == 0:
      print("ready", flush=True)
    if fails and i == 20:
      raise ValueError("the loss is not a number")
    time.sleep(0.01)


if __name__ == "__main__":
  asked = distributed.Distributed(cpu_devices=int(sys.argv[2]), patience_s=60)
  with distributed.initialize(asked) as found:
    {"train": train, "loop": loop}[sys.argv[1]](found)
