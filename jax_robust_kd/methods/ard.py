"""Adversarially robust distillation (ARD).

The official code
- averages the divergence over classes too: `scale` = 1 / K here;
- attacks the student in training mode, so that ten attack passes a step move
  the running averages: here none does; train_attack.bn='batch' is the nearest;
- starts from uniform noise that is cut to [0, 1] only after the first step:
  here the start is inside;
- passes x in training mode even when alpha is 1 and its loss unused: here it is
  not passed then, so the averages are those of x'. With alpha < 1 they see x',
  then x, as there;
- lets the learning rate fall once, at epoch 100, since its second drop takes a
  tenth of the first rate again: `configs/ard.py` has both, and departs.
"""

import jax.numpy as jnp

from jax_robust_kd.core import LossOutput, Method
from jax_robust_kd.losses import cross_entropy, kl_divergence
from jax_robust_kd.methods.inner_problems import cross_entropy_label


def ard(
  alpha: float = 1.0, temperature: float = 30.0, scale: float = 1.0
) -> Method:
  """Builds ARD, which matches the student at x' to the teacher at x.

  The loss is `alpha scale t^2 KL_t(T(x) || S(x')) + (1 - alpha) CE(S(x), y)`.
  x' maximizes CE(S(x'), y).

  Args:
    alpha: weight of the teacher, in [0, 1]; the label on clean images gets the
      rest.
    temperature: t, > 0; softens both networks.
    scale: factor of the divergence beside t^2, > 0, for other reductions.

  Returns:
    The method, with one robust teacher.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.ard(temperature=30.0).perturb.__name__
    'cross_entropy_label'

  References:
    Goldblum, Fowl, Feizi and Goldstein, AAAI 2020, arXiv 1905.09747. Loss:
    confirmed by the official code.
  """
  weight = alpha * scale * temperature**2

  def loss(ctx, batch, adv):
    target = ctx.teacher(batch.image).logits
    on_adv = ctx.student(adv)
    soft = jnp.mean(kl_divergence(on_adv.logits, target, temperature))
    metrics = {'kl_robust': soft}
    if alpha == 1.0:
      return LossOutput(weight * soft, on_adv.batch_stats, metrics)
    on_clean = ctx.student(batch.image, batch_stats=on_adv.batch_stats)
    hard = jnp.mean(cross_entropy(on_clean.logits, batch.target))
    value = weight * soft + (1 - alpha) * hard
    metrics = {**metrics, 'ce_clean': hard}
    return LossOutput(value, on_clean.batch_stats, metrics)

  return Method(loss, cross_entropy_label)
