"""Processes meet as they are told or a cluster says; one that dies ends them all."""

import os
import socket
import time

import jax
import pytest

from jaxcodesign.runs import processes as distributed
from jaxcodesign.runs.processes import Distributed, Processes
from tests.runs import workers

HERE = Distributed("localhost:9876", 2, 1)


@pytest.fixture
def nowhere(monkeypatch):
  """An environment that no scheduler has been at."""
  for name in os.environ:
    if name.startswith(("SLURM", "OMPI", "TPU", "MEGASCALE", "KUBER", "JAXCODESIGN")):
      monkeypatch.delenv(name)


def test_the_environment_fills_what_the_config_leaves_open():
  said = {
    "JAXCODESIGN_COORDINATOR": "localhost:9876",
    "JAXCODESIGN_PROCESSES": "2",
    "JAXCODESIGN_PROCESS": "1",
  }
  assert Distributed().resolve(said) == HERE
  assert Distributed("a:1", 3, 0).resolve(said) == Distributed("a:1", 3, 0)
  assert Distributed("a:1", 3).resolve(said) == Distributed("a:1", 3, 1)
  assert Distributed().resolve({}) == Distributed()
  assert Distributed(processes=1).resolve({}).processes == 1


@pytest.mark.parametrize(
  ("config", "said", "why"),
  [
    (Distributed("a:1", 2), {}, "belong together"),
    (Distributed(), {"JAXCODESIGN_PROCESS": "1"}, "belong together"),
    (Distributed("a:1", 2, 2), {}, "count from 0"),
    (Distributed(), {"JAXCODESIGN_PROCESSES": "two"}, "PROCESSES='two' is no number"),
  ],
)
def test_half_a_meeting_point_is_refused(config, said, why):
  with pytest.raises(ValueError, match=why):
    config.resolve(said)


@pytest.mark.parametrize(
  "wrong",
  [{"processes": -1}, {"process": -2}, {"coordinator": "host"}, {"patience_s": 0}],
)
def test_numbers_that_are_none_are_refused(wrong):
  with pytest.raises(ValueError, match=next(iter(wrong))):
    Distributed(**wrong)


SLURM = {
  "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "0",
  "SLURM_LOCALID": "0", "SLURM_NTASKS": "2",
}  # fmt: skip


@pytest.mark.parametrize(
  ("environment", "name"),
  [
    ({}, ""),
    (SLURM, "SLURM"),
    (SLURM | {"SLURM_NTASKS": "1"}, ""),
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, ""),  # salloc, or a batch script
    (
      {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://h:1"},
      "Open MPI",
    ),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, ""),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}, "GKE"),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
    ({"MEGASCALE_NUM_SLICES": "2"}, "GKE"),
    ({"TPU_ML_PLATFORM": "JAX"}, "Cloud TPU"),
    ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, ""),
    ({"KUBERNETES_SERVICE_HOST": "h", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
    ({"KUBERNETES_SERVICE_HOST": "h"}, ""),
  ],
)
def test_clusters_are_told_by_what_they_set(environment, name):
  assert distributed.cluster(environment) == name


def test_an_open_mpi_that_names_no_address_is_refused():
  with pytest.raises(ValueError, match="JAXCODESIGN_COORDINATOR"):
    distributed.cluster({"OMPI_COMM_WORLD_SIZE": "2"})


def test_a_process_is_alone_unless_something_says_otherwise(nowhere, monkeypatch):
  assert distributed.initialize() == Processes(0, 1)
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  assert distributed.initialize(Distributed(processes=1)) == Processes(0, 1)
  with distributed.initialize(Distributed(processes=1)) as alone:
    assert (alone.index, alone.count) == (0, 1)


def test_what_comes_after_the_first_computation_comes_too_late(nowhere):
  there = len(jax.devices())
  distributed.require_devices(0)
  distributed.require_devices(there)
  with pytest.raises(RuntimeError, match=f"{there + 1} CPU devices are needed"):
    distributed.require_devices(there + 1)
  with pytest.raises(RuntimeError, match="before the first computation"):
    distributed.initialize(HERE)


def ready(runs):
  for run in runs:
    assert any(line == "ready\n" for line in run.stdout), run.stderr.read()


def ended(run):
  """Exit code and stderr."""
  _, told = run.communicate(timeout=60)
  return run.returncode, told


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_with_its_name(victim):
  runs = workers.spawn("loop", 2, 1)
  ready(runs)
  began = time.monotonic()
  runs[victim].kill()
  code, told = ended(runs[1 - victim])
  # Milliseconds on a quiet machine; jax's heartbeat alone would take half a minute.
  assert time.monotonic() - began < 20
  other = 1 - victim
  assert f"process {other} ends, since process {victim} of 2 was lost" in told
  assert code == 1
  ended(runs[victim])


def test_a_process_that_fails_ends_the_other_and_says_why():
  runs = workers.spawn("loop", 2, 1, "fails")
  code, told = ended(runs[1])
  assert code == 1 and "ValueError: the loss is not a number" in told
  assert "Traceback" in told and "ends, since" not in told
  code, told = ended(runs[0])
  assert code == 1
  assert "since process 1 failed: ValueError: the loss is not a number" in told


def test_a_port_in_use_is_told_before_jax_tries_it():
  with socket.socket() as other:
    other.bind(("127.0.0.1", 0))
    other.listen()
    where = f"localhost:{other.getsockname()[1]}"
    config = Distributed(where, processes=2, process=0)
    with pytest.raises(OSError, match=f"{where} .*in use.*choose another port"):
      distributed.initialize(config)
  with pytest.raises(ValueError, match="'x:65536' is no host:port"):
    Distributed("x:65536", 2, 0)
