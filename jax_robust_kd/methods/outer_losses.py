"""Outer losses, and terms of them, that several methods share."""

import jax
import jax.numpy as jnp

from jax_robust_kd.core import (
  Array,
  Batch,
  Context,
  LossOutput,
  Output,
  PyTree,
)
from jax_robust_kd.losses import kl_divergence


def matching(
  ctx: Context,
  batch: Batch,
  adv: Array,
  target: Array,
  alpha: float,
  scale: float = 1.0,
) -> LossOutput:
  """scale [alpha KL(target || S(x')) + (1 - alpha) KL(T(x) || S(x))].

  The running averages see x', then x. With alpha = 1 the clean images are not
  passed at all, so that the averages are those of the adversarial images.

  Args:
    ctx: student and teacher.
    batch: the augmented images x.
    adv: [B, H, W, C] the images x'.
    target: [B, K] the teacher's logits that S(x') is matched with.
    alpha: weight of the adversarial term, in [0, 1].
    scale: factor of the loss, not of the metrics.
  """
  on_adv = ctx.student(adv)
  robust = jnp.mean(kl_divergence(on_adv.logits, target))
  if alpha == 1.0:
    metrics = {'kl_robust': robust}
    return LossOutput(scale * robust, on_adv.batch_stats, metrics)
  on_clean = ctx.student(batch.image, batch_stats=on_adv.batch_stats)
  clean_target = ctx.teacher(batch.image).logits
  clean = jnp.mean(kl_divergence(on_clean.logits, clean_target))
  value = scale * (alpha * robust + (1 - alpha) * clean)
  metrics = {'kl_robust': robust, 'kl_clean': clean}
  return LossOutput(value, on_clean.batch_stats, metrics)


def iad_terms(
  ctx: Context,
  batch: Batch,
  adv: Array,
  target: Array,
  *,
  beta: float,
  begin: float,
  temperature: float,
  weigh_teacher: bool,
) -> tuple[Array, Output, Output, dict[str, Array]]:
  """t^2 [A] KL_t(target || S(x')) + (1 - A) KL(S(x) || S(x')), as IAD.

  A = T_y(x')^beta is the trust in the teacher, y the hard label (argmax of the
  target); A = 1 before `begin`. The gradient flows through S(x) too. The
  running averages see x', then x.

  Args:
    ctx: student and robust teacher.
    batch: the augmented images x.
    adv: [B, H, W, C] the images x'.
    target: [B, K] the teacher's logits that S(x') is matched with.
    beta: >= 0; the smaller, the nearer A is to 1.
    begin: share of the training without introspection.
    temperature: t, softens the first term alone.
    weigh_teacher: whether A multiplies the first term.

  Returns:
    The terms [B], the student's outputs on x' and on x, and metrics.
  """
  on_adv = ctx.student(adv)
  on_clean = ctx.student(batch.image, batch_stats=on_adv.batch_stats)
  right = jax.nn.one_hot(batch.target.argmax(-1), batch.target.shape[-1])
  trust = jnp.sum(right * jax.nn.softmax(ctx.teacher(adv).logits), -1) ** beta
  trust = jnp.where(ctx.progress >= begin, trust, 1.0)
  by_teacher = kl_divergence(on_adv.logits, target, temperature)
  by_itself = kl_divergence(on_adv.logits, on_clean.logits)
  weight = trust if weigh_teacher else 1.0
  value = temperature**2 * weight * by_teacher + (1 - trust) * by_itself
  metrics = {'kl_robust': by_teacher, 'kl_itself': by_itself, 'trust': trust}
  return value, on_adv, on_clean, jax.tree.map(jnp.mean, metrics)


def igdm_term(
  ctx: Context, batch: Batch, adv: Array, on_adv: Output
) -> tuple[Array, PyTree]:
  """KL(T(x + d) - T(x - d) || S(x + d) - S(x - d)) of logits, d = x' - x.

  The term of IGDM: to first order, the two gradients by the image along d. As
  in the official code x - d is not clipped to [0, 1].

  Args:
    ctx: student and teacher.
    batch: the augmented images x.
    adv: [B, H, W, C] the images x'.
    on_adv: the student's output on x'; its running averages are built upon.

  Returns:
    The divergence [B], and the running averages after x - d.
  """
  opposite = 2 * batch.image - adv
  minus = ctx.student(opposite, batch_stats=on_adv.batch_stats)
  student = on_adv.logits - minus.logits
  teacher = ctx.teacher(adv).logits - ctx.teacher(opposite).logits
  return kl_divergence(student, teacher), minus.batch_stats
