"""A checkpoint is whole or absent, and only ever that of the config that asks."""

import json
import os
import pathlib
import resource
import subprocess
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcodesign.numerics import formats
from jaxcodesign.runs.disk import arrays, files, saved

METADATA = {"fingerprint": "abc", "accuracy": 0.9, "history": [[1, 0.5], [2, 0.25]]}


def params(seed=0):
  key = jax.random.key(seed)
  return {
    "conv1": {"kernel": jax.random.normal(key, (3, 3, 1, 8)), "bias": jnp.zeros(8)},
    "dense1": {"kernel": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)},
    "count": jnp.int32(7),
  }


@pytest.fixture
def folder(tmp_path):
  saved.save(tmp_path / "checkpoint", params(), METADATA)
  return tmp_path / "checkpoint"


@pytest.mark.parametrize("abstract", [False, True])
def test_what_was_saved_comes_back_bit_for_bit(folder, abstract):
  like = jax.eval_shape(params) if abstract else params(1)
  restored, metadata = saved.restore(folder, like)
  chex.assert_trees_all_equal(restored, params())
  chex.assert_trees_all_equal_shapes_and_dtypes(restored, params())
  assert metadata == METADATA
  assert os.listdir(folder.parent) == ["checkpoint"]


def test_no_thread_outlives_a_checkpoint(tmp_path):
  before = set(threading.enumerate())
  saved.save(tmp_path / "checkpoint", params(), METADATA)
  saved.restore(tmp_path / "checkpoint", params())
  started = set(threading.enumerate()) - before
  for thread in started:
    thread.join(timeout=10)
  assert not any(thread.is_alive() for thread in started)


def test_no_checkpoint_is_none(tmp_path):
  assert saved.restore(tmp_path / "none", params()) is None


def test_only_the_config_that_saved_gets_it(folder):
  assert saved.restore(folder, params(), fingerprint="other") is None
  assert saved.restore(folder, params(), fingerprint="abc") is not None
  # Another config's model may have other shapes: that is no error either.
  assert saved.restore(folder, {}, fingerprint="other") is None


def test_saving_again_replaces(folder):
  saved.save(folder, params(1), {"fingerprint": "def"})
  restored, metadata = saved.restore(folder, params())
  chex.assert_trees_all_equal(restored, params(1))
  assert metadata == {"fingerprint": "def"}
  assert os.listdir(folder.parent) == ["checkpoint"]


def files_in(folder):
  return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("how", ["cut", "flip", "delete"])
def test_damage_to_any_file_is_one_clear_error(tmp_path, folder, how):
  for i, name in enumerate(files_in(folder)):
    copy = tmp_path / f"{how}{i}"
    subprocess.run(["cp", "-r", str(folder), str(copy)], check=True)
    content = (copy / name).read_bytes()
    if how == "delete":
      (copy / name).unlink()
    elif content:
      middle = len(content) // 2
      flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
      (copy / name).write_bytes(flipped if how == "flip" else content[:middle])
    else:
      (copy / name).write_bytes(b"\0")
    with pytest.raises(ValueError, match=f"{copy} is damaged .*delete the folder"):
      saved.restore(copy, params())


def test_a_record_edited_by_hand_is_damage(folder):
  record = folder / "checkpoint.json"
  record.write_text(record.read_text().replace("0.9", "0.8"))
  with pytest.raises(ValueError, match=r"checkpoint.json is not the file"):
    saved.restore(folder, params())


def test_a_file_too_many_and_a_foreign_folder_are_damage(folder, tmp_path):
  (folder / "state" / "extra").write_text("?")
  with pytest.raises(ValueError, match=r"state/extra is not the file"):
    saved.restore(folder, params())
  (tmp_path / "foreign").mkdir()
  with pytest.raises(ValueError, match="damaged"):
    saved.restore(tmp_path / "foreign", params())


@pytest.mark.parametrize(
  ("change", "name"),
  [
    ({"conv1": {"kernel": jnp.zeros((3, 3, 1, 9)), "bias": jnp.zeros(8)}}, "kernel"),
    ({"count": jnp.float32(7)}, "count"),
    ({"dense2": {"kernel": jnp.zeros(2)}}, "dense2/kernel is absent"),
  ],
)
def test_another_model_is_refused_by_leaf(folder, change, name):
  with pytest.raises(ValueError, match=f"of another model: .*{name}.*delete"):
    saved.restore(folder, params() | change)


