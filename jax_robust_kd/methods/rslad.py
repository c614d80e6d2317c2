"""RSLAD, robust soft label distillation. Zi et al., ICCV 2021, 2108.07969."""

from jax_robust_kd.core import Method
from jax_robust_kd.methods.inner import clean_target
from jax_robust_kd.methods.outer import matching


def rslad(alpha: float = 5 / 6) -> Method:
  """Builds RSLAD: alpha KL(T(x) || S(x')) + (1 - alpha) KL(T(x) || S(x)).

  x' maximizes KL(T(x) || S(x')). No label is used. The official code averages
  the divergence over classes too (x 10 on CIFAR-100); here it is the true KL,
  so the loss is K times larger than there at the same weight decay. Its
  log(p + 1e-5) of the teacher adds a constant, which is left out.

  Args:
    alpha: weight of the adversarial term.
  """

  def loss(ctx, batch, adv):
    target = ctx.teacher(batch.image).logits
    return matching(ctx, batch, adv, target, alpha)

  return Method(loss, clean_target)
