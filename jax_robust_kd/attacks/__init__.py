"""Attacks by name, for evaluation; methods are handed `maximize` instead.

  result = attacks.autoattack(apply, image, label, epsilon=8 / 255)

works on any function from images to logits; see docs/attacks.md. A single
attack is `attacks.apgd_ce(rng, logits_fn, image, label, budget) -> adv`.
"""

from jax_robust_kd.attacks.ascent import ascent
from jax_robust_kd.attacks.autoattack import autoattack
from jax_robust_kd.attacks.gradient import Budget, cw, fgsm, kl_pgd, pgd
from jax_robust_kd.attacks.names import ATTACKS, SUITES, find_attack
from jax_robust_kd.attacks.stepwise import plain
from jax_robust_kd.attacks.suite import Result

apgd_ce = plain(ATTACKS['apgd_ce'])
apgd_dlr = plain(ATTACKS['apgd_dlr'])
apgd_t = plain(ATTACKS['apgd_t'])
fab = plain(ATTACKS['fab'])
fab_t = plain(ATTACKS['fab_t'])
square = plain(ATTACKS['square'])

__all__ = [
  'ATTACKS',
  'SUITES',
  'Budget',
  'Result',
  'apgd_ce',
  'apgd_dlr',
  'apgd_t',
  'ascent',
  'autoattack',
  'cw',
  'fab',
  'fab_t',
  'fgsm',
  'find_attack',
  'kl_pgd',
  'pgd',
  'plain',
  'square',
]
