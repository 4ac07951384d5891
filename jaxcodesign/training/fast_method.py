"""FAST as a method: precisions that move inside the step, and what they were."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcodesign.programs import fast
from jaxcodesign.programs.fast import Fast
from jaxcodesign.programs.fast_plan import Plan
from jaxcodesign.training.method import At, Method, Setting

if TYPE_CHECKING:
  from matplotlib.figure import Figure

BUCKETS = 100  # of a run, in each of which telemetry is summed


@dataclasses.dataclass(frozen=True)
class FastMethod(Method):
  """Block floating point whose mantissas are chosen per tensor while training runs.

  It keeps float32 [BUCKETS, products, 6]: what `fast.quantize` told, summed over the
  steps of each share of the run.

  Attributes:
    scheme: Schedule and formats.
    plan: Of the products; known once it is prepared.
    steps: In the whole run, likewise.
    parts: Of a batch, likewise.
  """

  scheme: Fast
  plan: Plan | None = None
  steps: int = 0
  parts: int = 1

  def prepared(self, setting: Setting) -> FastMethod:
    plan = fast.plan(setting.loss, self.scheme)(setting.params, setting.batch)
    return FastMethod(self.scheme, plan, setting.steps, setting.parts)

  def init(self) -> jax.Array:
    return jnp.zeros((BUCKETS, *self._plan.probe().shape))

  def probe(self) -> jax.Array:
    return self._plan.probe()

  def change(self, loss: Callable[..., Any], at: At, probe: Any) -> Callable[..., Any]:
    noisy = at.key if self.scheme.stochastic else None
    return fast.quantize(
      loss, self.scheme, progress=at.progress, key=noisy, probe=probe
    )

  def keep(self, kept: jax.Array, told: jax.Array, at: At) -> jax.Array:
    # A product of int32 would overflow in long runs: whole steps of a bucket instead.
    count = min(BUCKETS, self.steps)
    edges = [-(-i * self.steps // count) for i in range(1, count)]
    bucket = jnp.searchsorted(jnp.asarray(edges, jnp.int32), at.step, side="right")
    return kept.at[bucket].add(told)

  def told(self, kept: Any, step: int) -> dict[str, float]:
    passes, share = self.passes(kept, step)
    return {"passes": passes, "passes_share": share}

  def pictures(self, kept: Any, step: int) -> dict[str, Figure]:
    from jaxcodesign.figures import training as figures

    bits = self.ran_at(kept, step)[:, :, :3]
    return {"precision": figures.precision_map(bits, self._plan.names, self.steps)}

  def passes(self, kept: Any, step: int) -> tuple[float, float]:
    """fMAC passes of `step` steps, and their share of fixed 4-bit precision."""
    total = jnp.sum(jnp.asarray(jax.device_get(kept)), axis=0)
    share = self._plan.share(total, steps=step * self.parts)
    return float(self._plan.passes(total)), float(share)

  def ran_at(self, kept: Any, step: int) -> np.ndarray:
    """What products ran at in each share of a run: [BUCKETS, L, 6].

    The columns are those of `fast.COLUMNS`, means over executions; NaN where no step
    was made.
    """
    whole = np.array(bucket_steps(self.steps))
    made = np.clip(step - (np.cumsum(whole) - whole), 0, whole)
    runs = made[:, None] * self._plan.counts[None] * self.parts
    return np.asarray(jax.device_get(kept)) / np.where(runs, runs, np.nan)[..., None]

  @property
  def _plan(self) -> Plan:
    if self.plan is None:
      raise ValueError("FAST has no plan before it is prepared: see Method.prepared")
    return self.plan


def bucket_steps(steps: int) -> list[int]:
  """How many steps of a run of `steps` each bucket of telemetry has, [BUCKETS]."""
  counts = [0] * BUCKETS
  for i in range(steps):
    counts[i * min(BUCKETS, steps) // steps] += 1
  return counts
