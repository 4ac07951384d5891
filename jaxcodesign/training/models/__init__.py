"""Image classifiers as pure functions: a frozen description, `init` and `apply`."""

from jaxcodesign.training.models.classifier import Classifier, Forward, Params, count
from jaxcodesign.training.models.cnn import Cnn
from jaxcodesign.training.models.imagenet_resnet import ImageNetResNet
from jaxcodesign.training.models.mobilenet import MobileNet
from jaxcodesign.training.models.resnet import ResNet
from jaxcodesign.training.models.vit import Vit

__all__ = [
  "Classifier",
  "Cnn",
  "Forward",
  "ImageNetResNet",
  "MobileNet",
  "Params",
  "ResNet",
  "Vit",
  "count",
]
