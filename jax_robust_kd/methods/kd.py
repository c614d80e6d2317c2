"""Knowledge distillation (KD)."""

import jax.numpy as jnp

from jax_robust_kd.core import LossOutput, Method
from jax_robust_kd.losses import cross_entropy, kl_divergence


def kd(alpha: float = 0.9, temperature: float = 4.0) -> Method:
  """Builds KD: alpha t^2 KL_t(T(x) || S(x)) + (1 - alpha) CE(S(x), y).

  No attack while training. The factor t^2 keeps the gradient of the soft term
  at the scale of the hard one.

  Args:
    alpha: weight of the teacher's output, in [0, 1]; the label gets the rest.
    temperature: t, > 0; softens both outputs.

  Returns:
    The method, with one teacher.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.kd(alpha=0.9, temperature=4.0).perturb.__name__
    'no_attack'

  References:
    Hinton et al. 2015, arXiv 1503.02531. Loss: confirmed by the paper.
  """

  def loss(ctx, batch, adv):
    del adv
    target = ctx.teacher(batch.image).logits
    out = ctx.student(batch.image)
    soft = temperature**2 * kl_divergence(out.logits, target, temperature)
    hard = cross_entropy(out.logits, batch.target)
    value = jnp.mean(alpha * soft + (1 - alpha) * hard)
    metrics = {'kl': jnp.mean(soft), 'ce': jnp.mean(hard)}
    return LossOutput(value, out.batch_stats, metrics)

  return Method(loss)
