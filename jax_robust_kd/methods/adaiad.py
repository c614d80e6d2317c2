"""AdaIAD: AdaAD with introspection. Huang et al., CVPR 2023."""

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
  """Builds AdaIAD, `scale` times

    alpha [t^2 KL_t(T(x') || S(x')) + (1 - A) KL(S(x) || S(x'))]
    + (1 - alpha) CE(S(x), y),  A = T_y(x')^beta

  x' maximizes KL(T(x') || S(x')), unsoftened, through both networks. Terms and
  defaults are those of the official code, which softens the teacher's term
  alone and leaves A out of it, and whose running averages see x, x', x; here
  x', x (`iad_terms`).

  Args:
    alpha: weight of the distillation; the label gets the rest.
    beta: exponent of the trust A in the teacher.
    begin: share of the training with A = 1.
    temperature: t.
    weigh_teacher: whether A multiplies the teacher's term, as it does in the
      idea of IAD.
    scale: factor of the whole loss. The official code has none, unlike that of
      AdaAD: its divergences are true ones on every data set.
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
