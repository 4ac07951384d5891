"""A whole file of each kind that the library reads, and the public way to read it."""

from collections.abc import Callable
import gzip
import io
import json
import pathlib
import shutil
import struct
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxcodesign import models
from jaxcodesign.data import image_sets, npz
from jaxcodesign.data.image_folder import ImageFolder
from jaxcodesign.experiments import comparison, report, sweep, train_report
from jaxcodesign.hardware.pricing import topology
from jaxcodesign.models import cifar10_cnn, gguf
from jaxcodesign.runs import loop, metrics, origin
from jaxcodesign.runs.disk import saved, sealed
from jaxcodesign.runs.disk.checkpoints import Checkpoints
from jaxcodesign.runs.job import TrainJob
from jaxcodesign.training.task import Classification
from tests.experiments import results

JOB = TrainJob(Classification(image_sets.FashionMnistMini(), models.Cnn((2,), 4)))
DATA = {part: {"examples": 9, "digest": part} for part in ("train", "test")}
TREE = {"w": jnp.arange(4.0)}


class Kind(NamedTuple):
  """A file that is there whole, and what reads it: to a value or a clear error."""

  path: pathlib.Path
  read: Callable[[], Any]


def kinds(folder: pathlib.Path) -> dict[str, Kind]:
  """Every kind by name, written below `folder`."""
  return _of_a_run(folder / "run") | _checkpoints(folder) | _data(folder / "data")


def _of_a_run(folder: pathlib.Path) -> dict[str, Kind]:
  (folder / "rows").mkdir(parents=True)
  origin.write(JOB, folder, "command", DATA)
  lines = [{"step": s, "loss": 0.5, "input_wait": None} for s in range(10, 60, 10)]
  point = {"step": 9, "test_loss": 1.0, "test_accuracy": 0.5}
  told = {
    "precision": "float32", "test_accuracy": 0.5, "passes_share": None,
    "curve": [point], "origin": [{"command": "x"}],
  }  # fmt: skip
  telemetry = io.BytesIO()
  bits = np.full((4, 2, 3), np.nan)
  np.savez(telemetry, bits=bits, passes=bits, names=["a", "b"], steps=[1, 2, 0, 0])
  row = {"mark": "x", "score": 0.5, "seconds": 1.0}
  files = {
    metrics.FILE: "".join(json.dumps(line) + "\n" for line in lines).encode(),
    loop.FINAL: json.dumps({"data": DATA, "loss": None}).encode(),
    "report.json": json.dumps(told).encode(),
    train_report.TELEMETRY: telemetry.getvalue(),
    "rows/x.json": json.dumps(row).encode(),
    "codesign.json": json.dumps(results.sample()).encode(),
  }
  for name, content in files.items():
    (folder / name).write_bytes(content)
  read: dict[str, Callable[[], Any]] = {
    "config.json": lambda: origin.check(JOB, folder),
    "origin.json": lambda: train_report.appendix(
      {"origin": origin.origin(folder), "config": {}}
    ),
    metrics.FILE: lambda: json.dumps(metrics.read(folder), allow_nan=False),
    "rows/x.json": lambda: sweep._read(folder / "rows/x.json", "x"),
    "codesign.json": lambda: report.read(folder / "codesign.json"),
  }
  for name in (loop.FINAL, "report.json", train_report.TELEMETRY):
    read[name] = lambda: comparison.done(JOB, folder, DATA)
  return {name: Kind(folder / name, read[name]) for name in read}


def _checkpoints(folder: pathlib.Path) -> dict[str, Kind]:
  states, network = folder / "checkpoints", folder / "network"

  def restore() -> Any:
    with Checkpoints(states, fingerprint="x", data=DATA) as opened:
      return opened.restore(TREE)

  with Checkpoints(states, fingerprint="x", data=DATA) as opened:
    opened.save(1, TREE, {"note": [1.5, None]})
  saved.save(network, TREE, {"fingerprint": "x"})
  step = states / "step_00000001"
  size = lambda path: path.stat().st_size * path.is_file()
  return {
    "checkpoint.json": Kind(step / sealed.RECORD, restore),
    "arrays of a checkpoint": Kind(max(step.rglob("*"), key=size), restore),
    "record of a network": Kind(
      network / sealed.RECORD, lambda: saved.restore(network, TREE, fingerprint="x")
    ),
  }