def test_metadata_that_is_not_json_writes_nothing(tmp_path):
  for bad in ({"accuracy": float("nan")}, {"config": object()}):
    with pytest.raises((ValueError, TypeError), match="JSON"):
      saved.save(tmp_path / "checkpoint", params(), bad)
  assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_error_and_leaves_the_old_checkpoint(folder):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
  try:
    with pytest.raises(OSError, match=f"cannot write {folder}.*free some space"):
      saved.save(folder, params(1), METADATA)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  chex.assert_trees_all_equal(saved.restore(folder, params())[0], params())
  assert os.listdir(folder.parent) == ["checkpoint"]


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match=r"cannot write .*choose another folder"):
    saved.save(tmp_path / "file" / "checkpoint", params(), METADATA)


def test_an_error_inside_orbax_is_one_error_and_leaves_nothing(tmp_path, monkeypatch):
  class Full:
    def result(self):
      raise ValueError("RESOURCE_EXHAUSTED [os_error_code='28']")

  monkeypatch.setattr(arrays, "save_async", lambda *_: Full())
  with pytest.raises(OSError, match=r"cannot write .*free some space"):
    saved.save(tmp_path / "checkpoint", params(), METADATA)
  assert os.listdir(tmp_path) == []


def test_a_failed_exchange_keeps_the_old_checkpoint(folder, monkeypatch):
  rename = pathlib.Path.rename

  def fail(self, target):
    if self.name.endswith(".new"):
      raise PermissionError("no")
    return rename(self, target)

  monkeypatch.setattr(pathlib.Path, "rename", fail)
  with pytest.raises(OSError, match=f"cannot write {folder}"):
    saved.save(folder, params(1), METADATA)
  chex.assert_trees_all_equal(saved.restore(folder, params())[0], params())
  assert os.listdir(folder.parent) == ["checkpoint"]


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path):
  (tmp_path / f".checkpoint.{os.getpid()}.new" / "state").mkdir(parents=True)
  saved.save(tmp_path / "checkpoint", params(), METADATA)
  assert os.listdir(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("moment", ["save_async", "write_atomically"])
def test_an_interrupted_save_leaves_nothing_to_restore(tmp_path, monkeypatch, moment):
  def interrupt(*_):
    raise KeyboardInterrupt

  owner = arrays if moment == "save_async" else files
  monkeypatch.setattr(owner, moment, interrupt)
  with pytest.raises(KeyboardInterrupt):
    saved.save(tmp_path / "checkpoint", params(), METADATA)
  assert os.listdir(tmp_path) == []


def test_the_record_is_readable_json(folder):
  record = json.loads((folder / "checkpoint.json").read_text())
  assert record["metadata"] == METADATA
  assert record["leaves"]["conv1/kernel"] == "float32[3, 3, 1, 8]"


def test_packed_arrays_of_every_format_come_back(tmp_path):
  x = jax.random.normal(jax.random.key(0), (6, 96))
  members = [
    formats.Fixed(1), formats.Fixed(4, 32, "affine"), formats.E4M3, formats.MXFP4,
    formats.NVFP4, formats.BlockFloat(3, exponent=3), formats.Logarithmic(4),
    formats.Terms(12), formats.LSQ(0.1, 4),
  ]  # fmt: skip
  pack = jax.jit(lambda x: {str(i): fmt.pack(x) for i, fmt in enumerate(members)})
  packed = pack(x)
  saved.save(tmp_path / "packed", packed, {})
  like = jax.eval_shape(pack, x)
  found, _ = saved.restore(tmp_path / "packed", like)
  for i, fmt in enumerate(members):
    back = found[str(i)]
    assert back.nbytes == packed[str(i)].nbytes
    np.testing.assert_array_equal(back.codes, packed[str(i)].codes)
    np.testing.assert_array_equal(
      jax.jit(fmt.unpack)(back), jax.jit(fmt.quantize)(x), err_msg=repr(fmt)
    )
