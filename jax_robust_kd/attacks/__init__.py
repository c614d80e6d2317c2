"""Attacks on any function from images to logits, for evaluation.

  result = attacks.autoattack(model, images, labels, epsilon=8 / 255)

runs AutoAttack or other suites; see docs/attacks.md. A single attack is

  adv = attacks.apgd_ce(rng, logits_fn, image, label, budget)

a pure function of one key per image. In training, methods are handed `maximize`
instead.
"""

from jax_robust_kd.attacks.ascent import ascent
from jax_robust_kd.attacks.autoattack import autoattack
from jax_robust_kd.attacks.engine import Result
from jax_robust_kd.attacks.gradient import Budget, cw, fgsm, kl_pgd, pgd
from jax_robust_kd.attacks.stepwise import as_plain_attack
from jax_robust_kd.attacks.suites import ATTACKS, SUITES, find_attack

apgd_ce = as_plain_attack(ATTACKS['apgd_ce'])
"""Auto-PGD on the cross-entropy (Croce & Hein 2020, alg. 1)."""
apgd_dlr = as_plain_attack(ATTACKS['apgd_dlr'])
"""Auto-PGD on the difference of logits ratio (Croce & Hein 2020)."""
apgd_t = as_plain_attack(ATTACKS['apgd_t'])
"""Auto-PGD on the targeted DLR loss (Croce & Hein 2020)."""
fab = as_plain_attack(ATTACKS['fab'])
"""FAB: the nearest misclassified point (Croce & Hein 2020)."""
fab_t = as_plain_attack(ATTACKS['fab_t'])
"""FAB towards each of the likeliest wrong classes."""
square = as_plain_attack(ATTACKS['square'])
"""Square: random search without gradients (Andriushchenko et al. 2020)."""

__all__ = [
  'ATTACKS',
  'SUITES',
  'Budget',
  'Result',
  'apgd_ce',
  'apgd_dlr',
  'apgd_t',
  'as_plain_attack',
  'ascent',
  'autoattack',
  'cw',
  'fab',
  'fab_t',
  'fgsm',
  'find_attack',
  'kl_pgd',
  'pgd',
  'square',
]
