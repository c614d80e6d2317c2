"""Introspective adversarial distillation (IAD).

The divergences are true ones, here as in the official code. That code
- attacks the student in training mode, which moves the running averages: here
  the attack moves none, and train_attack.bn='batch' is the nearest;
- starts from uniform noise that is not cut to [0, 1]: here it is;
- lets the learning rate fall once, as ARD's: `configs/iad.py` has both drops;
- keeps the checkpoint that is best on test images: here images held out of
  training choose.
"""

import jax.numpy as jnp

from jax_robust_kd.core import CLEAN, ROBUST, LossOutput, Method, UserError
from jax_robust_kd.losses import cross_entropy, kl_divergence
from jax_robust_kd.methods.inner_problems import cross_entropy_label
from jax_robust_kd.methods.outer_losses import iad_terms


def iad(
  version: str = 'I',
  robust_weight: float = 1.0,
  clean_weight: float = 0.0,
  beta: float = 0.1,
  begin: float = 0.3,
  temperature: float = 1.0,
  weigh_teacher: bool = False,
) -> Method:
  """Builds IAD-I, upon ARD, or IAD-II, upon AKD2. x' maximizes CE(S(x'), y).

  With A = T_y(x')^beta, the trust in the robust teacher, the loss is

    I:  w [t^2 KL(T(x) || S(x')) + (1 - A) KL(S(x) || S(x'))]
        + (1 - w) CE(S(x), y)
    II: w [A t^2 KL(T(x') || S(x')) + (1 - A) KL(S(x) || S(x'))]
        + c t^2 KL(C(x') || S(x')) + (1 - w - c) CE(S(x'), y), C the clean one

  Version I leaves A out of the teacher's term, as the official code does and
  the paper does not. Clean images are passed from the first step on.

  Args:
    version: 'I', or 'II' with a clean teacher besides.
    robust_weight: w, in [0, 1]; the authors' is 1 for I and 0.5 for II.
    clean_weight: c of version II, in (0, 1 - w]; the authors' is 0.25.
    beta: exponent of the trust, >= 0.
    begin: share of the training with A = 1, in [0, 1]; the authors' is 60 of
      200 epochs for I and 40 for II.
    temperature: t, > 0; softens teachers and student.
    weigh_teacher: whether A multiplies the robust teacher's term; the authors'
      is False for I and True for II.

  Returns:
    The method, with a robust teacher, and a clean one for II.

  Raises:
    UserError: an unknown version, or a clean weight that does not fit it.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.iad('II', robust_weight=0.5, clean_weight=0.25).teachers
    ('robust', 'clean')

  References:
    Zhu et al., Reliable Adversarial Distillation with Unreliable Teachers, ICLR
    2022, arXiv 2106.04928. Loss: confirmed by the official code.
  """
  _check(version, clean_weight)

  def loss(ctx, batch, adv):
    target = ctx.teacher(batch.image if version == 'I' else adv).logits
    value, on_adv, on_clean, metrics = iad_terms(
      ctx, batch, adv, target, beta=beta, begin=begin,
      temperature=temperature, weigh_teacher=weigh_teacher,
    )  # fmt: skip
    labelled = on_clean if version == 'I' else on_adv
    hard = cross_entropy(labelled.logits, batch.target)
    value = robust_weight * value + (1 - robust_weight - clean_weight) * hard
    metrics['ce'] = jnp.mean(hard)
    if version == 'II':
      target = ctx.teachers[CLEAN](adv).logits
      clean = kl_divergence(on_adv.logits, target, temperature)
      value += clean_weight * temperature**2 * clean
      metrics['kl_clean_teacher'] = jnp.mean(clean)
    return LossOutput(jnp.mean(value), on_clean.batch_stats, metrics)

  teachers = (ROBUST,) if version == 'I' else (ROBUST, CLEAN)
  return Method(loss, cross_entropy_label, teachers=teachers)


def _check(version: str, clean_weight: float) -> None:
  if version not in ('I', 'II'):
    raise UserError(f'method.version={version!r} is unknown; use one of: I, II')
  if (clean_weight > 0) != (version == 'II'):
    raise UserError(
      f'method.clean_weight={clean_weight} does not fit method.version='
      f'{version!r}; I has 0, II has 0.25 (with robust_weight=0.5, begin=0.2, '
      'weigh_teacher=True)'
    )
