"""Checkpoints of a run: written behind its back, whole at any instant, the best kept.

A checkpoint is a sealed folder, see `sealed`, named after its step. It is written under
a hidden name and renamed once its digests are in its record; a killed run leaves older
checkpoints as they were, and hidden folders that the next start removes. What is read
back has been compared with its digests: a damaged checkpoint is passed over, in words.
"""

from collections.abc import Callable, Mapping
import concurrent.futures
import contextlib
import json
import math
import pathlib
import shutil
from typing import Any, NamedTuple, Self

import jax
from jax.experimental import multihost_utils
import numpy as np

from jaxcodesign.data import content
from jaxcodesign.data.cache import expanded
from jaxcodesign.data.content import Content
from jaxcodesign.runs.disk import arrays, files, sealed
from jaxcodesign.runs.disk.lock import FolderLock

_NAME = "step_"


class Restored(NamedTuple):
  """A checkpoint that was read back.

  Attributes:
    step: It was saved at.
    state: As it was saved, with the shardings of `like`.
    extra: As it was saved.
    refused: Newer checkpoints that are damaged, one sentence each.
  """

  step: int
  state: Any
  extra: dict[str, Any]
  refused: tuple[str, ...]


class Checkpoints:
  """The checkpoints in `folder`, of one run at a time.

  With several processes each of them makes one on the same shared folder, and all call
  the same methods in the same order; process 0 commits, and decides what is whole. An
  error is raised in the process that has it alone: the others are ended by
  `distributed`.
  """

  def __init__(
    self,
    folder: str | pathlib.Path,
    *,
    fingerprint: str,
    data: Content | None = None,
    accept_data: bool = False,
    keep_last: int = 2,
    keep_best: int = 1,
    larger_is_better: bool = True,
  ):
    """Opens the folder, which is made if need be, and removes what a dead run left.

    Args:
      folder: Of nothing but these checkpoints.
      fingerprint: Of the config, see `fingerprint.fingerprint`.
      data: What is learned, see `data.content`; the newest checkpoint must be of it.
      accept_data: Whether it may be of other data.
      keep_last: Newest checkpoints that are kept, at least 1.
      keep_best: Checkpoints of the best scores that are kept besides.
      larger_is_better: Which scores are.

    Raises:
      ValueError: If the folder has checkpoints of another fingerprint or other data,
        or fewer than one are to be kept.
      OSError: If it cannot be written, or another run that lives has it open.
    """
    if keep_last < 1 or keep_best < 0:
      raise ValueError(
        f"keep_last={keep_last} must be 1 or more, keep_best={keep_best} 0 or more"
      )
    self.folder = expanded(folder).absolute()
    self._fingerprint, self._data = fingerprint, data
    self._keep_last, self._keep_best = keep_last, keep_best
    self._sign = 1.0 if larger_is_better else -1.0
    self._damaged: set[int] = set()
    self._lock: FolderLock | None = None
    if _first():
      self._open(accept_data)
    self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
    self._pending: concurrent.futures.Future[None] | None = None

  def save(
    self,
    step: int,
    state: Any,
    extra: Mapping[str, Any],
    *,
    score: float | None = None,
    wait: bool = False,
  ) -> None:
    """Saves `state`, in the place of a checkpoint of the same step.

    Returns once `state` may be donated or deleted. The rest goes on in a thread; the
    next call waits for it.

    Args:
      step: Steps made.
      state: Tree of jax arrays, PRNG keys among them; names of leaves must not repeat.
      extra: What JSON can hold; that of process 0 is kept.
      score: Of the state, for `keep_best`.
      wait: Until it is on disk.

    Raises:
      OSError: If this checkpoint or the one before could not be written; older ones are
        whole, and nothing half-written is left.
      Exception: Whatever else orbax raises, as it is; nothing half-written is left.
      ValueError, TypeError: If `extra` is not JSON, `score` is not finite, or a leaf
        cannot be kept bit for bit.
    """
    if step < 0 or (score is not None and not math.isfinite(score)):
      raise ValueError(
        f"step={step} must be 0 or more, score={score} finite, or None for none"
      )
    leaves = arrays.named(state)
    record = {
      "step": step,
      "fingerprint": self._fingerprint,
      "data": self._data,
      "score": None if score is None else float(score),
      "extra": dict(extra),
      "leaves": sealed.kinds(state),
    }
    json.dumps(record, allow_nan=False)
    self.wait()
    new = self._hidden(step, "new")
    try:
      if _first():
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        sealed.reserve(new / "reserved", sum(x.nbytes for x in leaves.values()))
      response = arrays.save_async(new, leaves)
    except BaseException as error:
      if _first():
        shutil.rmtree(new, ignore_errors=True)
      if isinstance(error, OSError):
        raise files.cannot_write(self._path(step), error) from error
      raise
    self._pending = self._writer.submit(self._finish, step, response, record)
    if wait:
      self.wait()

  def wait(self) -> None:
    """Waits until what was saved is on disk.

    Raises:
      OSError: As `save` does.
    """
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def restore(self, like: Any, *, step: int | None = None) -> Restored | None:
    """Reads the newest checkpoint that is whole.

    Args:
      like: Tree of arrays or ShapeDtypeStructs: structure, shapes, dtypes and, where it
        has any, shardings.
      step: Of the one checkpoint that is wanted instead.

    Returns:
      The checkpoint, bit for bit; None if there is none at all.

    Raises:
      ValueError: If there are some but none is whole, there is none of `step`, or its
        leaves are not those of `like`.
    """
    self.wait()
    found, refused = _from_first(lambda: self._newest(step))
    if found is None:
      if not refused:
        return None
      raise ValueError(
        f"no checkpoint in {self.folder} can be used: {'; '.join(refused)}; delete "
        "the folder to train again"
      )
    folder = self._path(found)
    record = self._record(found)
    state = arrays.load(folder, record, like)
    return Restored(found, state, record["extra"], tuple(refused))

  def best(self) -> tuple[int, float] | None:
    """(step, score) of the best checkpoint that is kept; None if none has a score.

    Of equal scores the older one is the best.
    """
    self.wait()
    ranked = _from_first(lambda: self._ranked(self._scores()))
    return (ranked[0][0], ranked[0][1]) if ranked else None

  def close(self) -> None:
    """Waits, and gives the folder up for other runs.

    Raises:
      OSError: As `save` does.
    """
    try:
      self.wait()
    finally:
      self._writer.shutdown()
      if self._lock is not None:
        self._lock.release()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _open(self, accept_data: bool) -> None:
    """Locks the folder and makes it what it is between two saves."""
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise files.cannot_write(self.folder, error) from error
    self._lock = FolderLock(self.folder)
    for left in self.folder.glob(f".{_NAME}*"):
      whole = self.folder / left.stem.removeprefix(".")
      if left.suffix == ".old" and not whole.exists():
        left.rename(whole)  # killed between the two renamings of an exchange
      else:
        shutil.rmtree(left, ignore_errors=True)
    try:
      self._check(accept_data)
    except ValueError:
      self._lock.release()
      raise

  def _check(self, accept_data: bool) -> None:
    """Refuses checkpoints of another config, or a newest one of other data."""
    newest, data = self.folder, None
    for step in sorted(self._steps()):
      with contextlib.suppress(sealed.Damaged):
        record = self._record(step)
        newest, data = self._path(step), record.get("data")
        if record["fingerprint"] != self._fingerprint:
          raise ValueError(
            f"{newest} is of a run with fingerprint {record['fingerprint']}, this one "
            f"has {self._fingerprint}: its config or jax's options were "
            "others; choose another folder with --out, or delete this one"
          )
    if self._data is not None:
      content.check(data, self._data, newest, accept=accept_data)

  def _finish(self, step: int, response: Any, record: dict[str, Any]) -> None:
    """Commits what is being written, in the writer's thread."""
    new, old = self._hidden(step, "new"), self._hidden(step, "old")
    try:
      arrays.wait(response)
      if _first():
        sealed.seal(new, arrays.PART, record)
        sealed.swap(new, self._path(step), old)
        self._damaged.discard(step)
        self._retain()
    except OSError as error:
      raise files.cannot_write(self._path(step), error) from error
    finally:
      if _first():
        shutil.rmtree(new, ignore_errors=True)
        if self._path(step).exists():
          shutil.rmtree(old, ignore_errors=True)

  def _retain(self) -> None:
    """Deletes what neither policy keeps, and what is damaged."""
    scores = self._scores()
    kept = set(sorted(scores)[-self._keep_last :])
    kept.update(step for step, _ in self._ranked(scores)[: self._keep_best])
    for step in set(self._steps()) - kept:
      # Hidden first: half a checkpoint must not look like a damaged one.
      gone = self._hidden(step, "gone")
      self._path(step).rename(gone)
      shutil.rmtree(gone, ignore_errors=True)

  def _newest(self, step: int | None) -> tuple[int | None, list[str]]:
    """The newest step that is whole, or `step`, and what is wrong with newer ones."""
    steps = sorted(self._steps(), reverse=True)
    if step is not None and step not in steps:
      return None, [f"there is none of step {step:,}, but of {steps[::-1]}"]
    refused = []
    for candidate in steps if step is None else [step]:
      folder = self._path(candidate)
      try:
        sealed.verify(folder, arrays.PART, self._record(candidate))
      except sealed.Damaged as error:
        self._damaged.add(candidate)
        refused.append(
          f"the checkpoint of step {candidate:,} is damaged ({error.reason}): not used"
        )
      else:
        return candidate, refused
    return None, refused

  def _scores(self) -> dict[int, float | None]:
    """Score by step, of checkpoints that are not known to be damaged."""
    found = {}
    for step in set(self._steps()) - self._damaged:
      with contextlib.suppress(sealed.Damaged):
        found[step] = self._record(step)["score"]
    return found

  def _record(self, step: int) -> dict[str, Any]:
    """What the checkpoint says of itself, which must be that it is of `step`.

    A folder that was renamed would end a run early, or have it go back.
    """
    record = sealed.read(self._path(step))
    if record.get("step") != step:
      raise sealed.Damaged(
        self._path(step), f"it was saved as that of step {record.get('step')}"
      )
    return record

  def _ranked(self, scores: Mapping[int, float | None]) -> list[tuple[int, float]]:
    """Steps that have scores, the best first."""
    scored = [(step, score) for step, score in scores.items() if score is not None]
    return sorted(scored, key=lambda pair: (-self._sign * pair[1], pair[0]))

  def _steps(self) -> list[int]:
    names = (path.name.removeprefix(_NAME) for path in self.folder.glob(f"{_NAME}*"))
    return [int(name) for name in names if name.isdigit()]

  def _path(self, step: int) -> pathlib.Path:
    return self.folder / f"{_NAME}{step:08d}"

  def _hidden(self, step: int, kind: str) -> pathlib.Path:
    return self.folder / f".{_NAME}{step:08d}.{kind}"


def _first() -> bool:
  return jax.process_index() == 0


def _from_first(make: Callable[[], Any]) -> Any:
  """What `make` returns in process 0, through JSON, in all of them."""
  if jax.process_count() == 1:
    return make()
  text = json.dumps(make()).encode() if _first() else b""
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  padded = np.frombuffer(text.ljust(size), np.uint8)
  return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))
