"""Attacks and suites by name."""

from collections.abc import Callable
import difflib
import re
from typing import Any

from jax_robust_kd.attacks.apgd import APGD_CE, APGD_DLR, APGD_T
from jax_robust_kd.attacks.fab import FAB, FAB_T
from jax_robust_kd.attacks.gradient import Budget, cw, fgsm, kl_pgd, pgd
from jax_robust_kd.attacks.square import SQUARE
from jax_robust_kd.core import UserError

# Plain functions, and attacks in pieces.
ATTACKS: dict[str, Any] = {
  'apgd_ce': APGD_CE,
  'apgd_dlr': APGD_DLR,
  'apgd_t': APGD_T,
  'cw': cw,
  'fab': FAB,
  'fab_t': FAB_T,
  'fgsm': fgsm,
  'kl_pgd': kl_pgd,
  'pgd': pgd,
  'square': SQUARE,
}
# Steps of those that do not take the budget's: AutoAttack's own.
_STEPS = {
  'apgd_ce': 100,
  'apgd_dlr': 100,
  'apgd_t': 100,
  'fab': 100,
  'fab_t': 100,
  'square': 5000,
}

_SPEC = re.compile(r'([a-z_]+)(?:-(\d+)(?:x(\d+))?)?')


def find_attack(spec: str, budget: Budget) -> tuple[Any, Budget]:
  """Reads an attack as papers write it: 'fgsm', 'pgd-20', 'square-500'.

  Args:
    spec: name, number of steps, number of restarts after an 'x'.
    budget: norm, epsilon, step size, start; what `spec` leaves out.

  Returns:
    The entry of ATTACKS and the budget with the steps and restarts of `spec`.

  Raises:
    UserError: the name is not in ATTACKS, the form is wrong, or the attack
      does not know the norm.
  """
  match = _SPEC.fullmatch(spec)
  if not match or match[1] not in ATTACKS:
    known = [*ATTACKS, *SUITES]
    near = difflib.get_close_matches(spec.split('-')[0], known)
    hint = f'did you mean {near[0]!r}?' if near else f'known: {sorted(known)}'
    raise UserError(
      f'attack {spec!r} is unknown; write NAME, NAME-STEPS or '
      f'NAME-STEPSxRESTARTS such as pgd-20; {hint}'
    )
  name = match[1]
  steps = int(match[2] or _STEPS.get(name, budget.num_steps))
  restarts = int(match[3] or budget.num_restarts)
  if steps < 1 or restarts < 1:
    raise UserError(f'attack {spec!r} needs at least one step and one restart')
  if budget.norm == 'l1' and name not in _STEPS:
    raise UserError(
      f'attack {spec!r} has no l1 version; use one of {sorted(_STEPS)}, or '
      "'autoattack'"
    )
  return ATTACKS[name], budget._replace(num_steps=steps, num_restarts=restarts)


def _standard(budget: Budget) -> list[tuple[str, Budget]]:
  """AutoAttack; in l_1 with 5 restarts and 5 targets of APGD."""
  one = budget._replace(num_restarts=1, num_targets=9)
  five = one._replace(num_restarts=5)
  few = one._replace(num_targets=5)
  sparse = budget.norm == 'l1'
  return [
    ('apgd_ce', five if sparse else one),
    ('apgd_t', few if sparse else one),
    ('fab_t', one),
    ('square', one),
  ]


def _plus(budget: Budget) -> list[tuple[str, Budget]]:
  """All six attacks, the untargeted ones and FAB-T with 5 restarts."""
  one = budget._replace(num_restarts=1, num_targets=9)
  five = one._replace(num_restarts=5)
  return [
    ('apgd_ce', five),
    ('apgd_dlr', five),
    ('fab', five),
    ('square', one),
    ('apgd_t', one),
    ('fab_t', five),
  ]


def _rand(budget: Budget) -> list[tuple[str, Budget]]:
  """For networks with randomness: gradients averaged over 20 draws."""
  draws = budget._replace(num_restarts=1, num_eot=20)
  return [('apgd_ce', draws), ('apgd_dlr', draws)]


# Name -> budget -> (attack, its budget), each on the survivors of those before.
SUITES: dict[str, Callable[[Budget], list[tuple[str, Budget]]]] = {
  'autoattack': _standard,
  'autoattack_plus': _plus,
  'autoattack_rand': _rand,
}
