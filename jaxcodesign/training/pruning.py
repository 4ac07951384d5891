"""Training under masks: `prune` wraps an optax optimizer, and a schedule moves it.

  optimizer = pruning.prune(optax.adamw(1e-3), rules, schedules.Cubic(100, 900))
  opt_state = optimizer.init(params)
  for batch in batches:
    grads = jax.grad(loss)(pruning.sparse(params, opt_state), batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
  accuracy(pruning.sparse(params, opt_state))

The forward pass always has the masked parameters. Two ways to go on from there:

  hard             masked weights are exactly zero from the event on and never return;
                   the inner optimizer sees gradients of zero, and neither its moments
                   nor its weight decay move them
  regrow           the gradient at the masked point goes straight through to latent
                   weights, which keep moving and may be back after a later event

References: Zhu, Gupta. "To Prune, or Not to Prune", 2017; Frankle, Carbin. "The Lottery
Ticket Hypothesis", ICLR 2019; Frankle et al. "Linear Mode Connectivity and the Lottery
Ticket Hypothesis", ICML 2020.
"""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from jaxcodesign import tree
from jaxcodesign.numerics.schedules import Schedule
from jaxcodesign.numerics.sparsity import masks as masking
from jaxcodesign.numerics.sparsity import patterns
from jaxcodesign.numerics.sparsity.masks import Rule

Score = Literal["magnitude", "saliency"]


class Ticket(NamedTuple):
  """Parameters to rewind to."""

  step: jax.Array  # int32 steps before they were taken, -1 until then
  params: Any


class PruneState(NamedTuple):
  """What `prune` keeps: a pytree of arrays."""

  step: jax.Array  # int32 steps made
  masks: Any  # like the parameters: bool, None for a dense leaf
  inner: Any  # of the wrapped optimizer
  ticket: Ticket | None


def prune(
  inner: optax.GradientTransformation | optax.MultiSteps,
  rules: Sequence[Rule],
  schedule: Schedule | None,
  *,
  regrow: bool = False,
  score: Score = "magnitude",
  rewind_to: int | None = None,
) -> optax.GradientTransformationExtraArgs:
  """`inner` with the parameters under masks.

  Laws, for finite parameters: an event of the schedule computes the masks from the
  parameters after its own step, so those are pruned when the step ends: to exactly the
  patterns of `rules` once the schedule is at their density. At other steps masks stay.
  Unless `regrow`, a masked weight stays masked, and `optax.apply_updates` leaves it at
  exactly zero: -x is its update, so nothing may scale updates after `prune`. A weight
  that an event masks keeps the moments it had, which then decay.

  Steps are counted as the inner optimizer is called: `MultiSteps(prune(...), k)` makes
  one of k gradients, `prune(MultiSteps(...))` one of each, and scores by it alone.

  Args:
    inner: Any optimizer; its own extra arguments pass through.
    rules: Which leaves are sparse, and their patterns at the final density.
    schedule: When masks are computed, and how dense; None for never: all stays until
      `with_masks` says otherwise.
    regrow: Straight-through gradients to latent weights instead of hard pruning.
    score: What is compared: "magnitude" |w|, or "saliency" |w * g| with the gradient of
      the step itself.
    rewind_to: Steps after which parameters are kept for `rewind`, 0 for those given to
      `init`. They are taken when the next step begins. None keeps none, at no cost.

  Returns:
    A transformation whose `update` needs `params`, the ones that `grads` were taken
    at through `sparse`. `init` raises a ValueError where a rule decides no leaf, its
    pattern does not fit one, or no leaf is sparse.

  Raises:
    ValueError: If `score` is no score or `rewind_to` is negative.
  """
  if score not in get_args(Score):
    raise ValueError(f"score={score!r}: choose 'magnitude' or 'saliency'")
  if rewind_to is not None and rewind_to < 0:
    raise ValueError(f"rewind_to={rewind_to}: a step from 0 on, or None")
  wrapped = optax.with_extra_args_support(inner)  # pyright: ignore[reportArgumentType]
  made = _Pruned(wrapped, tuple(rules), schedule, score, regrow, rewind_to)
  return optax.GradientTransformationExtraArgs(made.init, made.update)


def sparse(params: Any, opt_state: Any) -> Any:
  """`params` under the masks in `opt_state`: what forward passes and evaluation use.

  Gradients with respect to `params` through it are zero where a mask is False; `prune`
  wants those with respect to the result.

  Raises:
    ValueError: If `opt_state` has no `PruneState` or several, or masks of others.
  """
  masks = jax.tree.map(
    lambda mask, part: jax.tree.map(lambda _: None, part) if mask is None else mask,
    masks_of(opt_state),
    params,
    is_leaf=lambda x: x is None,
  )
  return masking.apply(masks, params)


def masks_of(opt_state: Any) -> Any:
  """The masks in `opt_state`: bool arrays, None where the parameters are dense.

  Raises:
    ValueError: If `opt_state` has no `PruneState` or several.
  """
  # What optax.masked and multi_transform hide from `prune` is dense.
  hidden = lambda x: isinstance(x, optax.MaskedNode)
  return jax.tree.map(
    lambda mask: None if hidden(mask) else mask, _only(opt_state).masks, is_leaf=hidden
  )


