"""ResNet-50 or ResNet-18 on ImageNet under FAST, at published hyper-parameters.

  python -m launch.train configs/fast_imagenet.py
  python -m launch.train configs/fast_imagenet.py --dry-run --run.platform tpu
  python -m launch.train configs/fast_imagenet.py --dry-run --run.platform cuda

ResNet-18 is the same with --task.model.blocks 2 2 2 2 --task.model.no-bottleneck.

Expected of a dry run: memory, operations and the least time of a step on 16 devices, in
a minute or two on 2 CPU cores, without any data. Momentum SGD for 90 epochs with a
weight decay of 1e-4, the learning rate 0.1 for each 256 images after a warm-up of five
epochs (Goyal et al., arXiv:1706.02677), a cosine in place of its steps, and decay of
batch normalization's parameters too. A run needs folders of JPEGs, one a class, in
`train` and `val` of --task.data.directory.
"""

from jaxcodesign.data.image_sets import FashionMnistMini
from jaxcodesign.models import ImageNetResNet
from jaxcodesign.programs.fast import Fast
from jaxcodesign.runs.job import RunConfig, TrainJob
from jaxcodesign.runs.mesh import MeshConfig
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.task import Classification, ImageNet


def config() -> TrainJob:
  """Ninety epochs of 1,024 images a step."""
  train = TrainConfig(
    epochs=90,
    batch_size=1024,
    learning_rate=0.4,
    weight_decay=1e-4,
    warmup=5 / 90,
    label_smoothing=0.0,
    optimizer="sgd",
    augment=True,
    precision=Fast(),
  )
  return TrainJob(
    Classification(ImageNet(), ImageNetResNet.of(50)),
    train,
    run=RunConfig(mesh=MeshConfig(data=16), threads=16),
  )


def smoke() -> TrainJob:
  """The same path in seconds: two stages of a narrow one on images of 28 pixels."""
  model = ImageNetResNet((1, 1), bottleneck=True, width=4)
  train = TrainConfig(
    epochs=1, batch_size=500, optimizer="sgd", learning_rate=0.1, precision=Fast()
  )
  return TrainJob(Classification(FashionMnistMini(), model), train)
