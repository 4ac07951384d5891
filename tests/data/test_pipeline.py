"""What a batch holds is decided by the seed and its number, by nothing else."""

import json
import threading

import numpy as np
import pytest

from jaxcodesign.data import image_sets, pipeline
from jaxcodesign.data.sources import ImageSource, Source

RNG = np.random.default_rng(0)
IMAGES = RNG.random((50, 4, 4, 1), np.float32)
LABELS = np.arange(50, dtype=np.int32)


def source(augment=True):
  return ImageSource(IMAGES, LABELS, classes=50, augment=augment)


def made(steps=9, augment=True, batch_size=12, **options):
  options = {"seed": 3, **options}
  with pipeline.batches(
    source(augment), batch_size=batch_size, steps=steps, **options
  ) as stream:
    return list(stream)


def same(a, b):
  return len(a) == len(b) and all(
    x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x)
    for x, y in zip(a, b)
  )


def together(parts):
  """Global batches of the local ones of each process."""
  return [{k: np.concatenate([b[k] for b in local]) for k in local[0]}
          for local in zip(*parts)]  # fmt: skip


def test_the_order_is_that_of_one_epoch_after_the_other():
  wanted = [
    {"image": x, "label": y}
    for epoch in range(3)
    for x, y in image_sets.batches(IMAGES, LABELS, 12, seed=3, epoch=epoch)
  ]
  assert same(made(augment=False), wanted[:9])


def test_an_epoch_shows_an_example_once_and_leaves_others_out_each_time():
  labels = [batch["label"] for batch in made(steps=8)]
  epochs = [np.concatenate(labels[i : i + 4]).tolist() for i in (0, 4)]
  assert all(len(set(epoch)) == 48 for epoch in epochs)
  assert epochs[0] != epochs[1] and set(epochs[0]) != set(epochs[1])


def test_seeds_decide_order_and_augmentation():
  assert same(made(), made()) and not same(made(), made(seed=4))
  first, later = (made(steps=5, seed=s, batch_size=50) for s in (3, 3 + 2**40))
  assert not same(first, later)
  # The same example is augmented in another way in each epoch.
  views = [b["image"][b["label"] == 7].tobytes() for b in first]
  assert len(set(views)) > 1


@pytest.mark.parametrize("count", [2, 3, 4])
def test_processes_share_what_one_would_read(count):
  parts = [made(process=(i, count)) for i in range(count)]
  assert same(together(parts), made())


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_threads_change_nothing(threads):
  assert same(made(threads=threads, prefetch=2), made())


def test_a_process_reads_its_own_rows_alone():
  class Seen(ImageSource):
    def batch(self, indices, draws):
      seen.extend(indices)
      return super().batch(indices, draws)

  seen: list[int] = []
  examples = Seen(IMAGES, LABELS, classes=50)
  for i in range(2):
    with pipeline.batches(
      examples, batch_size=50, steps=1, seed=0, process=(i, 2)
    ) as stream:
      next(stream)
    assert len(seen) == 25 * (i + 1)
  assert sorted(seen) == list(range(50))


@pytest.mark.parametrize("count", [1, 2])
def test_a_stream_goes_on_where_its_state_was_taken(count):
  examples = source()
  options = {"batch_size": 12, "steps": 9, "seed": 3}
  with pipeline.batches(examples, **options) as stream:
    for _ in range(4):
      next(stream)
    state = json.loads(json.dumps(stream.state()))
    rest = list(stream)
  parts = []
  for i in range(count):
    with pipeline.batches(examples, process=(i, count), **options) as stream:
      next(stream)
      stream.restore(state)
      parts.append(list(stream))
  assert same(together(parts), rest) and len(rest) == 5
  assert same(made(first=4), rest)


def test_state_of_another_stream_is_refused():
  with pipeline.batches(source(), batch_size=12, steps=9, seed=3) as stream:
    state = stream.state()
    for name, value in {"seed": 4, "batch_size": 6, "examples": 49}.items():
      with pytest.raises(ValueError, match=f"another {name}: {value}, here"):
        stream.restore(state | {name: value})
    with pytest.raises(ValueError, match="step 10 is not in this stream"):
      stream.restore(state | {"next": 10})
    stream.restore(state | {"next": 9})
    assert list(stream) == []


@pytest.mark.parametrize(("batch_size", "count"), [(12, 1), (12, 3), (64, 2), (50, 1)])
def test_evaluation_covers_every_example_once(batch_size, count):
  parts = []
  for i in range(count):
    with pipeline.evaluation(
      source(), batch_size=batch_size, process=(i, count)
    ) as stream:
      parts.append(list(stream))
  batches = together(parts)
  weights = np.concatenate([b["weight"] for b in batches])
  assert weights.dtype == np.float32 and len(weights) % batch_size == 0
  real = {k: np.concatenate([b[k] for b in batches])[weights == 1] for k in batches[0]}
  np.testing.assert_array_equal(real["label"], LABELS)
  np.testing.assert_array_equal(real["image"], IMAGES)
  assert weights.sum() == 50 and set(weights) <= {0, 1}


def test_batches_are_made_ahead_but_not_all():
  class Slow(Source):
    name = "slow"
    asked = 0

    def __len__(self):
      return 100

    def batch(self, indices, draws):
      with lock:
        self.asked += 1
      ready.release()
      return {"x": indices}

    def shapes(self, batch_size):
      raise NotImplementedError

    def content(self):
      raise NotImplementedError

  lock, ready, slow = threading.Lock(), threading.Semaphore(0), Slow()
  stream = pipeline.batches(
    slow, batch_size=1, steps=100, seed=0, prefetch=5, threads=2
  )
  with stream:
    next(stream)
    for _ in range(6):  # one that was taken, five ahead
      assert ready.acquire(timeout=10)
    assert not ready.acquire(timeout=0.1) and slow.asked == 6


def test_an_error_in_a_thread_is_raised_where_the_batch_is_wanted():
  class Broken(ImageSource):
    def batch(self, indices, draws):
      raise ValueError("x.jpg is broken")

  stream = pipeline.batches(
    Broken(IMAGES, LABELS, classes=50), batch_size=5, steps=3, seed=0
  )
  with stream, pytest.raises(ValueError, match=r"x\.jpg is broken"):
    next(stream)


def test_no_thread_outlives_a_stream():
  before = set(threading.enumerate())
  with pipeline.batches(source(), batch_size=5, steps=50, seed=0) as stream:
    next(stream)
    started = set(threading.enumerate()) - before
  assert started
  for thread in started:
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"batch_size": 51}, "does not fit the 50 examples of images"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"process": (0, 5)}, "batch_size=12 cannot be split over 5 processes"),
    ({"process": (2, 2)}, "index below count"),
    ({"seed": -1}, "seed=-1"),
    ({"first": 10}, "step 10 is not in this stream"),
    ({"threads": -1}, "threads=-1"),
  ],
)
def test_what_does_not_fit_is_refused(options, words):
  with pytest.raises(ValueError, match=words):
    made(**options)


@pytest.mark.parametrize("width", [1, 4, 5, 9])
def test_the_draws_of_an_example_are_its_own(width):
  draw = lambda position, count: pipeline._draws(
    np.array([1, 2], np.uint64), position, count, width
  )
  whole = draw(0, 6)
  assert whole.shape == (6, width) and np.unique(whole).size == whole.size
  np.testing.assert_array_equal(whole[2:5], draw(2, 3))
