"""What is trained: data, a model, and one pure loss of parameters and a batch.

A batch is a flat dict of arrays: {"image": [B, H, W, C], "label": [B]} of images,
{"tokens": [B, T + 1]} of text. Images are floats, or uint8 where 255 stands for 1. In
evaluation a batch also has "weight" [B], 0 where an example pads the last one.
Everything that a launcher does (accumulation, precision, sharding, pruning) is done to
the loss, so that it knows no task.
"""

import abc
from collections.abc import Callable
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcodesign.data import image_sets, text
from jaxcodesign.data.cache import expanded
from jaxcodesign.data.image_folder import ImageFolder
from jaxcodesign.data.sources import ImageSource, Source, TokenSource
from jaxcodesign.models.classifier import Classifier, Forward
from jaxcodesign.models.transformer import Transformer
from jaxcodesign.training import losses
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.distillation import Teacher

Batch = dict[str, Any]


class Outcome(NamedTuple):
  """What a batch amounts to.

  Attributes:
    loss: Mean over the examples, or tokens, that count.
    correct: How many of them the largest logit gets right, float32.
    counted: How many there are, float32.
    stats: New running statistics, see `models.Classifier`, or None.
  """

  loss: jax.Array
  correct: jax.Array
  counted: jax.Array
  stats: Any


class Loaded(NamedTuple):
  """A task that is ready to run.

  Attributes:
    train: Examples to train on.
    test: Examples to score on, all of them.
    init: PRNG key -> parameters.
    loss: (params, batch, train=) -> `Outcome`.
    teach: (frozen, batch) -> the batch with what a teacher says of it.
    frozen: Parameters that are never trained, () if there are none.
  """

  train: Source
  test: Source
  init: Callable[[jax.Array], Any]
  loss: Callable[..., Outcome]
  teach: Callable[[Any, Batch], Batch]
  frozen: Any


class Task(abc.ABC):
  """Frozen dataclasses; `load` is called once a run, before anything else."""

  @abc.abstractmethod
  def load(self, config: TrainConfig) -> Loaded:
    """Reads the data and checks what can be checked.

    Raises:
      FileNotFoundError, ValueError: If data are missing or broken, naming the file.
    """


@dataclasses.dataclass(frozen=True)
class ImageNet:
  """Folders of JPEGs, one a class, in `train` and `val`: the layout of ILSVRC 2012.

  `TrainConfig.augment` trains on random crops and mirror images, see `ImageFolder`;
  without it, on the centres of images, as it tests.

  Attributes:
    directory: Holds `train` and `val`.
    image: Pixels on each side.
    classes: Number of folders in each.
    train_images: How many there are. Lengths are taken from here where the directory
      is missing, so that a dry run needs no data.
    test_images: How many there are.
  """

  directory: str | pathlib.Path = "~/.cache/jaxcodesign/imagenet"
  image: int = 224
  classes: int = 1000
  train_images: int = 1_281_167
  test_images: int = 50_000

  def sources(self, *, augment: bool) -> tuple[Source, Source]:
    """Training and test images; folders are read when examples are asked for."""
    folder = expanded(self.directory)
    train, test = (
      ImageFolder(
        folder / part,
        image=self.image,
        classes=self.classes,
        examples=examples,
        augment=moved,
      )
      for part, examples, moved in (
        ("train", self.train_images, augment),
        ("val", self.test_images, False),
      )
    )
    return train, test


@dataclasses.dataclass(frozen=True)
class Classification(Task):
  """Images to classes, by cross entropy; scored by accuracy.

  Attributes:
    data: The images.
    model: The network.
  """

  data: image_sets.FashionMnistMini | image_sets.Idx | image_sets.Cifar10 | ImageNet
  model: Classifier

  def load(self, config: TrainConfig) -> Loaded:
    if not isinstance(self.data, ImageNet):
      images = image_sets.check(self.data.load())
      return classify(self.model, images, config)
    train, test = self.data.sources(augment=config.augment)
    if config.distill is not None:
      raise ValueError("distill needs images in memory: ImageNet is read from disk")
    return _loaded(self.model, train, test, self.data.classes, config)


def classify(
  model: Classifier | Callable[[Any, jax.Array], jax.Array],
  images: image_sets.Images,
  config: TrainConfig,
  teacher: Teacher | None = None,
) -> Loaded:
  """The task of telling the classes of images in memory.

  Args:
    model: A `Classifier`, or a pure function (params, [B, H, W, C] images) -> [B,
      classes] logits, whose task draws no parameters: give them.
    images: Those of `train_images` are learned, all of `test_images` are scored.
    config: Its augmentation, label smoothing and distillation count.
    teacher: What `config.distill.teacher=None` means: the network that training starts
      from. Other teachers are found by `config.distill`.

  Raises:
    ValueError: If a teacher is missing or knows other classes.
    FileNotFoundError: If the checkpoint of one is missing.
  """
  train, test = (
    ImageSource(x, y, augment=config.augment, classes=images.classes, name=images.name)
    for x, y in (
      (images.train_images, images.train_labels),
      (images.test_images, images.test_labels),
    )
  )
  if config.distill is not None:
    teacher = config.distill.resolve(images, teacher)
  return _loaded(
    model, train, test, images.classes, config, teacher if config.distill else None
  )


