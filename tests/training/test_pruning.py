"""Pruned training: exact counts, zeros that stay zero, tickets, resumed to the bit."""

import functools
import itertools

import chex
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcodesign import models, tree
from jaxcodesign.numerics.schedules import Cubic, Iterative, OneShot
from jaxcodesign.numerics.sparsity import patterns
from jaxcodesign.numerics.sparsity.masks import Rule
from jaxcodesign.runs.disk import saved
from jaxcodesign.training import pruning

RULES = [Rule("w", patterns.Unstructured(0.25))]
CUBIC = Cubic(1, 10, events=3)


def start(seed=0):
  key = jax.random.key(seed)
  return {"w": jax.random.normal(key, (8, 12)), "b": jnp.ones(12)}


def batches(count, size=16):
  x = jax.random.normal(jax.random.key(7), (count, size, 8))
  return x, jax.random.normal(jax.random.key(8), (count, size, 12))


def loss(params, x, y):
  return jnp.mean((x @ params["w"] + params["b"][None] - y) ** 2)


def stepper(optimizer, loss=loss):
  """(params, opt_state, *batch) -> (params, opt_state), as told in the module."""

  def step(params, opt_state, *batch):
    grads = jax.grad(loss)(pruning.sparse(params, opt_state), *batch)
    with jax.numpy_dtype_promotion("standard"):  # for optax.MultiSteps outside
      updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  return step


def run(optimizer, params, data, opt_state=None, step=None):
  """Parameters and state after each step, all of them in one trace."""
  step = step or jax.jit(stepper(optimizer))
  state = (params, optimizer.init(params) if opt_state is None else opt_state)
  history = []
  for batch in zip(*data):
    state = step(*state, *batch)
    history.append(state)
  return history


def largest(scores, density):
  """The mask by a stable sort."""
  kept = np.zeros(scores.size, bool)
  count = int(np.round(np.float32(density) * np.float32(scores.size)))
  kept[np.argsort(-scores.ravel(), kind="stable")[:count]] = True
  return kept.reshape(scores.shape)


def reference(params, data, final, regrow, rate=0.3):
  """Masked SGD under `CUBIC` in numpy: (w, b, mask) after each step."""
  w, b = (np.array(params[name], np.float64) for name in "wb")
  mask, found = np.ones(w.shape, bool), []
  for s, (x, y) in enumerate(zip(*map(np.asarray, data))):
    error = 2 * (x @ (w * mask) + b - y) / y.size
    slope = x.T @ error
    w = w - rate * (slope if regrow else slope * mask)
    b = b - rate * error.sum(0)
    if s in (4, 7, 10):
      left = 1 - {4: 1, 7: 2, 10: 3}[s] / 3
      scores = np.abs(w) if regrow else np.where(mask, np.abs(w), -1)
      mask = largest(scores, 1 - (1 - final) * (1 - left**3))
    w = w if regrow else w * mask
    found.append((w, b, mask))
  return found


