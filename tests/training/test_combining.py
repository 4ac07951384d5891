"""Rounds of pruning and combining leave a network that packs without a further loss."""

import dataclasses
import itertools

import chex
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxcodesign import models, tree
from jaxcodesign.data import image_sets
from jaxcodesign.hardware.simulators import systolic
from jaxcodesign.numerics.schedules import Cubic, Iterative, OneShot
from jaxcodesign.numerics.sparsity import masks as masking
from jaxcodesign.numerics.sparsity.column_combining import gather, unpack
from jaxcodesign.runs import fitting, loop
from jaxcodesign.runs.fitting import fit
from jaxcodesign.training import combining, pruning, scores, step, task
from jaxcodesign.training.combining import Combine, Combined, Layer
from jaxcodesign.training.config import TrainConfig

CNN = models.Cnn(channels=(8, 16), hidden=16)
LAYERS = (
  Layer("conv1/kernel", 1.0, alpha=1),
  Layer("*/kernel", 0.4, alpha=4, gamma=0.5),
)


def params(seed=0):
  return CNN.init(jax.random.key(seed), (8, 8, 1), 3)


def some_images():
  rng = np.random.default_rng(0)

  def draw(n):
    labels = rng.integers(0, 3, n).astype("i4")
    images = 0.3 * rng.random((n, 8, 8, 1), np.float32)
    for image, label in zip(images, labels):
      image[2 * label : 2 * label + 3] += 0.6
    return images, labels

  return image_sets.check(
    image_sets.Images(*draw(256), *draw(60), name="bars", classes=3)
  )


@hypothesis.given(
  seed=st.integers(0, 99),
  density=st.floats(0.05, 1.0),
  alpha=st.integers(1, 9),
  gamma=st.sampled_from([0.0, 0.3, 0.5, 1.75]),
  method=st.sampled_from(["pairs", "dense_first"]),
)
@hypothesis.settings(max_examples=20, deadline=None)
def test_what_stays_packs_and_unpacks_to_itself(seed, density, alpha, gamma, method):
  kernel = np.random.default_rng(seed).normal(size=(3, 3, 4, 10)).astype("f4")
  kernel[np.abs(kernel) < 0.3] = 0  # fewer than some densities ask for
  layers = [Layer("w", density, alpha, gamma)]
  found = combining.combine({"w": kernel}, layers, method=method)
  groups = found.groups["w"]
  assert groups.alpha == alpha and max(map(len, groups.lists()), default=0) <= alpha
  mask = np.asarray(found.masks["w"])
  assert mask.sum() <= round(density * mask.size) and not mask[kernel == 0].any()
  pruned = masking.apply(found.masks, {"w": jnp.asarray(kernel)})
  packed = combining.packed(pruned, found.groups)["w"]
  matrix = combining.as_matrix(pruned["w"])
  np.testing.assert_array_equal(unpack(packed), matrix)
  np.testing.assert_array_equal(
    combining.as_kernel(matrix, kernel.shape), np.asarray(pruned["w"])
  )
  again = combining.combine(pruned, [Layer("w", 1.0, alpha, gamma)], method=method)
  assert np.count_nonzero(again.masks["w"]) <= mask.sum()


def test_the_largest_weights_stay_and_each_row_of_a_group_keeps_its_largest():
  w = jnp.array([[4.0, 3.0], [1.0, -2.0], [0.5, 0.1]])  # 3 inputs, 2 outputs
  found = combining.combine({"w": w}, [Layer("w", 4 / 6, alpha=2, gamma=1.0)])
  # Of the four largest the first two columns meet in both rows: two conflicts, allowed.
  assert found.groups["w"].lists() == [[0, 1]]
  np.testing.assert_array_equal(
    found.masks["w"], [[True, True], [False, False], [False, False]]
  )


