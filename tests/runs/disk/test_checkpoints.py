"""A run's checkpoints: what was saved comes back, and nothing ever stands between."""

import contextlib
import errno
import os
import pathlib
import resource
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import optax
from orbax.checkpoint import v1 as ocp
import pytest

from jaxcodesign.numerics.sparsity import patterns
from jaxcodesign.numerics.sparsity.masks import Rule
from jaxcodesign.runs.disk import sealed
from jaxcodesign.runs.disk.checkpoints import Checkpoints
from jaxcodesign.training import pruning

EXTRA = {"stream": {"next": 7}, "loss": 0.1 + 0.2, "none": None}


class State(NamedTuple):
  step: jax.Array
  params: dict
  optimizer: object
  more: object


def state(seed=0):
  key = jax.random.key(seed)
  params = {"conv": {"kernel": jax.random.normal(key, (3, 4))}, "bias": jnp.zeros(4)}
  rules = [Rule("*kernel", patterns.Unstructured(0.5)), Rule("*", None)]
  optimizer = pruning.prune(optax.adam(1e-3), rules, None, rewind_to=0)
  more = {
    "int4": jnp.arange(-8, 8).astype(jnp.int4),
    "bfloat16": jnp.full(3, 1.5 + seed, jnp.bfloat16),
    "bool": jnp.array([True, False]),
    "keys": jax.random.split(key, 3),
    "rbg": jax.random.key(seed, impl="rbg"),
    "nan": jnp.array([jnp.nan, -0.0, jnp.inf]),
    "empty": jnp.zeros((0, 3)),
    "none": (None, [None, jnp.uint32(seed)], ()),
  }
  return State(jnp.int32(seed), params, optimizer.init(params), more)


def bits(tree):
  """Leaves as bytes: NaN is NaN and -0 is not 0."""
  plain = lambda x: (
    jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
  )
  return [(str(x.dtype), np.asarray(plain(x)).tobytes()) for x in jax.tree.leaves(tree)]


def same(a, b):
  return bits(a) == bits(b) and jax.tree.structure(a) == jax.tree.structure(b)


def small(value):
  return {"w": jnp.full(5, float(value)), "n": jnp.int32(value)}


def names(folder):
  return sorted(p.name for p in folder.iterdir() if p.name != ".lock")


def opened(folder, fingerprint="abc", **options):
  return Checkpoints(folder, fingerprint=fingerprint, **options)


def flip(folder, which="state"):
  """Changes one bit of the largest file."""
  files = [p for p in (folder / which).rglob("*") if p.is_file()]
  path = max(files, key=lambda p: p.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 16
  path.write_bytes(content)


@pytest.mark.parametrize("abstract", [False, True])
def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path, abstract):
  saved = state(1)
  with opened(tmp_path) as c:
    assert c.restore(state()) is None and c.best() is None
    c.save(12, saved, EXTRA)
    like = jax.eval_shape(state) if abstract else state()
    found = c.restore(like)
  assert (found.step, found.extra, found.refused) == (12, EXTRA, ())
  assert same(found.state, saved) and not same(found.state, state(2))


def test_the_next_process_finds_it(tmp_path):
  with opened(tmp_path / "a" / "b") as c:
    c.save(3, small(3), {})
  with opened(tmp_path / "a" / "b") as c:
    assert same(c.restore(small(0)).state, small(3))


def test_shardings_are_those_that_are_asked_for(tmp_path):
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec("data"))
  x = {"x": jnp.arange(64.0).reshape(8, 8)}
  with opened(tmp_path) as c:
    c.save(1, jax.device_put(x, split), {})
    for wanted in (split, NamedSharding(mesh, PartitionSpec(None, "data"))):
      like = {"x": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=wanted)}
      found = c.restore(like).state
      assert found["x"].sharding == wanted and same(found, x)


def test_what_is_saved_is_what_was_there_although_it_is_donated(tmp_path):
  step = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
  rng = np.random.default_rng(0)
  wanted = {str(i): rng.normal(size=(512, 1024)).astype(np.float32) for i in range(8)}
  with opened(tmp_path) as c:
    for number in range(3):
      x = step(jax.tree.map(jnp.asarray, wanted))
      c.save(number, x, {})
      for _ in range(3):
        x = step(x)
      jax.block_until_ready(x)
      found = c.restore(x).state
      assert same(found, {name: w + 1 for name, w in wanted.items()})


def test_saving_does_not_wait_for_the_disk(tmp_path, monkeypatch):
  gate, seal = threading.Event(), sealed.seal
  monkeypatch.setattr(sealed, "seal", lambda *a: gate.wait(20) and seal(*a))
  with opened(tmp_path) as c:
    c.save(1, small(1), {})
    assert "step_00000001" not in names(tmp_path)
    gate.set()
    c.wait()
    assert names(tmp_path) == ["step_00000001"]


