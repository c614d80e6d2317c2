"""Attacks by name, for evaluation; methods are handed `maximize` instead."""

from collections.abc import Callable
import difflib
import re

from jax_robust_kd.attacks.ascent import ascent
from jax_robust_kd.attacks.gradient import Budget, cw, fgsm, kl_pgd, pgd
from jax_robust_kd.core import UserError

ATTACKS: dict[str, Callable] = {
  'cw': cw,
  'fgsm': fgsm,
  'kl_pgd': kl_pgd,
  'pgd': pgd,
}

_SPEC = re.compile(r'([a-z_]+)(?:-(\d+)(?:x(\d+))?)?')


def parse_attack(spec: str, budget: Budget) -> tuple[Callable, Budget]:
  """Reads an attack as papers write it: 'fgsm', 'pgd-20', 'pgd-50x10'.

  Args:
    spec: name, number of steps, number of restarts after an 'x'.
    budget: norm, epsilon, step size, start; what `spec` leaves out.

  Returns:
    The attack and the budget with the steps and restarts of `spec`.

  Raises:
    UserError: the name is not in ATTACKS or the form is wrong.
  """
  match = _SPEC.fullmatch(spec)
  if not match or match[1] not in ATTACKS:
    near = difflib.get_close_matches(spec.split('-')[0], ATTACKS)
    hint = f'did you mean {near[0]!r}?' if near else f'known: {sorted(ATTACKS)}'
    raise UserError(
      f'attack {spec!r} is unknown; write NAME, NAME-STEPS or '
      f'NAME-STEPSxRESTARTS such as pgd-20; {hint}'
    )
  steps = int(match[2] or budget.num_steps)
  restarts = int(match[3] or 1)
  if steps < 1 or restarts < 1:
    raise UserError(f'attack {spec!r} needs at least one step and one restart')
  return ATTACKS[match[1]], budget._replace(
    num_steps=steps, num_restarts=restarts
  )


__all__ = ['ATTACKS', 'Budget', 'ascent', 'parse_attack']