def _data(folder: pathlib.Path) -> dict[str, Kind]:
  idx, zipped, cifar, pictures = (
    folder / n for n in ("idx", "gz", "cifar", "pictures")
  )
  for made in (idx, zipped, cifar, pictures / "a"):
    made.mkdir(parents=True)
  for part in ("train", "t10k"):
    images = struct.pack(">4B3I", 0, 0, 8, 3, 2, 4, 4) + bytes(range(32))
    labels = struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes([1, 2])
    for name, content in (("images-idx3", images), ("labels-idx1", labels)):
      (idx / f"{part}-{name}-ubyte").write_bytes(content)
      packed = gzip.compress(content)
      (zipped / f"{part}-{name}-ubyte.gz").write_bytes(packed)
  batches = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
  for name in batches:
    (cifar / name).write_bytes(bytes(range(10)).ljust(3073, b"\7") * 2)
  noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
  for name in ("1.png", "2.jpg"):
    Image.fromarray(noise).save(pictures / "a" / name)
  drawn = cifar10_cnn.draw(1)
  flat = {f"{a}/{b}": np.array(x) for a, v in drawn.items() for b, x in v.items()}
  np.savez(folder / "weights.npz", allow_pickle=False, **flat)
  np.savez_compressed(folder / "images.npz", x=noise)
  table = "Layer, M, N, K, Batch\n" + "".join(f"l{i}, 3, 4, 5, 1\n" for i in range(4))
  (folder / "layers.csv").write_text(table)
  _write_gguf(folder / "model.gguf")
  picture = lambda i: (
    lambda: ImageFolder(pictures, image=4, classes=1).batch(np.array([i]), None)
  )
  read: dict[str, Callable[[], Any]] = {
    "weights.npz": lambda: cifar10_cnn.read_weights(folder / "weights.npz"),
    "images.npz": lambda: npz.read(folder / "images.npz", {"x": 3}),
    "model.gguf": lambda: gguf.read(folder / "model.gguf"),
    "layers.csv": lambda: topology.read(folder / "layers.csv"),
    "idx/train-images-idx3-ubyte": lambda: image_sets.Idx(idx).load(),
    "idx/t10k-labels-idx1-ubyte": lambda: image_sets.Idx(idx).load(),
    "gz/train-images-idx3-ubyte.gz": lambda: image_sets.Idx(zipped).load(),
    "cifar/test_batch.bin": lambda: image_sets.Cifar10(cifar, 2).load(),
    "pictures/a/1.png": picture(0),
    "pictures/a/2.jpg": picture(1),
  }
  return {name: Kind(folder / name, read[name]) for name in read}


def _write_gguf(path: pathlib.Path) -> None:
  """A llama of one block, 32 features and 8 words, as the gguf package writes it."""
  import gguf as package

  writer = package.GGUFWriter(path, "llama")
  writer.add_block_count(1)
  writer.add_head_count(2)
  writer.add_head_count_kv(1)
  writer.add_rope_freq_base(1e4)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("smollm")
  writer.add_token_list([*"abcdefg", "ab"])
  writer.add_token_merges(["a b"])
  shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)}
  shapes |= {"attn_output": (32, 32), "ffn_gate": (64, 32), "ffn_up": (64, 32)}
  shapes |= {"ffn_down": (32, 64), "attn_norm": (32,), "ffn_norm": (32,)}
  named = {f"blk.0.{name}": shape for name, shape in shapes.items()}
  rng = np.random.default_rng(0)
  for name, shape in (named | {"token_embd": (8, 32), "output_norm": (32,)}).items():
    x = rng.normal(size=shape).astype(np.float32)
    kind = package.GGMLQuantizationType.Q8_0 if len(shape) == 2 else None
    packed = x if kind is None else package.quants.quantize(x, kind)
    writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def clean(folder: pathlib.Path) -> None:
  """Removes everything."""
  shutil.rmtree(folder)