def test_the_first_glob_decides_and_other_leaves_stay_dense():
  found = combining.combine(params(), LAYERS)
  assert set(found.groups) == {f"{n}/kernel" for n in
                               ("conv1", "conv2", "dense1", "dense2")}  # fmt: skip
  assert found.groups["conv1/kernel"].alpha == 1
  assert found.masks["conv1"]["bias"] is None
  with pytest.raises(ValueError, match="matches no name"):
    combining.combine(params(), [Layer("conv9/*")])
  with pytest.raises(ValueError, match="conv1/bias has shape"):
    combining.combine(params(), [Layer("conv1/*")])


def test_a_combined_convolution_runs_on_the_array_as_it_does_in_jax():
  """Integers, im2col, gather, MX cells: the masked convolution bit for bit."""
  rng = np.random.default_rng(1)
  x = rng.integers(-20, 20, (2, 5, 6, 8)).astype("i4")
  kernel = rng.integers(-9, 10, (3, 3, 8, 12)).astype("i4")
  found = combining.combine({"w": kernel}, [Layer("w", 0.3, 8, 0.5)])
  kept = jnp.where(found.masks["w"], kernel, 0)
  wanted = jax.lax.conv_general_dilated(
    x, kept, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  around = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  taps = [around[:, i : i + 5, j : j + 6] for i in range(3) for j in range(3)]
  patches = np.concatenate(taps, axis=-1).reshape(60, 72)  # taps, channels fastest
  packed = combining.packed({"w": kept}, found.groups)["w"]
  assert packed.groups.count < 72 / 2.5
  out, _ = systolic.simulate_packed(
    gather(patches, packed.groups), packed.values, packed.channel, rows=16, cols=8
  )
  np.testing.assert_array_equal(out.reshape(wanted.shape), wanted)


@pytest.mark.parametrize("schedule", [OneShot(0.25), Cubic(0, 0.5, events=2)])
def test_rounds_are_those_of_the_schedule_in_shares_of_the_run(schedule):
  how = Combine(LAYERS, schedule)
  assert how.rounds(16) == ([4] if isinstance(schedule, OneShot) else [4, 8])
  with pytest.raises(ValueError, match="lengthen the run or prune earlier"):
    dataclasses.replace(how, schedule=OneShot(1.0)).rounds(16)


def test_iterative_rounds_take_a_share_of_what_survived_and_stop_when_it_is_enough():
  """The loop of the paper: a layer that has reached its density loses nothing more."""
  rate, target = 0.3, 0.25
  layer = Layer("w", target, alpha=8, gamma=0.5)
  how = Combine((layer,), Iterative(0, 0.05, rounds=20, rate=rate))
  start = {"w": np.random.default_rng(0).normal(size=(128, 64)).astype("f4")}
  before = Combined({"w": jnp.ones((128, 64), bool)}, {})
  left, counts = [1.0], []
  for i in range(20):
    params = masking.apply(before.masks, start)
    before = how.combine(params, before, 5 * i, 100)
    left.append(float(np.mean(before.masks["w"])))
    counts.append(before.groups["w"].count)
    combining.packed(masking.apply(before.masks, start), before.groups)
  for was, now in itertools.pairwise(left):
    if was <= target:
      assert now == was
    else:  # a share, and conflicts: gamma a row and group at most
      assert max(target, was * (1 - rate)) - 0.5 * counts[0] / 128 - 1e-3 <= now < was
  assert target / 2 < left[-1] <= target and len(set(left)) < 8
  assert counts[-1] < 128 / 2


@pytest.mark.parametrize("regrow", [False, True])
def test_training_under_rounds_ends_combined_and_still_right(regrow):
  images, start = some_images(), params()
  how = Combine(LAYERS, Cubic(0, 0.25, events=2), regrow=regrow)
  config = TrainConfig(epochs=16, batch_size=32, learning_rate=0.01, sparsity=how)
  fitted = fit(CNN, start, images, config)
  assert fitted.history[-1].test_accuracy > 0.9
  packed = combining.packed(fitted.params, fitted.groups)
  assert set(packed) == set(fitted.groups)
  for name, one in packed.items():
    leaf = tree.named_leaves(fitted.params)[name]
    np.testing.assert_array_equal(unpack(one), combining.as_matrix(leaf))
  assert packed["dense1/kernel"].groups.count < 64 / 2
  again = scores.evaluate_accuracy(
    CNN.apply, fitted.params, images.test_images, images.test_labels
  )
  assert again == fitted.history[-1].test_accuracy


def stepper(how, images, start, steps=8):
  """The jitted step under `how`, its first state, and a batch."""
  config = TrainConfig(epochs=1, batch_size=32, sparsity=how)
  x, y = images.train_images[:32], images.train_labels[:32]
  batch, loaded = {"image": x, "label": y}, task.classify(CNN, images, config)
  functions = step.prepare(loaded.loss, config, steps, start, batch)
  move = jax.jit(functions.step, donate_argnums=0)
  copied = jax.tree.map(jnp.array, start)
  return move, functions.init(copied, jax.random.key(0)), batch


def test_a_round_changes_masks_alone_and_the_step_zeroes_what_they_leave():
  how = Combine(LAYERS, OneShot(0))
  move, state, batch = stepper(how, some_images(), params())
  latent = jax.device_get(state.params)
  moved, memory = how.between(jax.device_get(state._replace(key=None)), {}, 0, 8)
  chex.assert_trees_all_equal(moved.params, latent)
  found = tree.named_leaves(pruning.masks_of(moved.optimizer))
  assert set(combining.groups_of(memory)) == set(found)
  # The step consumes what it is given, masks too.
  masks = {n: np.array(m) for n, m in found.items()}
  assert any(0 < m.mean() < 1 for m in masks.values())
  state, _ = move(moved._replace(key=state.key), batch, ())
  for name, mask in masks.items():
    leaf = np.asarray(tree.named_leaves(state.params)[name])
    assert not leaf[~mask].any(), name


def test_a_schedule_that_outlasts_the_run_is_refused_before_any_step():
  how = Combine(LAYERS, OneShot(1.0))
  config = TrainConfig(epochs=2, batch_size=32, sparsity=how)
  with pytest.raises(ValueError, match="lengthen the run"):
    fit(CNN, params(), some_images(), config)
  half = dataclasses.replace(config, sparsity=Combine(LAYERS, OneShot(0.5)))
  assert fit(CNN, params(), some_images(), half).groups


def test_rounds_do_not_compile_the_step_anew():
  how = Combine(LAYERS, Cubic(0, 0.5, events=3))
  config = TrainConfig(epochs=1, batch_size=32, sparsity=how)
  ready = fitting.prepare(CNN, params(), some_images(), config)
  step = ready.step
  found = loop.run(ready, console=Console(quiet=True))
  assert found.step == ready.steps and combining.groups_of(found.memories[0])
  # An array bound to another device, or to none, makes another program.
  assert ready.step is step and step._cache_size() == 1


@pytest.mark.parametrize(
  ("call", "said"),
  [
    (lambda: Layer("w", gamma=-1.0), "gamma at least 0"),
    (lambda: Layer("w", alpha=0), "alpha must be at least 1"),
    (lambda: Layer("w", density=0.0), r"density=0\.0 of w must be in \(0, 1\]"),
    (lambda: Combine((), OneShot(0)), "name the layers to combine"),
  ],
)
def test_what_cannot_be_combined_is_refused_when_it_is_made(call, said):
  with pytest.raises(ValueError, match=said):
    call()


def test_a_round_takes_its_share_of_what_is_left():
  """Half is left: the second round leaves 0.8 of that, not 0.8 of the whole."""
  how = Combine((Layer("w", 0.1, alpha=1, gamma=0.0),), Iterative(0, 0.5, 2, rate=0.2))
  start = np.random.default_rng(0).normal(size=(64, 64)).astype("f4")
  half = np.abs(start) > np.median(np.abs(start))
  before = Combined({"w": jnp.asarray(half)}, {})
  after = how.combine({"w": start * half}, before, 0, 100)
  assert float(np.mean(after.masks["w"])) == pytest.approx(0.4, abs=0.01)
