"""Trade-off between accuracy and robustness (TRADES)."""

import jax.numpy as jnp

from jax_robust_kd.core import LossOutput, Method
from jax_robust_kd.losses import cross_entropy, kl_divergence


def trades(beta: float = 6.0) -> Method:
  """Builds TRADES: CE(S(x), y) + beta KL(S(x) || S(x')).

  x' maximizes KL(S(x) || S(x')). As in the authors' code the gradient of the
  outer problem flows through both sides of the divergence. The running averages
  see x, then x'; there x is passed once more, for the divergence, so that they
  see x, x', x.

  Args:
    beta: weight of the robust term, >= 0; 1 / lambda of the paper.

  Returns:
    The method, without teacher.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.trades(beta=6.0).teachers
    ()

  References:
    Zhang et al., ICML 2019, arXiv 1901.08573. Loss: confirmed by the official
    code.
  """

  def perturb(rng, ctx, batch, maximize):
    clean = ctx.student(batch.image).logits

    def loss_fn(image):
      return kl_divergence(ctx.student(image).logits, clean)

    return maximize(rng, loss_fn, batch.image).adv

  def loss(ctx, batch, adv):
    on_clean = ctx.student(batch.image)
    on_adv = ctx.student(adv, batch_stats=on_clean.batch_stats)
    clean = jnp.mean(cross_entropy(on_clean.logits, batch.target))
    robust = jnp.mean(kl_divergence(on_adv.logits, on_clean.logits))
    metrics = {'ce_clean': clean, 'kl_robust': robust}
    return LossOutput(clean + beta * robust, on_adv.batch_stats, metrics)

  return Method(loss, perturb, teachers=())