@settings(max_examples=6)
@given(st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.booleans(), st.integers(0, 9))
def test_masked_sgd_is_that_of_plain_numpy(final, regrow, seed):
  rules = [Rule("w", patterns.Unstructured(final))]
  optimizer = pruning.prune(optax.sgd(0.3), rules, CUBIC, regrow=regrow)
  data = batches(13)
  wanted = reference(start(seed), data, final, regrow)
  found = run(optimizer, start(seed), data)
  for (params, state), (w, b, mask) in zip(found, wanted):
    np.testing.assert_array_equal(pruning.masks_of(state)["w"], mask)
    np.testing.assert_allclose(params["w"], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(params["b"], b, rtol=1e-4, atol=1e-5)


PATTERNS = {
  "unstructured": (patterns.Unstructured(0.25), 1),
  "2:4": (patterns.NOfM(2, 4, axis=0), 48 / 2),
  "blocks": (patterns.Blocks((2, 3), 0.25), 6),
  "channels": (patterns.Channels(0.25), 8),
}


@pytest.mark.parametrize("regrow", [False, True], ids=["hard", "regrow"])
@pytest.mark.parametrize("score", ["magnitude", "saliency"])
@pytest.mark.parametrize("kind", PATTERNS)
def test_counts_are_exact_zeros_stay_and_masks_freeze(kind, score, regrow):
  chex.clear_trace_counter()
  pattern, unit = PATTERNS[kind]
  inner = optax.adamw(0.3, weight_decay=0.5)  # moves latent weights a lot
  optimizer = pruning.prune(inner, [Rule("w", pattern)], CUBIC,
                            regrow=regrow, score=score)  # fmt: skip
  step = jax.jit(chex.assert_max_traces(stepper(optimizer), n=1))
  history = run(optimizer, start(), batches(14), step=step)
  before, back = np.ones((8, 12), bool), 0
  for s, (params, state) in enumerate(history):
    mask = np.asarray(pruning.masks_of(state)["w"])
    density = CUBIC(s, pattern.density)
    assert mask.sum() == int(jnp.round(density * np.float32(96 / unit))) * unit
    assert s in CUBIC.steps() or (mask == before).all()
    back += (mask & ~before).sum()
    assert state.masks["b"] is None
    assert regrow or (params["w"] == 0).tolist() == (~mask).tolist()
    seen = pruning.sparse(params, state)
    assert (seen["w"] == np.where(mask, params["w"], 0)).all()
    before = mask
  assert (back > 0) == regrow  # what went came back, or never did
  assert before.sum() == np.float32(pattern.density) * 96


def test_a_hard_event_never_brings_back_what_others_masked():
  optimizer = pruning.prune(optax.sgd(0.1), RULES, OneShot(0))
  few = jnp.arange(96).reshape(8, 12) % 10 == 0  # fewer than a quarter
  opt_state = pruning.with_masks(optimizer.init(start()), {"w": few, "b": None})
  _, opt_state = run(optimizer, start(), batches(1), opt_state)[-1]
  np.testing.assert_array_equal(opt_state.masks["w"], few)


def test_a_hard_mask_gives_the_inner_optimizer_no_gradient():
  optimizer = pruning.prune(optax.adam(0.1), RULES, OneShot(2))
  moments = []
  for _, state in run(optimizer, start(), batches(6))[2:]:
    moments.append(np.where(state.masks["w"], 0, state.inner[0].mu["w"]))
  assert np.any(moments[0])
  for one, next_one in itertools.pairwise(moments):
    np.testing.assert_allclose(next_one, 0.9 * one, rtol=1e-6)


def test_saliency_is_of_the_updated_weight_and_its_own_gradient():
  slope = jnp.array([4.0, 1.0, -3.0, 0.5])
  optimizer = pruning.prune(
    optax.sgd(0.1),
    [Rule("*", patterns.Unstructured(0.5))],
    OneShot(0),
    score="saliency",
  )
  w = jnp.array([1.0, -2.0, 0.2, 9.0])
  params, state = stepper(optimizer, lambda w: jnp.sum(w * slope))(w, optimizer.init(w))
  # (w - slope / 10) * slope: 2.4, -2.1, -1.5, 4.475.
  assert state.masks.tolist() == [True, False, False, True]
  np.testing.assert_allclose(params, [0.6, 0, 0, 8.95], rtol=1e-6)


@pytest.mark.parametrize("rewind_to", [0, 2])
def test_rounds_of_training_and_rewinding(rewind_to):
  schedule = Iterative(4, every=5, rounds=2, rate=0.5)
  inner = optax.adamw(0.1)
  optimizer = pruning.prune(
    inner, [Rule("w", patterns.Unstructured(0.0))], schedule, rewind_to=rewind_to
  )
  # A step that consumes what it is given: the ticket must be a copy.
  step = jax.jit(stepper(optimizer), donate_argnums=(0, 1))
  params = start()
  state = (params, optimizer.init(params))
  data = list(zip(*batches(5)))
  kept = start()
  for i, batch in enumerate(data):
    if i == rewind_to:
      kept = jax.tree.map(np.array, state[0])
    elif i < rewind_to:
      with pytest.raises(ValueError, match="not yet taken"):
        pruning.rewind(optimizer, state[1])
    state = step(*state, *batch)
  masks = np.asarray(pruning.masks_of(state[1])["w"])
  assert masks.sum() == 48
  params, opt_state = pruning.rewind(optimizer, state[1])
  wanted = kept | {"w": np.where(masks, kept["w"], 0)}
  chex.assert_trees_all_equal(params, wanted)
  chex.assert_trees_all_equal(opt_state.inner, inner.init(params))
  assert opt_state.step == 5 and (opt_state.masks["w"] == masks).all()
  state = (params, opt_state)
  for batch in data:  # the next round goes on where the schedule is
    state = step(*state, *batch)
  again = np.asarray(pruning.masks_of(state[1])["w"])
  assert again.sum() == 24 and not (again & ~masks).any()
  params, _ = pruning.rewind(optimizer, state[1])
  np.testing.assert_array_equal(params["w"], np.where(again, kept["w"], 0))


@pytest.mark.parametrize("regrow", [False, True], ids=["hard", "regrow"])
def test_a_run_resumed_amid_the_schedule_is_the_same_to_the_bit(tmp_path, regrow):
  inner = optax.adamw(optax.cosine_decay_schedule(0.1, 12))
  optimizer = pruning.prune(inner, RULES, CUBIC, regrow=regrow, rewind_to=1)
  step = jax.jit(stepper(optimizer))
  data = batches(12)
  whole = run(optimizer, start(), data, step=step)
  first = run(optimizer, start(), [x[:6] for x in data], step=step)[-1]
  saved.save(tmp_path / "half", first, {})
  like = jax.eval_shape(lambda p: (p, optimizer.init(p)), start())
  loaded, _ = saved.restore(tmp_path / "half", like)
  rest = run(optimizer, loaded[0], [x[6:] for x in data], loaded[1], step)
  assert 0.25 < np.mean(loaded[1].masks["w"]) < 1  # an event behind, one ahead
  chex.assert_trees_all_equal(rest[-1], whole[-1])
  assert type(rest[-1][1]) is pruning.PruneState


@pytest.mark.parametrize("outside", [True, False])
def test_multisteps_around_or_inside_is_a_step_of_the_large_batch(outside):
  large = pruning.prune(optax.adamw(0.1), RULES, OneShot(1))
  wanted = run(large, start(), batches(3))
  if outside:
    small = optax.MultiSteps(large, 2)
  else:  # steps are those of the gradients: the second batch ends with the fourth
    small = pruning.prune(optax.MultiSteps(optax.adamw(0.1), 2), RULES, OneShot(3))
  halves = [x.reshape(6, 8, -1) for x in batches(3)]
  found = run(small, start(), halves)[1::2]
  for (params, state), (large_params, large_state) in zip(found, wanted):
    chex.assert_trees_all_equal(pruning.masks_of(state), pruning.masks_of(large_state))
    chex.assert_trees_all_close(params, large_params, rtol=1e-5, atol=1e-6)
    assert (params["w"] == 0).sum() == (~pruning.masks_of(state)["w"]).sum()


@pytest.mark.parametrize("kind", list(jax.sharding.AxisType)[:2], ids=str)
def test_shards_have_the_masks_of_one_device(kind):
  optimizer = pruning.prune(optax.adamw(0.1), RULES, CUBIC, rewind_to=1)
  data = batches(11)
  params, state = run(optimizer, start(), data)[-1]
  mesh = jax.make_mesh((8,), ("rows",), axis_types=(kind,))
  rows = jax.NamedSharding(mesh, jax.P("rows"))
  spread = {"w": jax.device_put(start()["w"], rows), "b": start()["b"]}
  on_eight, there = run(optimizer, spread, data)[-1]
  np.testing.assert_array_equal(there.masks["w"], state.masks["w"])
  chex.assert_trees_all_close(on_eight, params, rtol=1e-5, atol=1e-6)
  masks = optimizer.init(spread).masks["w"], there.masks["w"]
  given = pruning.with_masks(there, {"w": np.asarray(there.masks["w"]), "b": None})
  for mask in (*masks, given.masks["w"], on_eight["w"]):
    assert mask.sharding.is_equivalent_to(rows, 2)


def test_scan_and_vmap_over_seeds_are_the_loops():
  optimizer = pruning.prune(optax.adamw(0.1), RULES, CUBIC, score="saliency")
  data = batches(11)

  def scanned(params):
    step = stepper(optimizer)
    first = (params, optimizer.init(params))
    return jax.lax.scan(lambda c, batch: (step(*c, *batch), None), first, data)[0]

  many = jax.tree.map(lambda *x: jnp.stack(x), start(0), start(1))
  found = jax.jit(jax.vmap(scanned))(many)
  for seed in range(2):
    params, state = run(optimizer, start(seed), data)[-1]
    one = jax.tree.map(lambda x, seed=seed: x[seed], found)
    np.testing.assert_array_equal(one[1].masks["w"], state.masks["w"])
    chex.assert_trees_all_close(one[0], params, rtol=1e-4, atol=1e-5)


def test_bfloat16_and_flax_trees():
  cnn = models.Cnn(channels=(8,), hidden=8)
  params = cnn.init(jax.random.key(0), (4, 4, 1), 4)
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  rules = [Rule("conv*/bias", None), Rule("*kernel", patterns.Unstructured(0.5))]
  optimizer = pruning.prune(optax.adamw(0.1), rules, OneShot(1))
  mean = lambda p, x: jnp.mean(cnn.apply(p, x).astype(jnp.float32) ** 2)
  x = jax.random.normal(jax.random.key(1), (3, 2, 4, 4, 1), jnp.bfloat16)
  step = jax.jit(stepper(optimizer, mean))
  params, state = run(optimizer, params, [x], step=step)[-1]
  chex.assert_type(jax.tree.leaves(params), jnp.bfloat16)
  for layer in ("conv1", "dense1", "dense2"):
    kernel, mask = params[layer]["kernel"], state.masks[layer]["kernel"]
    assert mask.sum() == mask.size // 2
    assert not kernel[~mask].any() and kernel[mask].all()


def test_an_nnx_state_is_pruned_by_the_names_of_its_leaves():
  graph, params = nnx.split(nnx.Linear(8, 12, rngs=nnx.Rngs(0)))
  rules = [Rule("kernel", patterns.NOfM(1, 4, axis=0))]
  optimizer = pruning.prune(optax.adam(0.1), rules, OneShot(0))
  mean = lambda p, x, y: jnp.mean((nnx.merge(graph, p)(x) - y) ** 2)
  step = jax.jit(stepper(optimizer, mean))
  params, state = run(optimizer, params, batches(2), step=step)[-1]
  kernel = np.asarray(tree.named_leaves(params)["kernel"])
  assert ((kernel.reshape(2, 4, 12) != 0).sum(axis=1) == 1).all()
  assert len(jax.tree.leaves(pruning.masks_of(state))) == 1


NESTED = {
  "chain": lambda prune: optax.chain(optax.clip(1.0), prune),
  "twice": lambda prune: optax.chain(optax.chain(prune)),
  "masked": lambda prune: optax.masked(prune, {"w": True, "b": False}),
  "multi_transform": lambda prune: optax.multi_transform(
    {"sparse": prune, "dense": optax.sgd(0.1)}, {"w": "sparse", "b": "dense"}
  ),
  "MultiSteps": lambda prune: optax.MultiSteps(prune, 1),
}


@pytest.mark.parametrize("nest", NESTED)
def test_masks_are_found_and_set_inside_other_transformations(nest):
  optimizer = NESTED[nest](pruning.prune(optax.adamw(0.1), RULES, None))
  params, opt_state = start(), optimizer.init(start())
  assert pruning.masks_of(opt_state)["w"].all()  # no schedule: all stays ...
  wanted = np.arange(96).reshape(8, 12) % 3 == 0
  opt_state = pruning.with_masks(opt_state, {"w": wanted, "b": None})  # ... until told
  seen = pruning.sparse(params, opt_state)
  np.testing.assert_array_equal(seen["w"], np.where(wanted, params["w"], 0))
  np.testing.assert_array_equal(seen["b"], params["b"])
  params, opt_state = run(optimizer, params, batches(2), opt_state)[-1]
  np.testing.assert_array_equal(params["w"] != 0, wanted)
  np.testing.assert_array_equal(pruning.masks_of(opt_state)["w"], wanted)


def test_a_part_of_the_tree_hidden_from_prune_is_dense():
  whole = {"body": start(), "head": start(1)}
  inner = pruning.prune(optax.sgd(0.1), [Rule("body/w", RULES[0].pattern)], OneShot(0))
  state = optax.masked(inner, {"body": True, "head": False}).init(whole)
  assert pruning.masks_of(state)["head"] is None
  chex.assert_trees_all_equal(pruning.sparse(whole, state), whole)


def masks(**changes):
  return {"w": np.ones((8, 12), bool), "b": None} | changes


STATE = pruning.PruneState(jnp.int32(0), masks(), optax.EmptyState(), None)
SET = functools.partial(pruning.with_masks, STATE)


def prune(rules=RULES, **options):
  return pruning.prune(optax.sgd(0.1), rules, None, **options)


def rewind_a_part():
  optimizer = NESTED["masked"](prune(rewind_to=0))
  return pruning.rewind(optimizer, optimizer.init(start()))


@pytest.mark.parametrize(
  ("use", "error", "message"),
  [
    (lambda: prune(score="size"), ValueError, "score='size': choose"),
    (lambda: prune(rewind_to=-1), ValueError, "rewind_to=-1"),
    (lambda: prune([Rule("kernel")]).init(start()), ValueError, "matches no name"),
    (lambda: prune([Rule("*")]).init(start()), ValueError, "no leaf is sparse"),
    (
      lambda: prune([Rule("w", patterns.NOfM(1, 5))]).init(start()),
      ValueError,
      "w: m=5 does not divide",
    ),
    (lambda: prune().init({"w": jnp.arange(4)}), ValueError, "w is int32: only floats"),
    (
      lambda: prune().update(start(), prune().init(start())),
      ValueError,
      "needs params",
    ),
    (lambda: pruning.masks_of(optax.sgd(0.1).init(start())), ValueError, "0 PruneSt"),
    (lambda: pruning.sparse(start(), [STATE, STATE]), ValueError, "2 PruneStates"),
    (
      lambda: pruning.masks_of(STATE._replace(inner=STATE)),
      ValueError,
      "has 2 PruneStates",
    ),
    (lambda: SET(masks(w=np.ones((4, 4), bool))), ValueError, r"w has shape \(4, 4\)"),
    (lambda: SET(masks(w=np.ones((8, 12)))), TypeError, "w is float32; pass bool"),
    (lambda: SET(masks(w=None)), ValueError, "w is None, that .* a mask"),
    (lambda: SET(masks(b=np.ones(12, bool))), ValueError, "b is a mask, that .* None"),
    (lambda: SET([]), ValueError, "masks are not like"),
    (lambda: pruning.rewind(prune(), STATE), ValueError, "there is no ticket"),
    (rewind_a_part, ValueError, "a part of the parameters"),
  ],
)
def test_bad_input(use, error, message):
  with pytest.raises(error, match=message):
    use()
