"""Adaptive introspective adversarial distillation (AdaIAD)."""

import jax.numpy as jnp

from jax_robust_kd.core import LossOutput, Method
from jax_robust_kd.losses import cross_entropy
from jax_robust_kd.methods.inner_problems import kl_to_teacher_adv
from jax_robust_kd.methods.outer_losses import iad_terms


def adaiad(
  alpha: float = 1.0,
  beta: float = 0.1,
  begin: float = 0.3,
  temperature: float = 30.0,
  weigh_teacher: bool = False,
  scale: float = 1.0,
) -> Method:
  """Builds AdaIAD, which is AdaAD with IAD's trust in the teacher.

  With A = T_y(x')^beta the loss is `scale` times

    alpha [t^2 KL_t(T(x') || S(x')) + (1 - A) KL(S(x) || S(x'))]
    + (1 - alpha) CE(S(x), y).

  x' maximizes KL(T(x') || S(x')) at temperature 1, through both networks. The
  official code softens the teacher's term alone and leaves A out of it. Its
  running averages see x, x', x; here x', x.

  Args:
    alpha: weight of the distillation, in [0, 1]; the label gets the rest.
    beta: exponent of the trust A, >= 0.
    begin: share of the training with A = 1, in [0, 1].
    temperature: t, > 0.
    weigh_teacher: whether A multiplies the teacher's term, as in IAD's idea.
    scale: factor of the whole loss, > 0; the official code has none.

  Returns:
    The method, with one robust teacher.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.adaiad(temperature=30.0).teachers
    ('robust',)

  References:
    Huang et al., CVPR 2023. Loss: confirmed by the official code.
  """

  def loss(ctx, batch, adv):
    target = ctx.teacher(adv).logits
    value, _, on_clean, metrics = iad_terms(
      ctx, batch, adv, target, beta=beta, begin=begin,
      temperature=temperature, weigh_teacher=weigh_teacher,
    )  # fmt: skip
    hard = cross_entropy(on_clean.logits, batch.target)
    value = scale * jnp.mean(alpha * value + (1 - alpha) * hard)
    metrics['ce'] = jnp.mean(hard)
    return LossOutput(value, on_clean.batch_stats, metrics)

  return Method(loss, kl_to_teacher_adv)
