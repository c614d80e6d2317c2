"""AdaAD, adaptive adversarial distillation. Huang et al., CVPR 2023."""

from jax_robust_kd.core import Method
from jax_robust_kd.methods.inner import mismatch
from jax_robust_kd.methods.outer import matching


def adaad(alpha: float = 1.0) -> Method:
  """Builds AdaAD: alpha KL(T(x')||S(x')) + (1 - alpha) KL(T(x)||S(x)).

  x' maximizes KL(T(x') || S(x')), the gradient flowing through both networks.
  The official code passes the clean images through the student first, even at
  alpha = 1, which blends their statistics into the running averages; here they
  come second, and alpha = 1 leaves them out. On CIFAR-10 it averages the
  divergence over classes too (not on CIFAR-100); here it is the true KL.

  Args:
    alpha: weight of the adversarial term; 1 is the authors' default.
  """

  def loss(ctx, batch, adv):
    return matching(ctx, batch, adv, ctx.teacher(adv).logits, alpha)

  return Method(loss, mismatch)
