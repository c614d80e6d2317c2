"""Function matching with a patient and consistent teacher (FunMatch)."""

import jax.numpy as jnp

from jax_robust_kd.core import LossOutput, Method
from jax_robust_kd.losses import kl_divergence


def funmatch(temperature: float = 1.0) -> Method:
  """Builds FunMatch: t^2 KL_t(T(x) || S(x)) on the same mixed view x.

  No label and no attack. The loss is `kd(alpha=1)`; the method is its recipe:
  one strong view for both networks, always mixed, and a very long schedule, all
  of which `configs/funmatch.py` sets.

  Args:
    temperature: t, > 0; 1 on ImageNet, 1 to 10 on small data sets, lower for
      longer schedules.

  Returns:
    The method, with one teacher.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.funmatch(temperature=2.0).perturb.__name__
    'no_attack'

  References:
    Beyer, Zhai, Royer, Markeeva, Anil and Kolesnikov, CVPR 2022, arXiv
    2106.05237. Loss: confirmed by the official code.
  """

  def loss(ctx, batch, adv):
    del adv
    target = ctx.teacher(batch.image).logits
    out = ctx.student(batch.image)
    kl = jnp.mean(kl_divergence(out.logits, target, temperature))
    return LossOutput(temperature**2 * kl, out.batch_stats, {'kl': kl})

  return Method(loss)
