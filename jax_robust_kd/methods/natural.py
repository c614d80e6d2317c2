"""Standard training, without attack and without teacher."""

import jax.numpy as jnp

from jax_robust_kd.core import LossOutput, Method
from jax_robust_kd.losses import cross_entropy


def natural() -> Method:
  """Builds standard training: min CE(S(x), y).

  It makes the accurate, fragile teacher that some methods need beside the
  robust one.

  Returns:
    The method, without teacher.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.natural().perturb.__name__
    'no_attack'
  """

  def loss(ctx, batch, adv):
    del adv
    out = ctx.student(batch.image)
    value = jnp.mean(cross_entropy(out.logits, batch.target))
    return LossOutput(value, out.batch_stats, {})

  return Method(loss, teachers=())
