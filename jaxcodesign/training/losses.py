"""What training descends and what it reports: means over a batch of logits."""

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
  log_p = jax.nn.log_softmax(logits)
  # A negative index would count from the end: move it beyond the end instead.
  index = jnp.where(labels < 0, logits.shape[-1], labels)[..., None]
  true = jnp.take_along_axis(
    log_p, index, axis=-1, mode="fill", fill_value=jnp.nan
  ).mean()
  return -(true + label_smoothing * (log_p.mean() - true))


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


def _check(logits: jax.Array, labels: jax.Array) -> None:
  if labels.shape != logits.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f"logits {logits.shape} need integer labels {logits.shape[:-1]}, "
      f"not {labels.dtype} {labels.shape}"
    )
