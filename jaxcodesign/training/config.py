"""How a model is trained: everything that, with the task, decides the numbers."""

import dataclasses
import math
from typing import Literal, get_args

from jaxcodesign.training.combining import Combine
from jaxcodesign.training.distillation import Distill
from jaxcodesign.training.masked import Prune
from jaxcodesign.training.method import Method
from jaxcodesign.training.rounded import Dtype, Precision, method_of

Optimizer = Literal["adamw", "sgd"]
Decay = Literal["cosine", "linear", "rsqrt", "constant"]
Remat = Literal["none", "dots", "all"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How a model is trained.

  Attributes:
    epochs: Passes over the training images.
    batch_size: Images in a step.
    learning_rate: Peak, reached at the end of the warm-up.
    weight_decay: On every parameter: AdamW's, or sgd's, which its momentum sees.
    warmup: Share of all steps, in [0, 1), over which the learning rate rises from 0.
    label_smoothing: Mass of the target spread evenly over the classes, in [0, 1].
    seed: Of the order of the images and, by convention, of the weights.
    optimizer: "adamw", or "sgd" with a momentum of 0.9.
    decay: Of the learning rate after the warm-up: "cosine" or "linear" to zero at the
      end, "rsqrt" as 1 / sqrt(step), or "constant".
    b2: Decay of AdamW's second moment, in [0, 1).
    clip: Largest norm of all gradients together; 0 for any.
    augment: Whether images are moved by up to 4 pixels and mirrored at random; those of
      folders are cropped at random.
    sparsity: What is pruned while training runs: `Prune`, `Combine` or nothing.
    distill: Who teaches beside the labels, if anyone.
    precision: Of all products: `Fast`, rules as `quantize` takes them, or nothing.
    dtype: Of everything in forward and backward passes but sums, losses and running
      statistics: "float32" or "bfloat16"; parameters are kept in float32.
    accumulate: Parts in which a batch goes through, gradients averaged: example i is in
      part i modulo their number, so every device has its share of each.
    remat: What backward passes compute again: "none", "dots" (all but products), "all".
    methods: Whatever else training is to do, see `training.method`.
  """

  epochs: int = 10
  batch_size: int = 128
  learning_rate: float = 3e-3
  weight_decay: float = 1e-2
  warmup: float = 0.1
  label_smoothing: float = 0.1
  seed: int = 0
  optimizer: Optimizer = "adamw"
  decay: Decay = "cosine"
  b2: float = 0.999
  clip: float = 0.0
  augment: bool = False
  sparsity: Prune | Combine | None = None
  distill: Distill | None = None
  precision: Precision = None
  dtype: Dtype = "float32"
  accumulate: int = 1
  remat: Remat = "none"
  methods: tuple[Method, ...] = ()

  def __post_init__(self):
    kinds = {"optimizer": Optimizer, "decay": Decay, "dtype": Dtype, "remat": Remat}
    for name, kind in kinds.items():
      if getattr(self, name) not in get_args(kind):
        raise ValueError(f"{name}={getattr(self, name)!r} is none of {get_args(kind)}")
    if not 0 <= self.b2 < 1 or not 0 <= self.clip < math.inf:
      raise ValueError(f"b2 must be in [0, 1) and clip >= 0 in {self}")
    if self.epochs < 1 or self.batch_size < 1 or self.seed < 0:
      raise ValueError(f"epochs and batch_size must be >= 1 and seed >= 0 in {self}")
    if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
      raise ValueError(f"learning_rate must be > 0 and weight_decay >= 0 in {self}")
    if not 0 <= self.warmup < 1 or not 0 <= self.label_smoothing <= 1:
      raise ValueError(
        f"warmup must be in [0, 1) and label_smoothing in [0, 1] in {self}"
      )
    if self.accumulate < 1 or self.batch_size % self.accumulate:
      raise ValueError(
        f"accumulate={self.accumulate} must divide batch_size={self.batch_size}"
      )

  def every_method(self) -> tuple[Method, ...]:
    """All methods of the training, in the order in which they change the loss."""
    sparsity = () if self.sparsity is None else (self.sparsity,)
    return (*method_of(self.precision), *sparsity, *self.methods)
