"""Dynamic guidance adversarial distillation (DGAD)."""

import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array, LossOutput, Method
from jax_robust_kd.losses import kl_divergence
from jax_robust_kd.methods.inner_problems import kl_to_teacher_adv


def dgad(beta: float = 0.1) -> Method:
  """Builds DGAD, which corrects the teacher's wrong predictions.

  The loss is

    KL(T^(x) || S(x)) where T(x) is wrong, KL(T^(x') || S(x')) elsewhere,
    + beta ||softmax S(x') - softmax S(x)||^2 everywhere.

  T^ is the teacher with its highest logit and that of the label swapped; the
  label is argmax(target). x' maximizes KL(T(x') || S(x')), unswapped, through
  both networks. The running averages see x, then x', as in the official code,
  whose other factors for MobileNetV2 come from a misplaced bracket and are not
  offered.

  Args:
    beta: weight of the consistency, >= 0, summed over classes. The official
      code averages: its 1 is 0.1 with 10 classes.

  Returns:
    The method, with one robust teacher.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.dgad(beta=0.1).perturb.__name__
    'kl_to_teacher_adv'

  References:
    Park and Min, Dynamic Guidance Adversarial Distillation with Enhanced
    Teacher Knowledge, ECCV 2024, arXiv 2409.01627. Loss: confirmed by the
    official code.
  """

  def loss(ctx, batch, adv):
    on_clean = ctx.student(batch.image)
    on_adv = ctx.student(adv, batch_stats=on_clean.batch_stats)
    label = batch.target.argmax(-1)
    teacher = ctx.teacher(batch.image).logits
    wrong = teacher.argmax(-1) != label
    clean = kl_divergence(on_clean.logits, swap(teacher, label))
    target = swap(ctx.teacher(adv).logits, label)
    robust = kl_divergence(on_adv.logits, target)
    gap = jax.nn.softmax(on_adv.logits) - jax.nn.softmax(on_clean.logits)
    consistency = jnp.sum(gap**2, axis=-1)
    value = jnp.mean(jnp.where(wrong, clean, robust) + beta * consistency)
    metrics = {'wrong': wrong, 'kl_clean': clean, 'kl_robust': robust}
    metrics['consistency'] = consistency
    metrics = jax.tree.map(jnp.mean, metrics)
    return LossOutput(value, on_adv.batch_stats, metrics)

  return Method(loss, kl_to_teacher_adv)


def swap(logits: Array, label: Array) -> Array:
  """Exchanges each image's highest logit and that of its label, [B, K]."""
  right = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
  first = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1], dtype=bool)
  of_label = jnp.sum(jnp.where(right, logits, 0.0), axis=-1, keepdims=True)
  highest = logits.max(axis=-1, keepdims=True)
  return jnp.where(right, highest, jnp.where(first, of_label, logits))
