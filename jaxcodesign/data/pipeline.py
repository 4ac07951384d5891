"""Batches of a source in an order that nothing but the seed decides.

Batch t of a run, its rows and their order, and every augmentation are functions of
(seed, t): not of the number of processes, of threads, or of where a run was stopped.
Each process reads its own rows alone. Grain makes the batches ahead, in threads.
"""

from collections.abc import Callable, Mapping
import functools
import threading
from typing import Any, Self

import grain
import numpy as np

from jaxcodesign.data.sources import Source

_BLOCK = 4  # words of Philox' counter: an example owns whole blocks


class Stream:
  """Batches that are made ahead; an iterator, and a context that ends its threads.

  `state` and `restore` hold the position alone: batches that were made but not taken
  are made again.
  """

  def __init__(
    self,
    make: Callable[[int], dict[str, np.ndarray]],
    steps: int,
    *,
    mark: Mapping[str, Any],
    prefetch: int,
    threads: int,
  ):
    """A stream of `make(0)` to `make(steps - 1)`.

    Args:
      make: Batch of an index, called from many threads.
      steps: How many there are.
      mark: What `restore` compares: strings and numbers.
      prefetch: Batches that are made ahead.
      threads: That make them; 0 makes each when it is asked for.
    """
    if threads < 0 or prefetch < 0:
      raise ValueError(f"prefetch={prefetch} and threads={threads} must be 0 or more")
    ahead = max(prefetch, threads) if threads else 0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    dataset = grain.MapDataset.range(steps).map(make).to_iter_dataset(options)
    self._batches = iter(dataset)
    self._mark = dict(mark)

  def __iter__(self) -> Self:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    return next(self._batches)

  def state(self) -> dict[str, Any]:
    """Where the stream is, as JSON: what `restore` takes."""
    return self._mark | {"next": self._batches.get_state()["next_index"]}

  def restore(self, state: Mapping[str, Any]) -> None:
    """Goes on from where `state` was taken, in any number of processes and threads.

    Raises:
      ValueError: If it is of another stream, saying how, or past this one's end.
    """
    for name, value in self._mark.items():
      if state.get(name) != value:
        raise ValueError(
          f"state of a stream of another {name}: {state.get(name)!r}, here {value!r}; "
          "restore what this stream's own state() returned"
        )
    self.seek(state["next"])

  def seek(self, step: int) -> None:
    """Goes on from batch `step`.

    Raises:
      ValueError: If there is no such batch; the number of batches is the end.
    """
    try:
      self._batches.set_state({"next_index": step})
    except IndexError as error:
      raise ValueError(f"step {step} is not in this stream: {error}") from error

  def close(self) -> None:
    """Ends the threads; batches cannot be taken afterwards."""
    self._batches.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def batches(
  source: Source,
  *,
  batch_size: int,
  steps: int,
  seed: int,
  first: int = 0,
  process: tuple[int, int] = (0, 1),
  prefetch: int = 4,
  threads: int = 2,
) -> Stream:
  """Training batches: `steps` of them, through as many epochs as that takes.

  Every epoch has its own permutation, that of `data.batches`, and full batches alone:
  the len(source) % batch_size examples that remain are left out, others in each epoch.

  Args:
    source: Of the examples.
    batch_size: Of a global batch, over all processes.
    steps: Batches in the whole run.
    seed: Non-negative; decides order and augmentation.
    first: Batch to begin with.
    process: (index, count): this process gets rows [index B/count, (index + 1) B/count)
      of each batch.
    prefetch: Batches that are made ahead, at least `threads`.
    threads: That make them; 0 makes each when it is asked for.

  Returns:
    A stream of dicts of arrays [B / count, ...].

  Raises:
    ValueError: If the batch does not fit the source or the processes.
  """
  _check(source, batch_size, process)
  if batch_size > len(source):
    raise ValueError(
      f"batch_size={batch_size} does not fit the {len(source)} examples of "
      f"{source.name}; lower it"
    )
  if seed < 0:
    raise ValueError(f"seed={seed} must be 0 or more")
  per_epoch = len(source) // batch_size
  rows = _rows(batch_size, process)
  order = _Order(len(source), seed)
  # Apart from the permutations, which have the keys (seed, epoch).
  key = np.random.SeedSequence((seed, 0, 1)).generate_state(2, np.uint64)

  def make(step: int) -> dict[str, np.ndarray]:
    epoch, at = divmod(int(step), per_epoch)
    chosen = order(epoch)[at * batch_size : (at + 1) * batch_size][rows]
    position = int(step) * batch_size + rows.start
    return source.batch(chosen, _draws(key, position, len(chosen), source.draws))

  mark = {"examples": len(source), "batch_size": batch_size, "seed": seed}
  stream = Stream(make, steps, mark=mark, prefetch=prefetch, threads=threads)
  stream.seek(first)
  return stream


def evaluation(
  source: Source,
  *,
  batch_size: int,
  process: tuple[int, int] = (0, 1),
  prefetch: int = 4,
  threads: int = 2,
) -> Stream:
  """Batches of all examples, each once, in their order and without augmentation.

  Args:
    source: Of the examples.
    batch_size: Of a global batch, over all processes; may be more than the examples.
    process: As in `batches`.
    prefetch: As in `batches`.
    threads: As in `batches`.

  Returns:
    A stream of ceil(len(source) / batch_size) dicts of arrays, with "weight" float32 of
    the examples: 1, or 0 for a repetition of the last one that fills the last batch.

  Raises:
    ValueError: If the batch does not fit the processes, or there are no examples.
  """
  _check(source, batch_size, process)
  rows = _rows(batch_size, process)

  def make(step: int) -> dict[str, np.ndarray]:
    indices = int(step) * batch_size + np.arange(rows.start, rows.stop)
    batch = source.batch(np.minimum(indices, len(source) - 1), None)
    return batch | {"weight": (indices < len(source)).astype(np.float32)}

  mark = {"examples": len(source), "batch_size": batch_size}
  steps = -(-len(source) // batch_size)
  return Stream(make, steps, mark=mark, prefetch=prefetch, threads=threads)


class _Order:
  """Permutations of epochs; the last few are kept, as threads run ahead of an epoch."""

  def __init__(self, examples: int, seed: int):
    self._lock = threading.Lock()
    self._make = functools.lru_cache(maxsize=2)(
      lambda epoch: np.random.default_rng((seed, epoch)).permutation(examples)
    )

  def __call__(self, epoch: int) -> np.ndarray:
    with self._lock:  # so that threads do not make the same one at once
      return self._make(epoch)


def _draws(key: np.ndarray, position: int, count: int, width: int) -> np.ndarray | None:
  """[count, width] uniform numbers of the examples from `position` of the run on."""
  if not width:
    return None
  blocks = -(-width // _BLOCK)
  bits = np.random.Philox(key=key, counter=position * blocks)
  return np.random.Generator(bits).random((count, blocks * _BLOCK))[:, :width]


def _rows(batch_size: int, process: tuple[int, int]) -> slice:
  index, count = process
  share = batch_size // count
  return slice(index * share, (index + 1) * share)


def _check(source: Source, batch_size: int, process: tuple[int, int]) -> None:
  index, count = process
  if not 0 <= index < count:
    raise ValueError(f"process={process} must be (index, count) with index below count")
  if batch_size < 1 or batch_size % count:
    raise ValueError(
      f"batch_size={batch_size} cannot be split over {count} processes: choose a "
      f"multiple of {count}"
    )
  if not len(source):
    raise ValueError(f"{source.name} has no examples")
