"""Processes that save: killed at any instant, and two that save as one."""

import subprocess
import sys
import time

import chex
import jax.numpy as jnp
import numpy as np

from jaxcodesign.runs.disk.checkpoints import Checkpoints
from tests.runs import workers

SAVES = """
import itertools, sys, jax.numpy as jnp
from jaxcodesign.runs.disk.checkpoints import Checkpoints
with Checkpoints(sys.argv[1], fingerprint="abc") as c:
  found = c.restore({"w": jnp.zeros(200_000), "n": jnp.int32(0)})
  first = found.step if found else 0
  assert found is None or (int(found.state["n"]) == first and not found.refused)
  assert found is None or bool((found.state["w"] == first).all())
  print("ready", first, flush=True)
  for i in itertools.count(first + 1):
    c.save(i, {"w": jnp.full(200_000, float(i)), "n": jnp.int32(i)}, {})
"""


def test_kill_at_any_instant_leaves_a_whole_checkpoint(tmp_path):
  rng = np.random.default_rng(0)
  steps = []
  for _ in range(3):
    command = [sys.executable, "-c", SAVES, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
      steps.append(int(run.stdout.readline().split()[1]))
      time.sleep(0.3 + rng.random())
      run.kill()
  with Checkpoints(tmp_path, fingerprint="abc") as c:
    like = {"w": jnp.zeros(200_000), "n": jnp.int32(0)}
    found = c.restore(like)
  steps.append(found.step)
  assert steps == sorted(steps) and steps[-1] > steps[0] and not found.refused
  assert int(found.state["n"]) == found.step
  chex.assert_trees_all_equal(found.state["w"], jnp.full(200_000, float(found.step)))


PROCESSES = """
import pathlib, sys
import jax, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_num_cpu_devices", 2)
folder, address, index = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(address, 2, index)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxcodesign.runs.disk.checkpoints import Checkpoints

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
shardings = {"split": NamedSharding(mesh, P("data")), "all": NamedSharding(mesh, P())}
shardings["key"] = shardings["all"]

@jax.jit(out_shardings=shardings)
def state(n):
  x = jax.numpy.arange(32.0).reshape(8, 4) + n
  return {"split": x, "all": 2 * x, "key": jax.random.key(n)}

def bits(tree):
  tree = tree | {"key": jax.random.key_data(tree["key"])}
  return [s.data.tobytes() for x in tree.values() for s in x.addressable_shards]

with Checkpoints(folder, fingerprint="abc", keep_last=3) as c:
  assert c.restore(state(0)) is None
  for step in (1, 2, 3):
    c.save(step, state(step), {"step": step}, score=-step)
  found = c.restore(state(0))
  assert found.step == 3 and bits(found.state) == bits(state(3))
  assert found.state["split"].sharding == shardings["split"]
  if index == 0:
    for path in (folder / "step_00000003").rglob("manifest.ocdbt"):
      path.write_bytes(b"?")
  found = c.restore(state(0))
  assert found.step == found.extra["step"] == 2 and bits(found.state) == bits(state(2))
  print(found.refused, c.best(), flush=True)
jax.distributed.shutdown()
"""


def test_processes_save_together_and_restore_the_same_step(tmp_path):
  runs = workers.pair(PROCESSES, str(tmp_path))
  told = [run.communicate(timeout=60) for run in runs]
  assert [run.returncode for run in runs] == [0, 0], told
  last = [out.splitlines()[-1] for out, _ in told]
  assert last[0] == last[1] and "step 3 is damaged" in last[0], last
  assert last[0].endswith("(1, -1.0)")
