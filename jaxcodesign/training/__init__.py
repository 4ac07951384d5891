"""What decides the numbers of a training: task, losses, step, and its methods."""

from typing import TYPE_CHECKING

from jaxcodesign.faces import face

if TYPE_CHECKING:
  from jaxcodesign.training import combining as combining
  from jaxcodesign.training import losses as losses
  from jaxcodesign.training import pruning as pruning
  from jaxcodesign.training import scores as scores
  from jaxcodesign.training.config import TrainConfig as TrainConfig
  from jaxcodesign.training.distillation import Distill as Distill
  from jaxcodesign.training.masked import Prune as Prune
  from jaxcodesign.training.method import Method as Method

__getattr__, __dir__, __all__ = face(  # pyright: ignore[reportUnsupportedDunderAll]
  __name__,
  TrainConfig="config:TrainConfig",
  Method="method:Method",
  Prune="masked:Prune",
  Distill="distillation:Distill",
  combining="combining",
  losses="losses",
  pruning="pruning",
  scores="scores",
)