@pytest.mark.parametrize("larger", [True, False])
def test_the_newest_and_the_best_are_kept(tmp_path, larger):
  sign = 1 if larger else -1
  scores = {1: 0.5, 2: 0.9, 3: None, 4: 0.9, 5: 0.1, 6: 0.8, 7: 0.2}
  with opened(tmp_path, keep_last=2, keep_best=2, larger_is_better=larger) as c:
    for step, score in scores.items():
      c.save(step, small(step), {}, score=score and sign * score, wait=True)
    assert names(tmp_path) == [f"step_0000000{i}" for i in (2, 4, 6, 7)]
    assert c.best() == (2, sign * 0.9)
    assert same(c.restore(small(0), step=2).state, small(2))
    assert c.restore(small(0)).step == 7
  with opened(tmp_path, keep_last=1, keep_best=1, larger_is_better=larger) as c:
    c.save(8, small(8), {})
    c.wait()
    assert names(tmp_path) == ["step_00000002", "step_00000008"]


def test_the_same_step_is_replaced(tmp_path):
  with opened(tmp_path) as c:
    for value in (1, 2):
      c.save(5, small(value), {"value": value})
    found = c.restore(small(0))
    assert same(found.state, small(2)) and found.extra == {"value": 2}
    assert names(tmp_path) == ["step_00000005"]


