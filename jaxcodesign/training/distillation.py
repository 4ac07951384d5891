"""A teacher: a trained network whose outputs a student learns beside the labels.

  TrainConfig(..., distill=Distill(alpha=0.7, temperature=4.0))

The loss is (1 - alpha) cross entropy + alpha T^2 KL(teacher || student), and `features`
times the distance of the outputs of each stage. The teacher runs inside the student's
step, outside the gradient: no activation of it is kept, and it is traced once.

Reference: Hinton, Vinyals, Dean. "Distilling the Knowledge in a Neural Network", 2015.
"""

import abc
from collections.abc import Callable
import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcodesign.data import image_sets
from jaxcodesign.models.classifier import Forward
from jaxcodesign.training import losses


class Teacher(NamedTuple):
  """A network ready to teach.

  Attributes:
    forward: (params, [B, H, W, C] images) -> `Forward`; its logits and features count.
    params: Its first argument.
  """

  forward: Callable[[Any, jax.Array], Forward]
  params: Any = ()


class TeacherSource(abc.ABC):
  """Where a trained network comes from: a value of a config, see `runs.Checkpoint`."""

  @abc.abstractmethod
  def load(self, images: image_sets.Images) -> Teacher:
    """Reads it.

    Raises:
      FileNotFoundError: If it is missing.
      ValueError: If it is damaged, or of another network or number of classes.
    """

  @abc.abstractmethod
  def digest(self) -> str:
    """A text that changes with its weights.

    Raises:
      FileNotFoundError: If it is missing.
    """


@dataclasses.dataclass(frozen=True)
class Distill:
  """Who teaches, and how much it counts.

  Attributes:
    teacher: A `TeacherSource`, such as `runs.Checkpoint`; a function of a
      module, images -> logits; or None, the network that training starts from.
    alpha: Weight of the teacher against the labels, in [0, 1].
    temperature: T, above 0: the larger, the more the unlikely classes count.
    features: Weight of the distance between the outputs of the stages, 0 or more; both
      networks need stages of the same shapes.
  """

  teacher: TeacherSource | Callable[[jax.Array], jax.Array] | None = None
  alpha: float = 0.5
  temperature: float = 4.0
  features: float = 0.0

  def __post_init__(self):
    if not 0 <= self.alpha <= 1 or not 0 < self.temperature < math.inf:
      raise ValueError(f"alpha must be in [0, 1] and temperature above 0 in {self}")
    if not 0 <= self.features < math.inf:
      raise ValueError(f"features={self.features} is a weight, 0 or more")
    known = self.teacher is None or isinstance(self.teacher, TeacherSource)
    if not known and not callable(self.teacher):
      raise ValueError(
        f"teacher={self.teacher!r} is no network: give Checkpoint(folder, model), a "
        "function of images, or None"
      )

  def digest(self) -> str:
    """A text that changes with the weights of a `TeacherSource`; "" for other teachers.

    Raises:
      FileNotFoundError: If it is missing.
    """
    if not isinstance(self.teacher, TeacherSource):
      return ""
    return self.teacher.digest()

  def resolve(self, images: image_sets.Images, start: Teacher | None = None) -> Teacher:
    """The teacher, checked against the classes of `images`.

    Args:
      images: What the student learns.
      start: The network that training starts from.

    Raises:
      ValueError: If the teacher is None and there is no start, or has other classes.
      FileNotFoundError: If its source is missing.
    """
    if self.teacher is None:
      if start is None:
        raise ValueError(
          "Distill(teacher=None) means the network that training starts from, and it "
          "starts from random weights: name a Checkpoint or a function"
        )
      teacher = start
    elif isinstance(self.teacher, TeacherSource):
      teacher = self.teacher.load(images)
    else:
      function = self.teacher
      teacher = Teacher(lambda _, x: Forward(function(x), (), None))
    image = jax.ShapeDtypeStruct((1, *images.image_shape), jnp.float32)
    shape = jax.eval_shape(teacher.forward, teacher.params, image).logits.shape
    if shape != (1, images.classes):
      raise ValueError(
        f"the teacher gives logits of shape {shape} for an image of {images.name}, not "
        f"{(1, images.classes)}: it must know the same classes"
      )
    return teacher

  def loss(self, hard: jax.Array, student: Forward, teacher: Forward) -> jax.Array:
    """The loss on labels mixed with what the teacher says."""
    soft = losses.distillation(student.logits, teacher.logits, self.temperature)
    total = (1 - self.alpha) * hard + self.alpha * soft
    if self.features:
      matched = losses.feature_matching(student.features, teacher.features)
      total += self.features * matched
    return total
