"""The optimizer of a run: a warm-up and a decay, AdamW or sgd, and what methods add."""

import math

import jax.numpy as jnp
import optax

from jaxcodesign.training.config import TrainConfig


def schedule(config: TrainConfig, steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of the step, `steps` long."""
  peak, warmup = config.learning_rate, math.floor(config.warmup * steps)
  if config.decay == "cosine":
    return optax.warmup_cosine_decay_schedule(
      init_value=0.0 if config.warmup else peak,
      peak_value=peak,
      warmup_steps=warmup,
      decay_steps=steps,
    )
  after: optax.Schedule = optax.constant_schedule(peak)
  if config.decay == "linear":
    after = optax.linear_schedule(peak, 0.0, max(1, steps - warmup))
  elif config.decay == "rsqrt":
    start = float(max(1, warmup))
    after = lambda step: peak * jnp.sqrt(start / (start + step))
  if not warmup:
    return after
  rise = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([rise, after], [warmup])


def optimizer_of(config: TrainConfig, steps: int) -> optax.GradientTransformation:
  """The optimizer of a run of so many steps, as its methods wrap it."""
  rate = schedule(config, steps)
  if config.optimizer == "adamw":
    plain = optax.adamw(rate, b2=config.b2, weight_decay=config.weight_decay)
  else:
    plain = optax.chain(
      optax.add_decayed_weights(config.weight_decay), optax.sgd(rate, momentum=0.9)
    )
  if config.clip:
    plain = optax.chain(optax.clip_by_global_norm(config.clip), plain)
  for method in config.every_method():
    plain = method.wrap(plain, steps)
  return plain