@pytest.mark.parametrize("how", ["flip", "cut", "record", "delete"])
def test_damage_is_told_and_the_last_good_one_used(tmp_path, how):
  with opened(tmp_path, keep_best=1) as c:
    for step in (1, 2):
      c.save(step, small(step), {}, score=float(step))
  newest = tmp_path / "step_00000002"
  if how == "flip":
    flip(newest)
  elif how == "record":
    path = newest / sealed.RECORD
    path.write_text(path.read_text().replace("2.0", "3.0"))
  else:
    path = max(newest.rglob("manifest.ocdbt"), key=lambda p: len(p.parts))
    path.unlink() if how == "delete" else os.truncate(path, path.stat().st_size // 2)
  with opened(tmp_path) as c:
    found = c.restore(small(0))
    assert found.step == 1 and same(found.state, small(1))
    (words,) = found.refused
    assert words.startswith("the checkpoint of step 2 is damaged (")
    assert words.endswith("): not used")
    assert c.best() == (1, 1.0)
    with pytest.raises(ValueError, match=r"none of step 9, but of \[1, 2\]"):
      c.restore(small(0), step=9)
    # What is damaged counts for nothing, and goes when there is a new one.
    c.save(3, small(3), {}, wait=True)
    assert names(tmp_path) == ["step_00000001", "step_00000003"]


def test_a_checkpoint_that_was_renamed_is_not_of_its_new_step(tmp_path):
  with opened(tmp_path) as c:
    for step in (1, 2):
      c.save(step, small(step), {}, score=float(step))
  (tmp_path / "step_00000002").rename(tmp_path / "step_00000007")
  with opened(tmp_path) as c:
    found = c.restore(small(0))
    assert found.step == 1 and "it was saved as that of step 2" in found.refused[0]
    assert c.best() == (1, 1.0)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"', "[" * 5000, ""])
def test_a_record_that_is_no_object_is_damage(tmp_path, content):
  (tmp_path / sealed.RECORD).write_text(content)
  with pytest.raises(sealed.Damaged, match="cannot be read"):
    sealed.read(tmp_path)


def test_other_data_are_refused_until_a_newest_checkpoint_is_of_them(tmp_path):
  data = [{"train": {"examples": n}} for n in (1, 2)]
  with opened(tmp_path, data=data[0]) as c:
    c.save(1, small(1), {})
  with pytest.raises(ValueError, match=r"step_00000001 was (.|\n)*examples: 1 -> 2"):
    opened(tmp_path, data=data[1])
  with opened(tmp_path, data=data[1], accept_data=True) as c:
    c.save(2, small(2), {})
  with opened(tmp_path, data=data[1]) as c:
    assert c.restore(small(0)).step == 2


def test_a_run_does_not_start_again_in_silence(tmp_path):
  with opened(tmp_path) as c:
    c.save(1, small(1), {}, wait=True)
    flip(tmp_path / "step_00000001")
    with pytest.raises(ValueError, match=r"no checkpoint in .*step 1 is damaged"):
      c.restore(small(0))


def test_other_configs_and_other_models_are_refused(tmp_path):
  with opened(tmp_path) as c:
    c.save(1, small(1), {})
  with pytest.raises(ValueError, match=r"fingerprint abc, this one has def.*--out"):
    opened(tmp_path, "def")
  # The refused one has let go of the folder.
  other = pytest.raises(ValueError, match=r"of another model: n is int32\[\]")
  with opened(tmp_path) as c, other:
    c.restore({"w": jnp.zeros(5)})


def test_bad_input_is_refused_and_writes_nothing(tmp_path):
  with opened(tmp_path) as c:
    bad = [
      (lambda: c.save(1, small(1), {}, score=float("nan")), "score=nan"),
      (lambda: c.save(1, small(1), {"x": float("nan")}), "JSON"),
      (lambda: c.save(1, {"a": {"b": np.zeros(2)}}, {}), "leaf a/b .* ndarray"),
      (lambda: c.save(1, {"u": jnp.ones(3, jnp.uint4)}, {}), "leaf u .* uint4"),
      (lambda: c.save(1, {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}, {}), "same"),
      (lambda: opened(tmp_path / "x", keep_last=0), "keep_last=0"),
    ]
    for call, words in bad:
      with pytest.raises(ValueError, match=words):
        call()
    assert names(tmp_path) == []


def test_one_run_at_a_time(tmp_path, monkeypatch):
  monkeypatch.setattr("jaxcodesign.runs.disk.lock._PATIENCE_S", 0.2)
  with opened(tmp_path), pytest.raises(OSError, match="in use by another run"):
    opened(tmp_path)
  opened(tmp_path).close()


def test_what_a_killed_run_left_is_removed_or_put_back(tmp_path):
  with opened(tmp_path) as c:
    c.save(1, small(1), {})
    c.save(2, small(2), {})
  (tmp_path / ".step_00000003.new" / "state").mkdir(parents=True)
  (tmp_path / ".step_00000000.gone").mkdir()
  # Killed between the two renamings that replace a checkpoint.
  (tmp_path / "step_00000002").rename(tmp_path / ".step_00000002.old")
  (tmp_path / ".step_00000002.new").mkdir()
  with opened(tmp_path) as c:
    assert names(tmp_path) == ["step_00000001", "step_00000002"]
    assert same(c.restore(small(0)).state, small(2))


@contextlib.contextmanager
def files_of_at_most(size):
  """As if the disk were full."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FULL = r"cannot write .*step_00000002: File too large.*free some space"


def test_a_full_disk_is_one_error_and_leaves_the_old_checkpoint(tmp_path):
  with opened(tmp_path) as c:
    c.save(1, small(1), {}, wait=True)
    with files_of_at_most(100_000), pytest.raises(OSError, match=FULL):
      c.save(2, small(2), {})
    assert names(tmp_path) == ["step_00000001"]
    assert c.restore(small(0)).step == 1


def test_a_disk_that_fills_up_while_orbax_writes_is_the_same_error(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(sealed, "reserve", lambda *_: None)
  noise = {"w": jax.random.normal(jax.random.key(0), (300, 300))}
  with opened(tmp_path) as c:
    c.save(1, noise, {}, wait=True)
    with files_of_at_most(100_000), pytest.raises(OSError, match=FULL):
      c.save(2, noise, {}, wait=True)
    assert names(tmp_path) == ["step_00000001"]
    c.save(3, noise, {})  # there is space again
    assert c.restore(noise).step == 3


@pytest.mark.parametrize(
  ("raised", "kind", "words"),
  [
    (KeyError("a bug"), KeyError, "^'a bug'$"),
    (ValueError("x [os_error_code='28']"), OSError, "cannot write .*No space left"),
    (OSError("the server is gone"), OSError, "cannot write .*the server is gone"),
  ],
)
def test_what_is_no_error_of_the_disk_is_not_called_one(
  tmp_path, monkeypatch, raised, kind, words
):
  class Response(NamedTuple):
    whole: object

    def result(self):
      self.whole.result()
      raise raised

  begin = ocp.save_async
  with opened(tmp_path) as c:
    c.save(1, small(1), {}, wait=True)
    with monkeypatch.context() as patch:
      patch.setattr(ocp, "save_async", lambda *a: Response(begin(*a)))
      with pytest.raises(kind, match=words):
        c.save(2, small(2), {}, wait=True)
    assert [p.name for p in tmp_path.glob("*step_*")] == ["step_00000001"]
    c.save(2, small(2), {})
    assert c.restore(small(0)).step == 2


@pytest.mark.parametrize("moment", ["seal", "swap"])
def test_an_error_in_the_background_is_raised_at_the_next_call(
  tmp_path, monkeypatch, moment
):
  def fail(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  with opened(tmp_path) as c:
    c.save(1, small(1), {}, wait=True)
    with monkeypatch.context() as patch:
      patch.setattr(sealed, moment, fail)
      c.save(2, small(2), {})
      with pytest.raises(OSError, match=r"cannot write .*step_00000002.*free some"):
        c.save(3, small(3), {})
    assert names(tmp_path) == ["step_00000001"]
    assert c.restore(small(0)).step == 1


def test_no_thread_outlives_the_checkpoints(tmp_path):
  before = set(threading.enumerate())
  with opened(pathlib.Path(tmp_path)) as c:
    c.save(1, small(1), {})
  for thread in set(threading.enumerate()) - before:
    thread.join(timeout=10)
    assert not thread.is_alive(), thread
