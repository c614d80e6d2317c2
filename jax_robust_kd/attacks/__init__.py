"""Attacks by name, for evaluation; methods are handed `maximize` instead.

  result = attacks.autoattack(apply, image, label, epsilon=8 / 255)

works on any function from images to logits; see docs/attacks.md. A single
attack is `attacks.apgd_ce(rng, logits_fn, image, label, budget) -> adv`.
"""

from jax_robust_kd.attacks.ascent import ascent
from jax_robust_kd.attacks.autoattack import autoattack
from jax_robust_kd.attacks.engine import Result
from jax_robust_kd.attacks.gradient import Budget, cw, fgsm, kl_pgd, pgd
from jax_robust_kd.attacks.stepwise import as_plain_attack
from jax_robust_kd.attacks.suites import ATTACKS, SUITES, find_attack

apgd_ce = as_plain_attack(ATTACKS['apgd_ce'])
apgd_dlr = as_plain_attack(ATTACKS['apgd_dlr'])
apgd_t = as_plain_attack(ATTACKS['apgd_t'])
fab = as_plain_attack(ATTACKS['fab'])
fab_t = as_plain_attack(ATTACKS['fab_t'])
square = as_plain_attack(ATTACKS['square'])

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
