"""Many processes as one machine: who they are, how they meet, and how they end.

  with distributed.initialize(config) as processes:
    ...  # the same program in every process, on the devices of all

A scheduler's job is recognized; otherwise an address joins processes, from the config
or from the environment, so that a shell loop can start them:

  for i in 0 1; do
    JAXCODESIGN_COORDINATOR=localhost:9876 JAXCODESIGN_PROCESSES=2 \
      JAXCODESIGN_PROCESS=$i python -m launch.train CONFIG &
  done

A process that dies ends all others within a minute, with its number on stderr.
"""

import atexit
from collections.abc import Mapping
import dataclasses
import os
import socket
import sys
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from jaxcodesign.runs import peers

# Of jax's own heartbeat, the second net: it ends a process within this time, without a
# name and with SIGABRT.
_HEARTBEAT_S = 40
_MESSAGE_BYTES = 1024
_ALREADY = (
  "jax has its devices already: call this before the first computation, device_put or "
  "jax.devices()"
)


@dataclasses.dataclass(frozen=True)
class Distributed:
  """How processes meet. The default finds a cluster's job, or runs alone.

  What is left unset is taken from the environment: JAXCODESIGN_COORDINATOR,
  JAXCODESIGN_PROCESSES, JAXCODESIGN_PROCESS.

  Attributes:
    coordinator: "host:port" of process 0, a free port there.
    processes: How many; 1 runs alone and looks for no cluster; 0 is unset.
    process: Number of this one, from 0; -1 is unset.
    cpu_devices: CPU devices of this process to run on; 0 leaves jax's choice.
    patience_s: How long a process waits at the start for all to come, before it ends
      with exit code 1.
  """

  coordinator: str = ""
  processes: int = 0
  process: int = -1
  cpu_devices: int = 0
  patience_s: int = 300

  def __post_init__(self):
    if self.processes < 0 or self.process < -1 or self.cpu_devices < 0:
      raise ValueError(f"processes, process and cpu_devices are counts in {self}")
    if self.patience_s < 1:
      raise ValueError(f"patience_s={self.patience_s} must be at least 1")
    port = self.coordinator.rpartition(":")[2]
    if self.coordinator and not (port.isdigit() and int(port) < 2**16):
      raise ValueError(f"coordinator={self.coordinator!r} is no host:port")

  def resolve(self, environment: Mapping[str, str]) -> "Distributed":
    """With what the environment says in the place of what is unset.

    Raises:
      ValueError: If the address, the number of processes and that of this one are not
        all known although one is, or do not fit.
    """
    get = lambda name: environment.get(f"JAXCODESIGN_{name}", "")
    number = lambda name, unset: _number(name, get(name)) if get(name) else unset
    found = dataclasses.replace(
      self,
      coordinator=self.coordinator or get("COORDINATOR"),
      processes=self.processes or number("PROCESSES", 0),
      process=number("PROCESS", -1) if self.process == -1 else self.process,
    )
    if found.processes == 1:
      return found
    known = (bool(found.coordinator), found.processes > 0, found.process >= 0)
    if any(known) and not all(known):
      raise ValueError(
        f"{found}: coordinator, processes and process belong together; give all three "
        "here or as JAXCODESIGN_COORDINATOR, _PROCESSES and _PROCESS"
      )
    if found.process >= found.processes and all(known):
      raise ValueError(
        f"process={found.process} of processes={found.processes}: they count from 0"
      )
    return found


def _number(name: str, text: str) -> int:
  if not text.isdigit():
    raise ValueError(f"JAXCODESIGN_{name}={text!r} is no number")
  return int(text)


@dataclasses.dataclass(frozen=True)
class Processes:
  """The processes of a run, as one of them sees them.

  As a context it tells the others, when it is left by an exception, that this process
  failed and why: they end. One that is never entered cannot: they wait for a process
  that has failed until jax gives up, after minutes.

  Attributes:
    index: Of this process; 0 writes what is written once.
    count: Of all.
  """

  index: int = 0
  count: int = 1
  _peers: peers.Peers | None = dataclasses.field(default=None, repr=False)

  def __enter__(self) -> "Processes":
    return self

  def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
    if self._peers is None:
      return
    code = error.code if isinstance(error, SystemExit) else 1
    if error is None or code in (None, 0):
      self._peers.done()
      return
    if isinstance(error, Exception):
      # A collective breaks if a process is gone, by a ValueError under gloo, and that
      # is told better: `peers` ends this process meanwhile.
      time.sleep(2.0)
    self._peers.fail(f"{type(error).__name__}: {error}")
    # Before jax's own, which would wait for processes that are ending.
    atexit.register(peers.end, "", code if isinstance(code, int) else 1)


def initialize(config: Distributed = Distributed()) -> Processes:
  """Joins the processes of a run; alone if nothing says that there are others.

  SLURM, Open MPI, Cloud TPU, GKE and indexed Kubernetes jobs are recognized as
  `cluster` says and set up by jax, which gives each task of SLURM or Open MPI one
  device of its kind; JAX_LOCAL_DEVICE_IDS changes that. On CPU collectives run by gloo.

  jax's preemption service is off: it would swallow SIGTERM, which belongs to the run.

  Args:
    config: An explicit meeting point goes before a cluster.

  Raises:
    ValueError: As `Distributed.resolve`, or if a cluster does not say where to meet.
    OSError: If the coordinator's port is in use.
    RuntimeError: If jax has devices already.
  """
  config = config.resolve(os.environ)
  if config.cpu_devices:
    require_devices(config.cpu_devices)
  if config.processes == 1 or not (config.coordinator or cluster(os.environ)):
    return Processes()
  if config.coordinator and config.process == 0:
    _check_port(config.coordinator)
  _set("jax_cpu_collectives_implementation", "gloo")
  _set("jax_enable_preemption_service", False)
  _meet(config)
  index, count = jax.process_index(), jax.process_count()
  if count == 1:
    return Processes()
  own = _connect(config, index, count)
  atexit.register(own.done)
  return Processes(index, count, own)


