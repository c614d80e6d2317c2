"""The outer loss that several methods share."""

import jax.numpy as jnp

from jax_robust_kd.core import Array, Batch, Context, LossOutput
from jax_robust_kd.losses import kl_divergence


def matching(
  ctx: Context, batch: Batch, adv: Array, target: Array, alpha: float
) -> LossOutput:
  """alpha KL(target || S(x')) + (1 - alpha) KL(T(x) || S(x)).

  The running averages see x', then x. With alpha = 1 the clean images are not
  passed at all, so that the averages are those of the adversarial images.

  Args:
    ctx: student and teacher.
    batch: the augmented images x.
    adv: [B, H, W, C] the images x'.
    target: [B, K] the teacher's logits that S(x') is matched with.
    alpha: weight of the adversarial term, in [0, 1].
  """
  on_adv = ctx.student(adv)
  robust = jnp.mean(kl_divergence(on_adv.logits, target))
  if alpha == 1.0:
    return LossOutput(robust, on_adv.batch_stats, {'kl_robust': robust})
  on_clean = ctx.student(batch.image, batch_stats=on_adv.batch_stats)
  clean_target = ctx.teacher(batch.image).logits
  clean = jnp.mean(kl_divergence(on_clean.logits, clean_target))
  value = alpha * robust + (1 - alpha) * clean
  metrics = {'kl_robust': robust, 'kl_clean': clean}
  return LossOutput(value, on_clean.batch_stats, metrics)
