"""Runs one function of every room of an installed wheel.

python rooms.py core     rooms that need nothing but jax, numpy, chex and einops
python rooms.py all      the others too, where the packages of [train] are
"""

from importlib.resources import files
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxcodesign
from jaxcodesign import tree
from jaxcodesign.hardware import cost, mapping, presets, systolic
from jaxcodesign.numerics import schedules, sparsity
from jaxcodesign.numerics.formats import Fixed


def core() -> list[str]:
  """The rooms below data/."""
  x = jax.random.normal(jax.random.key(0), (16, 16))
  params = {"w": x}
  assert tree.names(params) == ["w"]
  assert Fixed(8).quantize(x).shape == x.shape
  assert sparsity.Unstructured(0.5).mask(jnp.abs(x)).mean() == 0.5
  assert schedules.OneShot(1)(2, 0.5) == 0.5
  work = jaxcodesign.trace(lambda p, x: x @ p["w"])(params, x)
  machine = presets.int8_45nm(8, 8)
  whole = np.arange(64, dtype=np.int8).reshape(8, 8)
  product, _ = systolic.simulate(whole, whole, rows=8, cols=8, dataflow="os")
  assert (np.asarray(product) == whole.astype(int) @ whole.T.astype(int)).all()
  assert mapping.search(16, 16, 16, machine).cost.time_s > 0
  assert cost.exact(work, machine).energy_j > 0
  return [
    "tree",
    "numerics",
    "programs",
    "machines",
    "simulators",
    "mapping",
    "pricing",
  ]


def upstairs() -> list[str]:
  """The rooms that train, draw and report."""
  from jaxcodesign import models, runs, training
  from jaxcodesign.data import image_sets
  from jaxcodesign.experiments import sweep
  from jaxcodesign.figures import canvas, curves

  images = image_sets.FashionMnistMini().load()
  cnn = models.Cnn(channels=(2, 4), hidden=8)
  params = cnn.init(jax.random.key(0), images.image_shape, images.classes)
  config = training.TrainConfig(epochs=1, batch_size=1000)
  fitted = runs.fit(cnn, params, images, config)
  logits = cnn.apply(fitted.params, images.test_images[:100])
  loss = training.losses.cross_entropy(logits, images.test_labels[:100])
  assert jnp.isfinite(loss)
  assert sweep.savings([], []) == []
  drawn = curves.front([(1.0, 0.5, "a"), (2.0, 0.4, "b")])
  assert drawn and canvas.png(canvas.blank(1, 1))[1:4] == b"PNG"
  return ["data", "models", "figures", "training", "runs", "experiments"]


def main(part: str) -> None:
  """Checks where the package is, and that its files came along."""
  assert "clean" in (jaxcodesign.__file__ or ""), jaxcodesign.__file__
  home = files(jaxcodesign)
  for file in (
    "data/fashion_mnist_mini/LICENSE",
    "hardware/machines/tables/cacti_sram.csv",
    "py.typed",
  ):
    assert (home / file).is_file(), file
  rooms = core()
  if part == "all":
    rooms += upstairs()
  else:
    assert not importlib.util.find_spec("flax")
  print(f"wheel of {jaxcodesign.__version__}: {', '.join(rooms)} run")


if __name__ == "__main__":
  main(sys.argv[1])