def with_masks(opt_state: Any, masks: Any) -> Any:
  """`opt_state` with other masks, as column combining finds them.

  Unless `prune` regrows, the next step sets the parameters to zero where these are
  False; where they are True again, weights start from what they are, zero as a rule.

  Args:
    opt_state: With one `PruneState` in it, however deep.
    masks: Like `masks_of(opt_state)`. Arrays of the host go to the devices of the ones
      that they replace.

  Raises:
    ValueError: If `masks` are not like those, or `opt_state` has no `PruneState` or
      several.
    TypeError: If a mask is not bool.
  """
  state = _only(opt_state)
  dense = lambda x: x is None or isinstance(x, optax.MaskedNode)
  old, structure = jax.tree.flatten(state.masks, is_leaf=dense)
  try:
    given = structure.flatten_up_to(masks)
  except ValueError as error:
    raise ValueError(f"masks are not like masks_of(opt_state): {error}") from error
  names = tree.names(structure.unflatten(range(len(old))))
  new = []
  for name, was, mask in zip(names, old, given):
    if dense(was) or mask is None:
      if not dense(was) or not dense(mask):
        raise ValueError(
          f"masks: {name} is {_kind(mask)}, that of the optimizer {_kind(was)}; the "
          "rules of prune say which leaves have masks"
        )
      new.append(was)
      continue
    if jnp.shape(mask) != was.shape:
      raise ValueError(
        f"masks: {name} has shape {jnp.shape(mask)}, that of the optimizer {was.shape}"
      )
    if jnp.asarray(mask).dtype != bool:
      raise TypeError(f"masks: {name} is {jnp.asarray(mask).dtype}; pass bool")
    # What jax was free to place stays so: a committed mask would compile steps anew.
    fixed = tree.is_concrete(was) and getattr(was, "committed", False)
    place = was.sharding if fixed else None
    new.append(jax.device_put(mask, place) if place else jnp.asarray(mask))
  return _replaced(opt_state, state._replace(masks=structure.unflatten(new)))


def rewind(
  optimizer: optax.GradientTransformation | optax.MultiSteps, opt_state: Any
) -> tuple[Any, Any]:
  """The kept parameters under the present masks, to be trained again.

  A round of iterative magnitude pruning is: train to an event of an `Iterative`
  schedule, rewind, go on. Masks and the step stay, so the schedule goes on and the next
  round takes its share; all else of the optimizer starts anew, moments and the count of
  a learning rate's schedule with them.

  Args:
    optimizer: The whole one that `opt_state` belongs to.
    opt_state: With a ticket: `prune(..., rewind_to=...)`.

  Returns:
    (params, opt_state), bit for bit the kept parameters where masks are True and zero
    elsewhere.

  Raises:
    ValueError: If there is no ticket, or, told outside jit only, it is not yet taken;
      if `prune` saw but a part of the parameters.
  """
  state = _only(opt_state)
  if state.ticket is None:
    raise ValueError("there is no ticket; use prune(..., rewind_to=0) or a later step")
  step, kept = state.ticket
  if tree.is_concrete(step) and (step < 0).any():
    raise ValueError(
      f"the ticket is not yet taken after {state.step} steps; train past rewind_to"
    )
  hidden = lambda x: isinstance(x, optax.MaskedNode)
  if any(map(hidden, jax.tree.leaves(kept, is_leaf=hidden))):
    raise ValueError(
      "prune saw a part of the parameters only; wrap multi_transform in prune, and not "
      "the other way round"
    )
  params = jax.tree.map(jnp.copy, masking.apply(state.masks, kept))
  fresh = optimizer.init(params)
  same = {"step": state.step, "masks": state.masks, "ticket": state.ticket}
  return params, _replaced(fresh, _only(fresh)._replace(**same))


def _all_stay(params: Any, rules: Sequence[Rule]) -> Any:
  """Masks of ones, with the shapes and shardings of the leaves that rules select."""
  structure = jax.tree.structure(params)
  # The patterns are tried on shapes: what does not fit is told before the first event.
  shapes = jax.eval_shape(lambda params: masking.masks(params, rules), params)
  found = []
  for (name, leaf), mask in zip(
    tree.named_leaves(params).items(), structure.flatten_up_to(shapes)
  ):
    if mask is not None and not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
      raise ValueError(f"{name} is {leaf.dtype}: only floats are trained and pruned")
    found.append(None if mask is None else jnp.ones_like(leaf, bool))
  if all(mask is None for mask in found):
    raise ValueError(f"no leaf is sparse under the rules {list(rules)}; train as usual")
  return structure.unflatten(found)


