"""FunMatch, a good teacher is patient and consistent.

Beyer, Zhai, Royer, Markeeva, Anil and Kolesnikov, CVPR 2022, arXiv 2106.05237.
"""

import jax.numpy as jnp

from jax_robust_kd.core import LossOutput, Method
from jax_robust_kd.losses import kl_divergence


def funmatch(temperature: float = 1.0) -> Method:
  """Builds FunMatch: t^2 KL(T_t(x) || S_t(x)) on the very same mixed view x.

  No label, no attack. The loss is `kd(alpha=1)`; the method is its recipe: one
  strong view for both networks, always mixed, and a very long schedule, all of
  which `configs/funmatch.py` sets.

  Args:
    temperature: t; 1 on ImageNet, 1 to 10 on small data sets, longer schedules
      wanting lower ones.
  """

  def loss(ctx, batch, adv):
    del adv
    target = ctx.teacher(batch.image).logits
    out = ctx.student(batch.image)
    kl = jnp.mean(kl_divergence(out.logits, target, temperature))
    return LossOutput(temperature**2 * kl, out.batch_stats, {'kl': kl})

  return Method(loss)