def _loaded(
  model: Any,
  train: Source,
  test: Source,
  classes: int,
  config: TrainConfig,
  teacher: Teacher | None = None,
) -> Loaded:
  shape = train.shapes(1)["image"].shape[1:]
  known = isinstance(model, Classifier)
  forward = model.forward if known else functools.partial(_plain, model)
  init = _refuse_to_draw
  if known:
    init = functools.partial(model.init, image_shape=shape, classes=classes)
  return Loaded(
    train,
    test,
    init,
    functools.partial(_classify, forward, config),
    functools.partial(_taught, teacher),
    teacher.params if teacher else (),
  )


def _plain(apply: Callable[..., jax.Array], params: Any, images: jax.Array, *, train):
  del train
  return Forward(apply(params, images), (), None)


def _refuse_to_draw(key: jax.Array) -> Any:
  del key
  raise ValueError("a function draws no parameters: give those to start from")


def _classify(
  forward: Callable[..., Forward],
  config: TrainConfig,
  params: Any,
  batch: Batch,
  *,
  train: bool,
) -> Outcome:
  images = _floats(batch["image"], params)
  labels = batch["label"]
  result = forward(params, images, train=train)
  smoothing = config.label_smoothing if train else 0.0
  right = (result.logits.argmax(-1).astype(labels.dtype) == labels).astype(jnp.float32)
  if "weight" in batch:
    one = lambda z, y: losses.cross_entropy(z[None], y[None], smoothing)
    weight = batch["weight"]
    count = jnp.sum(weight)
    each = jax.vmap(one)(result.logits, labels)
    loss = jnp.sum(each * weight) / jnp.maximum(count, 1)
    return Outcome(loss, jnp.sum(right * weight), count, result.stats)
  loss = losses.cross_entropy(result.logits, labels, smoothing)
  if train and config.distill is not None:
    logits, features = batch["told"]  # pyright: ignore[reportGeneralTypeIssues]
    loss = config.distill.loss(loss, result, Forward(logits, features, None))
  count = jnp.float32(len(labels))
  return Outcome(loss, jnp.sum(right), count, result.stats)


def _floats(images: jax.Array, params: Any) -> jax.Array:
  """Images as they are, or uint8 ones over 255 in the parameters' narrowest dtype."""
  if images.dtype != jnp.uint8:
    return images
  # In mixed precision running statistics alone are wider.
  kinds = [x.dtype for x in jax.tree.leaves(params)]
  floats = [kind for kind in kinds if jnp.issubdtype(kind, jnp.floating)]
  narrowest = min(floats, key=lambda kind: kind.itemsize)
  return (images.astype(jnp.float32) / 255).astype(narrowest)


def _taught(teacher: Teacher | None, frozen: Any, batch: Batch) -> Any:
  if teacher is None:
    return batch
  told = teacher.forward(frozen, batch["image"])
  return batch | {"told": (told.logits, told.features)}


@dataclasses.dataclass(frozen=True)
class LanguageModeling(Task):
  """The next token of a text; scored by the share of tokens that are foreseen.

  Attributes:
    model: The network.
    text: A UTF-8 file, or a folder of .txt files in the order of their names; the last
      `held_back` of all tokens is scored on.
    length: Tokens of an example, without the one to foresee last.
    tokenizer: GGUF file with a vocabulary; "" reads bytes, of which there are 256.
    held_back: Share of the tokens, in (0, 1).
    tokens: How many there are, for a dry run where the text is missing.
  """

  model: Transformer
  text: str | pathlib.Path = "~/.cache/jaxcodesign/sotu"
  length: int = 128
  tokenizer: str | pathlib.Path = ""
  held_back: float = 0.1
  tokens: int = 10_000_000

  def __post_init__(self):
    if self.length < 1 or not 0 < self.held_back < 1 or self.tokens < 1:
      raise ValueError(
        f"length and tokens must be positive and held_back in (0, 1) in {self}"
      )

  def load(self, config: TrainConfig) -> Loaded:
    if config.distill is not None or config.augment or config.label_smoothing:
      raise ValueError(
        "a language model has no distillation, augmentation or label smoothing here: "
        "leave distill=None, augment=False, label_smoothing=0"
      )
    train, test = self.sources()
    return Loaded(
      train,
      test,
      self.model.init,
      functools.partial(_foresee, self.model),
      lambda frozen, batch: batch,
      (),
    )

  def sources(self) -> tuple[Source, Source]:
    """Windows of the text, and of what is held back."""
    found = text.tokens_of(
      self.text, self.tokenizer or None, vocabulary=self.model.vocabulary
    )
    split = round(len(found) * (1 - self.held_back))
    return (
      TokenSource(found[:split], self.length, name=str(self.text)),
      TokenSource(found[split:], self.length, name=f"{self.text}, held back"),
    )


def _foresee(model: Transformer, params: Any, batch: Batch, *, train: bool) -> Outcome:
  del train
  tokens = batch["tokens"]
  logits = model.apply(params, tokens[:, :-1])
  loss, correct, count = losses.next_token_loss(logits, tokens, batch.get("weight"))
  return Outcome(loss, correct, count, None)
