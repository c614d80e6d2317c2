"""Standard training, without attack and without teacher."""

import jax.numpy as jnp

from jax_robust_kd.core import LossOutput, Method
from jax_robust_kd.losses import cross_entropy


def natural() -> Method:
  """Builds standard training: min CE(S(x), y). No teacher, no attack.

  It makes the accurate, fragile teacher that some methods ask beside the robust
  one.
  """

  def loss(ctx, batch, adv):
    del adv
    out = ctx.student(batch.image)
    value = jnp.mean(cross_entropy(out.logits, batch.target))
    return LossOutput(value, out.batch_stats, {})

  return Method(loss, teachers=())
