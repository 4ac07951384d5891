"""Image classifiers as pure functions: a frozen description, `init` and `apply`."""

from jaxcodesign.training.models.classifier import Classifier, Forward, Params, count
from jaxcodesign.training.models.cnn import Cnn
from jaxcodesign.training.models.mobilenet import MobileNet
from jaxcodesign.training.models.resnet import ResNet

__all__ = ["Classifier", "Cnn", "Forward", "MobileNet", "Params", "ResNet", "count"]
