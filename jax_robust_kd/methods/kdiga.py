"""Distillation with input gradient alignment (KDIGA).

The abstract confirms: distillation plus an alignment of input gradients, no
attack needed. RECONSTRUCTED: the equation from memory, its weights, and what
the adversarial variant sees; no code is public.
"""

import jax.numpy as jnp

from jax_robust_kd.core import Array, LossOutput, Method, no_attack
from jax_robust_kd.losses import cross_entropy, kl_divergence
from jax_robust_kd.methods.inner_problems import cross_entropy_label
from jax_robust_kd.methods.input_gradient import input_gradient


def kdiga(
  kl_weight: float = 1.0,
  gradient_weight: float = 1.0,
  temperature: float = 1.0,
  adversarial: bool = False,
) -> Method:
  """Builds KDIGA: CE(S(x), y) + a t^2 KL_t(T(x) || S(x)) + b d(x).

  d(x) = || grad_x CE(S(x), y) - grad_x CE(T(x), y) ||_2 over the pixels of an
  image, not squared, and 0 with gradient 0 where both agree. The gradient of
  the outer loss passes through the student's input gradient.

  Args:
    kl_weight: a, >= 0.
    gradient_weight: b, >= 0; pixels are in [0, 1].
    temperature: t, > 0; softens both outputs in the divergence.
    adversarial: whether everything is at x' that maximizes CE(S(x'), y).

  Returns:
    The method, with one robust teacher.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.kdiga(adversarial=True).perturb.__name__
    'cross_entropy_label'

  References:
    Shao et al., How and When Adversarial Robustness Transfers in Knowledge
    Distillation?, 2021, arXiv 2110.12072; reconstructed.
  """

  def loss(ctx, batch, adv):
    def hard_loss(logits):
      return cross_entropy(logits, batch.target)

    student, out = input_gradient(ctx.student, adv, hard_loss)
    teacher, target = input_gradient(ctx.teacher, adv, hard_loss)
    soft = kl_divergence(out.logits, target.logits, temperature)
    soft = temperature**2 * jnp.mean(soft)
    hard = jnp.mean(hard_loss(out.logits))
    distance = jnp.mean(_length(student - teacher))
    value = hard + kl_weight * soft + gradient_weight * distance
    metrics = {'ce': hard, 'kl': soft, 'gradient_distance': distance}
    return LossOutput(value, out.batch_stats, metrics)

  return Method(loss, cross_entropy_label if adversarial else no_attack)


def _length(x: Array) -> Array:
  """l_2 norm of each image, [B], with gradient 0 where it is 0."""
  square = jnp.sum(jnp.square(x), axis=(1, 2, 3))
  positive = square > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
