"""Distillation from a robust and a clean teacher (AKD2).

The paper, Robust Overfitting May Be Mitigated by Properly Learned Smoothening,
calls it `KD`, with weight averaging (`optimizer.swa_start`); AKD2 is IAD's name
for it.
"""

import jax.numpy as jnp

from jax_robust_kd.core import CLEAN, ROBUST, LossOutput, Method
from jax_robust_kd.losses import cross_entropy, kl_divergence
from jax_robust_kd.methods.inner_problems import cross_entropy_label


def akd2(
  robust_weight: float = 0.6,
  clean_weight: float = 0.1,
  temperature: float = 2.0,
) -> Method:
  """Builds AKD2, which distills from a robust and a clean teacher at x'.

  With C the clean teacher the loss is

    w_r t^2 KL_t(T(x') || S(x')) + w_c t^2 KL_t(C(x') || S(x'))
    + (1 - w_r - w_c) CE(S(x'), y).

  x' maximizes CE(S(x'), y). The official code has cross-entropies with the soft
  labels, which differ from the divergences by constants. IAD compares with
  w_r = 0.5, w_c = 0.25, t = 1.

  Args:
    robust_weight: w_r, in [0, 1].
    clean_weight: w_c, in [0, 1 - w_r]; the label gets the rest.
    temperature: t, > 0.

  Returns:
    The method, with a robust and a clean teacher.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.akd2(robust_weight=0.5, clean_weight=0.25).teachers
    ('robust', 'clean')

  References:
    Chen et al., ICLR 2021. Loss: confirmed by the official code.
  """

  def loss(ctx, batch, adv):
    out = ctx.student(adv)
    robust, clean = (
      temperature**2
      * kl_divergence(out.logits, ctx.teachers[name](adv).logits, temperature)
      for name in (ROBUST, CLEAN)
    )
    hard = cross_entropy(out.logits, batch.target)
    value = jnp.mean(
      robust_weight * robust
      + clean_weight * clean
      + (1 - robust_weight - clean_weight) * hard
    )
    metrics = {
      'kl_robust': jnp.mean(robust),
      'kl_clean_teacher': jnp.mean(clean),
      'ce': jnp.mean(hard),
    }
    return LossOutput(value, out.batch_stats, metrics)

  return Method(loss, cross_entropy_label, teachers=(ROBUST, CLEAN))
