"""What keeps a run alive: loop, checkpoints, processes, mesh, signals, configs."""

from typing import TYPE_CHECKING

from jaxcodesign.faces import face

if TYPE_CHECKING:
  from jaxcodesign.runs.disk.saved import Checkpoint as Checkpoint
  from jaxcodesign.runs.fitting import Fitted as Fitted
  from jaxcodesign.runs.fitting import fit as fit
  from jaxcodesign.runs.job import RunConfig as RunConfig
  from jaxcodesign.runs.job import TrainJob as TrainJob
  from jaxcodesign.runs.mesh import MeshConfig as MeshConfig

__getattr__, __dir__, __all__ = face(  # pyright: ignore[reportUnsupportedDunderAll]
  __name__,
  Checkpoint="disk.saved:Checkpoint",
  Fitted="fitting:Fitted",
  MeshConfig="mesh:MeshConfig",
  RunConfig="job:RunConfig",
  TrainJob="job:TrainJob",
  fit="fitting:fit",
)