@dataclasses.dataclass(frozen=True)
class _Pruned:
  """The two functions of `prune`, whose arguments its fields are."""

  wrapped: optax.GradientTransformationExtraArgs
  rules: tuple[Rule, ...]
  schedule: Schedule | None
  score: Score
  regrow: bool
  rewind_to: int | None

  def init(self, params: Any) -> Any:
    ticket = None if self.rewind_to is None else _promise(self.rewind_to, params)
    masks = _all_stay(params, self.rules)
    zero = jnp.zeros((), jnp.int32)
    return PruneState(zero, masks, self.wrapped.init(params), ticket)

  def update(
    self, updates: Any, state: Any, params: Any = None, **extra: Any
  ) -> tuple[Any, Any]:
    if params is None:
      raise ValueError("prune needs params: optimizer.update(grads, state, params)")
    step, masks, before, ticket = state
    if ticket is not None and self.rewind_to:
      ticket = _take(ticket, step, self.rewind_to, params)
    grads, seen, at = updates, updates, params
    if not self.regrow:
      seen, at = masking.apply(masks, grads), masking.apply(masks, params)
    # optax raises floats to integer powers, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
      updates, inside = self.wrapped.update(seen, before, at, **extra)
    masks = self._masks(step, masks, params, updates, grads)
    if not self.regrow:
      updates = _to_zero(masks, updates, params)
    step = jnp.asarray(optax.safe_increment(step))
    return updates, PruneState(step, masks, inside, ticket)

  def _masks(self, step: jax.Array, masks: Any, *trees: Any) -> Any:
    """`masks`, anew in an event; `trees` are parameters, updates and gradients."""
    schedule = self.schedule
    if schedule is None:
      return masks

    def anew() -> Any:
      at = lambda p: p if p is None else p.at(schedule(step, p.density))
      rules = [Rule(rule.leaf, at(rule.pattern)) for rule in self.rules]
      params, updates, grads = trees
      with jax.numpy_dtype_promotion("standard"):
        params = optax.apply_updates(params, updates)
      found = masking.masks(
        params, rules, scores=_map(self._scores, masks, params, grads)
      )
      return found if self.regrow else jax.tree.map(jnp.logical_and, found, masks)

    # Other steps pay for nothing here but the branch.
    return jax.lax.cond(schedule.is_event(step), anew, lambda: masks)

  def _scores(self, mask: Any, w: jax.Array, g: jax.Array) -> jax.Array:
    """What patterns compare, lowest where a mask is False unless it may regrow."""
    if mask is None:
      return w
    if self.score == "magnitude":
      scores = patterns.magnitude(w)
    else:
      scores = patterns.saliency(w, g)
    lowest = jnp.array(-jnp.inf, scores.dtype)
    return scores if self.regrow else jnp.where(mask, scores, lowest)


def _to_zero(masks: Any, updates: Any, params: Any) -> Any:
  """`updates`, and where a mask is False those that add up to exactly zero."""

  def of(mask: Any, u: jax.Array, w: jax.Array) -> jax.Array:
    if mask is None:
      return u
    with jax.numpy_dtype_promotion("standard"):  # a narrow u cannot hold -w
      return jnp.where(mask, u, -w)

  return _map(of, masks, updates, params)


def _map(fn: Any, masks: Any, *trees: Any) -> Any:
  """A tree like the first of `trees`: `fn` of the masks, None included, and leaves."""
  leaves, structure = jax.tree.flatten(trees[0])
  parts = [structure.flatten_up_to(x) for x in (masks, *trees[1:])]
  return structure.unflatten(map(fn, parts[0], leaves, *parts[1:]))


def _promise(rewind_to: int, params: Any) -> Ticket:
  """Of `params`, not yet taken unless they are the ones to keep."""
  taken = jnp.asarray(-1 if rewind_to else 0, jnp.int32)
  # A copy, as a step may be given the parameters and the state to consume.
  return Ticket(taken, jax.tree.map(jnp.copy, params))


def _take(ticket: Ticket, step: jax.Array, at: int, params: Any) -> Ticket:
  """`params` in place of those of the ticket if `step` is the one to keep."""
  now = step == at
  pick = lambda new, old: jnp.where(now, new, old)
  return Ticket(pick(step, ticket.step), jax.tree.map(pick, params, ticket.params))


def _is_prune(x: Any) -> bool:
  return isinstance(x, PruneState)


def _all(opt_state: Any) -> Iterator[PruneState]:
  for state in filter(_is_prune, jax.tree.leaves(opt_state, is_leaf=_is_prune)):
    yield state
    yield from _all(state.inner)


def _only(opt_state: Any) -> PruneState:
  found = list(_all(opt_state))
  if len(found) != 1:
    raise ValueError(
      f"the optimizer state has {len(found)} PruneStates, and there must be one: wrap "
      "the optimizer in prune once"
    )
  return found[0]


def _replaced(opt_state: Any, state: PruneState) -> Any:
  """`opt_state` with `state` in place of the one it has."""
  return jax.tree.map(
    lambda x: state if _is_prune(x) else x, opt_state, is_leaf=_is_prune
  )


def _kind(mask: Any) -> str:
  return "None" if mask is None or isinstance(mask, optax.MaskedNode) else "a mask"
