"""Misclassification-aware adversarial training (MART)."""

import jax
import jax.numpy as jnp

from jax_robust_kd.core import LossOutput, Method
from jax_robust_kd.losses import cross_entropy, kl_divergence
from jax_robust_kd.methods.inner_problems import cross_entropy_label

_ABOVE_ONE = 1.0001  # of the official code: the logarithm stays above -9.3


def mart(beta: float = 5.0) -> Method:
  """Builds MART: BCE(S(x'), y) + beta KL(S(x) || S(x')) (1 - S_y(x)).

  BCE = -log S_y(x') - log(1.0001 - max_{k != y} S_k(x')), and x' maximizes
  CE(S(x'), y). As in the official code the gradient flows through S(x) and
  through the weight 1 - S_y(x) too, and the running averages see x, then x'.
  Logarithms are of the softmax itself, where the code adds 1e-12. The label y
  is argmax(target).

  Args:
    beta: weight of the robust term, >= 0, the paper's lambda; 6 is the default
      of the official loss function, 5 that of the paper and its ResNet-18.

  Returns:
    The method, without teacher.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.mart(beta=5.0).teachers
    ()

  References:
    Wang, Zou, Yi, Bailey, Ma and Gu, ICLR 2020, OpenReview rklOg6EFwS. Loss:
    confirmed by the official code.
  """

  def loss(ctx, batch, adv):
    on_clean = ctx.student(batch.image)
    on_adv = ctx.student(adv, batch_stats=on_clean.batch_stats)
    classes = on_adv.logits.shape[-1]
    label = jax.nn.one_hot(batch.target.argmax(axis=-1), classes)
    wrong = jnp.max((1 - label) * jax.nn.softmax(on_adv.logits), axis=-1)
    bce = cross_entropy(on_adv.logits, label) - jnp.log(_ABOVE_ONE - wrong)
    missed = 1 - jnp.sum(label * jax.nn.softmax(on_clean.logits), axis=-1)
    robust = missed * kl_divergence(on_adv.logits, on_clean.logits)
    value = jnp.mean(bce + beta * robust)
    metrics = {'bce': jnp.mean(bce), 'kl_weighted': jnp.mean(robust)}
    return LossOutput(value, on_adv.batch_stats, metrics)

  return Method(loss, cross_entropy_label, teachers=())
