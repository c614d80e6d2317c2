"""PGD adversarial training (PGD-AT)."""

import jax.numpy as jnp

from jax_robust_kd.core import LossOutput, Method
from jax_robust_kd.losses import cross_entropy
from jax_robust_kd.methods.inner_problems import cross_entropy_label


def pgd_at() -> Method:
  """Builds PGD-AT: min max CE(S(x'), y).

  Returns:
    The method, without teacher.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.pgd_at().perturb.__name__
    'cross_entropy_label'

  References:
    Madry et al., ICLR 2018, arXiv 1706.06083. Loss: confirmed by official
    codes.
  """

  def loss(ctx, batch, adv):
    out = ctx.student(adv)
    value = jnp.mean(cross_entropy(out.logits, batch.target))
    return LossOutput(value, out.batch_stats, {})

  return Method(loss, cross_entropy_label, teachers=())
