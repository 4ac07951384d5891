"""For how many steps is a run on eight devices the run on one: two minutes on a CPU.

python -m tests.drift

Sums over devices come in another order, so losses differ in their last bits; until a
relu or a rounding falls to the other side in one of the two runs. From then on they are
two trainings of equal right.
"""

import numpy as np

from jaxcodesign import models
from jaxcodesign.data import image_sets
from jaxcodesign.numerics.formats import Fixed
from jaxcodesign.programs.fast import Fast
from jaxcodesign.programs.precision import Rule
from jaxcodesign.runs import processes, session
from jaxcodesign.runs.job import TrainJob
from jaxcodesign.runs.processes import Processes
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.task import Classification, classify

INT8, MODEL = Fixed(8), models.Cnn((8,), 32)
PRECISIONS = {
  "float32": None,
  "FAST": Fast(),
  "int8": (Rule("*", INT8, INT8, gradient=INT8),),
}
STEPS, DEVICES, WITHIN = 504, 8, 1e-6


def curve(precision, seed, devices):
  """Loss of each step, and the accuracy at the end, of a CNN on 512 small images."""
  whole = image_sets.FashionMnistMini().load()
  x = np.ascontiguousarray(whole.train_images[:512, 2:26:2, 2:26:2])
  y = whole.train_labels[:512]
  images = image_sets.Images(x, y, x, y, "small", 10)
  train = TrainConfig(
    epochs=63, batch_size=64, learning_rate=1e-2, augment=True, precision=precision,
    seed=seed,
  )  # fmt: skip
  job = TrainJob(Classification(image_sets.FashionMnistMini(), MODEL), train)
  loaded = classify(MODEL, images, train)
  ready = session.prepare(job, Processes(), devices, loaded=loaded)
  state, losses = ready.start(), []
  with ready.batches(0) as stream:
    for batch in stream:
      state, told = ready.step(state, ready.place(batch), ready.frozen)
      losses.append(float(told.loss))
  return np.array(losses), ready.evaluate(state)[1]


def main():
  """Prints a line for each precision and seed."""
  processes.require_devices(DEVICES)
  import jax

  for name, precision in PRECISIONS.items():
    for seed in range(3):
      one, score = curve(precision, seed, jax.devices()[:1])
      many, other = curve(precision, seed, jax.devices())
      apart = np.abs(many - one) / one
      beyond = np.flatnonzero(apart > WITHIN)
      steps = beyond[0] if len(beyond) else STEPS
      print(
        f"{name}, seed {seed}: {steps} of {STEPS} steps within {WITHIN:g}, at most "
        f"{apart.max():.1e}; accuracy {score:.1%} and {other:.1%}",
        flush=True,
      )


if __name__ == "__main__":
  main()
