"""AdvFunMatch, adversarial function matching. RECONSTRUCTED but its objective.

Wu, Gao, Zhou, Wang 2023, arXiv 2305.14700. The objective is confirmed by the
abstract: consistent teaching (teacher and student see the identical input),
the inner problem finds the point of the l_p ball where their outputs differ
most in KL, the outer one matches them there, and strong augmentation helps.
Everything else is RECONSTRUCTED: no full text or code could be had. The
defaults are the usual ones of the field, and each open choice is a keyword.
"""

from jax_robust_kd.core import Method
from jax_robust_kd.methods.distill import choose
from jax_robust_kd.methods.inner import clean_target, label_loss, mismatch
from jax_robust_kd.methods.outer import matching

INNER = {
  'mismatch': mismatch,  # KL(T(x') || S(x')), the paper's
  'clean_target': clean_target,  # KL(T(x) || S(x')), as RSLAD
  'label': label_loss,  # CE(S(x'), y), as ARD
}

TEACHING = {
  'same': lambda image, adv: adv,  # consistent teaching, the paper's
  'clean': lambda image, adv: image,  # the view before the attack
  'flipped': lambda image, adv: adv[:, :, ::-1],  # its mirror image
}


def advfunmatch(
  inner: str = 'mismatch', clean_weight: float = 0.0, teaching: str = 'same'
) -> Method:
  """Builds AdvFunMatch: min E_A(x) max_x' KL(T(x') || S(x')).

  The loss is AdaAD's: with the default augmentation of `configs/advfunmatch.py`
  removed, it equals `adaad(alpha=1)`, value and gradient. What is new is the
  reading as function matching, and strong augmentation A before the attack;
  no label enters, so mixing images needs no rule for labels.

  Args:
    inner: what the inner problem maximizes, a name in INNER (ablation).
    clean_weight: share of KL(T(x) || S(x)) in the outer loss (ablation; the
      paper's objective has none).
    teaching: what the teacher sees in the outer loss while the student sees x',
      a name in TEACHING (ablation). Inconsistent are 'clean', which with inner=
      'clean_target' is RSLAD without its clean term, and 'flipped', the only
      other augmentation that a method can apply to what was attacked. The inner
      problem is named by `inner` alone.
  """
  perturb = choose('inner', inner, INNER)
  see = choose('teaching', teaching, TEACHING)

  def loss(ctx, batch, adv):
    target = ctx.teacher(see(batch.image, adv)).logits
    return matching(ctx, batch, adv, target, alpha=1.0 - clean_weight)

  return Method(loss, perturb)
