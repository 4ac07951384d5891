"""A language model of 135 M parameters under FAST, its parameters spread over devices.

  python -m launch.train configs/fast_transformer.py
  python -m launch.train configs/fast_transformer.py --dry-run --run.platform tpu
  python -m launch.train configs/fast_transformer.py --dry-run --run.platform cuda

Expected of a dry run: memory, operations and the least time of a step on 8 devices, in
half a minute on 2 CPU cores. The sizes are those of SmolLM2-135M, whose vocabulary
is read from its GGUF file; AdamW with b2 = 0.95, clipping at 1 and a learning rate of
3e-3 are recalled of its training, and parameters here. The text is any folder of .txt
files, --task.text; the default is a folder of speeches in ~/.cache/jaxcodesign/sotu,
which is far too small for this model: it learns them by heart.
"""

from jaxcodesign.data.cache import cache
from jaxcodesign.models.transformer import Transformer
from jaxcodesign.programs.fast import Fast
from jaxcodesign.runs.job import RunConfig, TrainJob
from jaxcodesign.runs.mesh import MeshConfig
from jaxcodesign.training.config import TrainConfig
from jaxcodesign.training.task import LanguageModeling


def config() -> TrainJob:
  """Blocks are computed again in the backward pass."""
  train = TrainConfig(
    epochs=10,
    batch_size=64,
    learning_rate=3e-3,
    weight_decay=0.01,
    warmup=0.05,
    label_smoothing=0.0,
    decay="linear",
    b2=0.95,
    clip=1.0,
    precision=Fast(),
    accumulate=2,
  )
  task = LanguageModeling(
    Transformer.smollm2_135m(remat=True),
    text=cache() / "sotu",
    length=512,
    tokenizer=cache() / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf",
  )
  run = RunConfig(mesh=MeshConfig(data=2, fsdp=4))
  return TrainJob(task, train, run=run)


def smoke() -> TrainJob:
  """The same path in seconds: two narrow blocks on the bytes of a licence."""
  model = Transformer(width=32, depth=2, heads=2, kv_heads=1, hidden=64, remat=True)
  train = TrainConfig(
    epochs=1,
    batch_size=16,
    label_smoothing=0.0,
    clip=1.0,
    precision=Fast(),
    accumulate=2,
  )
  task = LanguageModeling(model, text="LICENSE", length=32)
  return TrainJob(task, train)
