"""Networks to train, published ones, and readers of their files."""

from typing import TYPE_CHECKING

from jaxcodesign.faces import face

if TYPE_CHECKING:
  from jaxcodesign.models.classifier import Classifier as Classifier
  from jaxcodesign.models.classifier import Forward as Forward
  from jaxcodesign.models.classifier import Params as Params
  from jaxcodesign.models.classifier import count as count
  from jaxcodesign.models.cnn import Cnn as Cnn
  from jaxcodesign.models.imagenet_resnet import ImageNetResNet as ImageNetResNet
  from jaxcodesign.models.mobilenet import MobileNet as MobileNet
  from jaxcodesign.models.resnet import ResNet as ResNet
  from jaxcodesign.models.transformer import Transformer as Transformer
  from jaxcodesign.models.vit import Vit as Vit

__getattr__, __dir__, __all__ = face(  # pyright: ignore[reportUnsupportedDunderAll]
  __name__,
  Classifier="classifier:Classifier",
  Cnn="cnn:Cnn",
  Forward="classifier:Forward",
  ImageNetResNet="imagenet_resnet:ImageNetResNet",
  MobileNet="mobilenet:MobileNet",
  Params="classifier:Params",
  ResNet="resnet:ResNet",
  Transformer="transformer:Transformer",
  Vit="vit:Vit",
  count="classifier:count",
)
