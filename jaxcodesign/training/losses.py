"""What training descends and what it reports: means over a batch of logits."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def cross_entropy(
  logits: jax.Array, labels: jax.Array, label_smoothing: jax.typing.ArrayLike = 0.0
) -> jax.Array:
  """Returns the mean cross entropy against smoothed labels.

  Args:
    logits: [..., classes] floats.
    labels: [...] integers in [0, classes); others give NaN, never a wrong number.
    label_smoothing: Mass in [0, 1] that the target spreads evenly over all classes,
      the true one included. May be traced.

  Returns:
    Scalar, in nats.

  Raises:
    ValueError: if labels are not integers of the leading shape of the logits.
  """
  _check(logits, labels)
  log_p = jax.nn.log_softmax(_wide(logits))
  # A negative index would count from the end: move it beyond the end instead.
  index = jnp.where(labels < 0, logits.shape[-1], labels)[..., None]
  true = jnp.take_along_axis(
    log_p, index, axis=-1, mode="fill", fill_value=jnp.nan
  ).mean()
  return -(true + label_smoothing * (log_p.mean() - true))


def next_token_loss(
  logits: jax.Array, tokens: jax.Array, weight: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """How well each token was foreseen from those before it.

  Args:
    logits: [B, T, V] of `apply(params, tokens[:, :-1])`.
    tokens: [B, T + 1] integers in [0, V); others make the loss NaN.
    weight: [B], 0 where a sequence does not count; None counts all.

  Returns:
    Mean cross entropy in nats of the tokens that count, how many of them the
    largest logit is (ties go to the earlier one), and how many there are: float32
    scalars. All are 0 where nothing counts.

  Raises:
    ValueError: If the shapes do not fit.
  """
  b, needed = logits.shape[0], (logits.shape[0], logits.shape[1] + 1)
  if tokens.shape != needed:
    raise ValueError(
      f"logits {logits.shape} need tokens {needed}, not {tokens.shape}: "
      "apply(params, tokens[:, :-1])"
    )
  weight = jnp.ones(b) if weight is None else weight.astype(jnp.float32)
  if weight.shape != (b,):
    raise ValueError(f"weight must be [{b}], one a sequence, not {weight.shape}")
  targets = tokens[:, 1:]
  each = jax.vmap(cross_entropy)(logits, targets)
  hits = jnp.sum(logits.argmax(-1).astype(targets.dtype) == targets, axis=-1)
  sequences = jnp.sum(weight)
  return (
    jnp.sum(each * weight) / jnp.maximum(sequences, 1),
    jnp.sum(hits.astype(jnp.float32) * weight),
    sequences * targets.shape[1],
  )


def distillation(
  logits: jax.Array, teacher_logits: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """Returns T^2 times the mean divergence KL(teacher || student) of softened outputs.

  Both are softmax(logits / T). The factor T^2 keeps the gradient as large as that of a
  loss on hard labels, whatever the temperature; it goes to the difference of centred
  logits as T grows. Zero where both have the same logits up to a constant.

  Args:
    logits: [..., classes] of the student.
    teacher_logits: [..., classes] of the teacher; no gradient flows into them.
    temperature: T > 0. May be traced.

  Returns:
    Scalar, in nats.

  Raises:
    ValueError: if the two differ in shape, as where the teacher has other classes.

  Reference: Hinton, Vinyals, Dean. "Distilling the Knowledge in a Neural Network",
  2015.
  """
  if logits.shape != teacher_logits.shape:
    raise ValueError(
      f"the student's logits have shape {logits.shape}, the teacher's "
      f"{teacher_logits.shape}: a teacher for the same classes is needed"
    )
  told = jax.nn.log_softmax(_wide(jax.lax.stop_gradient(teacher_logits)) / temperature)
  learned = jax.nn.log_softmax(_wide(logits) / temperature)
  divergence = jnp.sum(jnp.exp(told) * (told - learned), axis=-1)
  return temperature**2 * jnp.mean(divergence)


def feature_matching(
  features: Sequence[jax.Array], teacher_features: Sequence[jax.Array]
) -> jax.Array:
  """Returns the mean squared distance of features, each example's of unit length.

  Scale-free, so that every layer weighs the same; 0 where all point the same way, 2
  where they are orthogonal.

  Args:
    features: Arrays [B, ...] of the student.
    teacher_features: As many of the same shapes; no gradient flows into them.

  Raises:
    ValueError: if there is none, or their number or shapes differ.

  Reference: Romero et al., "FitNets", ICLR 2015, whose hint this is; unit length as in
  Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017.
  """
  shapes = [[x.shape for x in side] for side in (features, teacher_features)]
  if not shapes[0] or shapes[0] != shapes[1]:
    raise ValueError(
      f"the student has features of shapes {shapes[0]}, the teacher {shapes[1]}: they "
      "must be equal; distill from logits alone where the architectures differ"
    )
  distances = [
    jnp.sum((_unit(x) - jax.lax.stop_gradient(_unit(y))) ** 2, axis=-1)
    for x, y in zip(features, teacher_features)
  ]
  return jnp.mean(jnp.stack(distances))


def _unit(x: jax.Array) -> jax.Array:
  """[B, F] of Euclidean length 1, or 0 where all values are."""
  flat = _wide(x).reshape(x.shape[0], -1)
  # A floor, for the gradient at zero: its power of -3/2 must not overflow.
  return flat * jax.lax.rsqrt(jnp.sum(flat**2, axis=-1, keepdims=True) + 1e-12)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns the share of rows whose largest logit is the label's, a float32 scalar.

  Args:
    logits: [..., classes] floats. Ties go to the earlier class.
    labels: [...] integers.

  Raises:
    ValueError: if labels are not integers of the leading shape of the logits.
  """
  _check(logits, labels)
  return jnp.mean(logits.argmax(-1).astype(labels.dtype) == labels)


def _wide(x: jax.Array) -> jax.Array:
  """In float32 or wider: sums over classes and means over a batch drown in less."""
  return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _check(logits: jax.Array, labels: jax.Array) -> None:
  if labels.shape != logits.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f"logits {logits.shape} need integer labels {logits.shape[:-1]}, "
      f"not {labels.dtype} {labels.shape}"
    )