def cluster(environment: Mapping[str, str]) -> str:
  """Name of the cluster whose job of several processes this is, "" if none.

  Raises:
    ValueError: If it is one that does not say where its processes meet.
  """
  has = lambda *names: all(environment.get(name) for name in names)
  many = lambda name: environment.get(name, "1") not in ("", "0", "1")
  slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
  if many("OMPI_COMM_WORLD_SIZE"):
    if not has("OMPI_MCA_orte_hnp_uri"):
      raise ValueError(
        "this release of Open MPI does not tell where its processes meet: set "
        "JAXCODESIGN_COORDINATOR=host:port, _PROCESSES and _PROCESS, or "
        "JAXCODESIGN_PROCESSES=1 to run alone"
      )
    return "Open MPI"
  if has(*slurm) and many("SLURM_NTASKS"):
    return "SLURM"
  hosts = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
  if many("MEGASCALE_NUM_SLICES") or any("," in environment.get(h, "") for h in hosts):
    return "GKE"
  # jax says so itself when it is imported beside a TPU; alone it is a cluster of one.
  if environment.get("TPU_ML_PLATFORM") == "JAX" and not has("TPU_SKIP_MDS_QUERY"):
    return "Cloud TPU"
  if has("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"):
    return "Kubernetes"
  return ""


def require_devices(count: int) -> None:
  """Has jax run on `count` CPU devices, as many as one likes, before anything runs.

  Args:
    count: Of devices of this process; 0 leaves jax's choice.

  Raises:
    RuntimeError: If jax has devices already, and fewer of the CPU.
  """
  if not count:
    return
  try:
    jax.config.update("jax_num_cpu_devices", count)
    jax.config.update("jax_platforms", "cpu")
  except RuntimeError:
    if (found := len(jax.local_devices(backend="cpu"))) < count:
      raise RuntimeError(
        f"{count} CPU devices are needed, {found} there. {_ALREADY}"
      ) from None


def _meet(config: Distributed) -> None:
  where: dict[str, Any] = {}
  if config.coordinator:
    where = {
      "coordinator_address": config.coordinator,
      "num_processes": config.processes,
      "process_id": config.process,
      "cluster_detection_method": "deactivate",
    }
  who = where or f"a job of {cluster(os.environ)}"
  late = threading.Timer(
    config.patience_s,
    peers.end,
    (
      f"not all processes have met within patience_s={config.patience_s}: {who}; are "
      "all started, with the same address, and is its port open?",
    ),
  )
  late.daemon = True
  late.start()
  try:
    # jax would end the process as well when it is late, by SIGABRT.
    jax.distributed.initialize(
      **where,
      initialization_timeout=config.patience_s + 30,
      heartbeat_timeout_seconds=_HEARTBEAT_S,
    )
  except RuntimeError as error:
    raise RuntimeError(f"processes cannot meet any more. {_ALREADY}") from error
  except ValueError as error:
    raise ValueError(
      f"{cluster(os.environ)} was found, but it does not say where processes meet "
      f"({error}): set JAXCODESIGN_COORDINATOR=host:port, _PROCESSES and _PROCESS, or "
      "JAXCODESIGN_PROCESSES=1 to run alone"
    ) from error
  finally:
    late.cancel()


def _check_port(coordinator: str) -> None:
  """Refuses a port that process 0 cannot listen on.

  jax would share it with another coordinator, or end the process by SIGSEGV.
  """
  port = int(coordinator.rpartition(":")[2])
  dual = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if dual else socket.AF_INET
  try:
    socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()
  except OSError as error:
    raise OSError(
      f"process 0 cannot listen on port {port} of coordinator={coordinator} ({error}): "
      "end what listens there, an earlier run perhaps, or choose another port"
    ) from error


def _connect(config: Distributed, index: int, count: int) -> peers.Peers:
  """Has the processes watch each other; the hub's address goes through the devices."""
  own, text = peers.Peers(index, count), b""
  if index == 0:
    text = own.invite(_hosts(config)).encode()
  padded = np.frombuffer(text.ljust(_MESSAGE_BYTES), np.uint8)
  told = multihost_utils.broadcast_one_to_all(padded)
  if index and not own.join(peers.Invitation.decode(bytes(np.asarray(told)).strip())):
    print(
      f"process {index} cannot reach process 0 to watch it: a lost process will be "
      f"noticed by jax's heartbeat alone, after up to {_HEARTBEAT_S} s",
      file=sys.stderr,
    )
  return own


def _hosts(config: Distributed) -> list[str]:
  """Names that others may find this machine under."""
  name = socket.gethostname()
  try:
    numbers = [str(found[4][0]) for found in socket.getaddrinfo(name, None)]
  except OSError:
    numbers = []
  given = config.coordinator.rpartition(":")[0].strip("[]")
  return [*filter(None, [given]), *numbers, name]


def _set(option: str, value: Any) -> None:
  """Sets an option of jax that not every release has."""
  if hasattr(jax.config, option):
    jax.config.update(option, value)
