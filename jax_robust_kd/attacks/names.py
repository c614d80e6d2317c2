"""Attacks and suites by name.

The suites have attacks, order, restarts, targets, steps and draws of the
versions 'standard', 'plus' and 'rand' of the reference program,
github.com/fra31/auto-attack at a392200, in every norm. Two settings differ,
both outside of 'standard':

  In l_1 Auto-PGD always shrinks its radius in three phases. There only
  'standard' does; 'plus', 'rand' and single attacks stay at epsilon, and the
  program itself warns that 'plus' is not made for l_1.

  A single attack has one restart unless told otherwise. There those of a
  'custom' list have 5 if they are untargeted: 'apgd_ce-100x5', 'fab-100x5'.
"""

from collections.abc import Callable
import difflib
import re
from typing import Any

from jax_robust_kd.attacks.apgd import APGD_CE, APGD_DLR, APGD_T
from jax_robust_kd.attacks.fab import FAB, FAB_T
from jax_robust_kd.attacks.gradient import Budget, cw, fgsm, kl_pgd, pgd
from jax_robust_kd.attacks.square import SQUARE
from jax_robust_kd.attacks.stepwise import Stepwise
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
# Classes that the DLR losses need: the ratio is over lower logits.
_LEAST_CLASSES = {'apgd_dlr': 3, 'apgd_t': 4}
# AutoAttack's know l_1, too.
_KNOW_L1 = sorted(k for k, v in ATTACKS.items() if isinstance(v, Stepwise))

_SPEC = re.compile(r'([a-z_]+)(?:-(\d+)(?:x(\d+))?)?')


def find_attack(spec: str, budget: Budget) -> tuple[Any, Budget]:
  """Reads an attack as papers write it: 'fgsm', 'pgd-20', 'square-500'.

  Args:
    spec: name, number of steps, number of restarts after an 'x'.
    budget: norm, epsilon, step size, start; what `spec` leaves out. A number
      of steps that neither names, 0, is the attack's own.

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
  steps = int(match[2]) if match[2] else budget.num_steps
  restarts = int(match[3] or budget.num_restarts)
  if (match[2] and steps < 1) or restarts < 1:
    raise UserError(f'attack {spec!r} needs at least one step and one restart')
  if budget.norm == 'l1' and name not in _KNOW_L1:
    raise UserError(
      f'attack {spec!r} has no l1 version; use one of {_KNOW_L1}, or '
      "'autoattack'"
    )
  return ATTACKS[name], budget._replace(num_steps=steps, num_restarts=restarts)


def _once(budget: Budget) -> Budget:
  """One restart, 9 targets, each attack's own number of steps."""
  return budget._replace(num_steps=0, num_restarts=1, num_targets=9)


def _standard(budget: Budget) -> list[tuple[str, Budget]]:
  """AutoAttack; in l_1 APGD-CE has 5 restarts and APGD-T 5 targets."""
  one = _once(budget)
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
  """All six attacks; APGD-CE, APGD-DLR and FAB have 5 restarts.

  FAB-T shares its settings with FAB in the reference program, which asks 5
  restarts of both, and sets them to 1 again just before FAB-T runs.
  """
  one = _once(budget)
  five = one._replace(num_restarts=5)
  return [
    ('apgd_ce', five),
    ('apgd_dlr', five),
    ('fab', five),
    ('square', one),
    ('apgd_t', one),
    ('fab_t', one),
  ]


def _rand(budget: Budget) -> list[tuple[str, Budget]]:
  """For networks with randomness: gradients averaged over 20 draws."""
  draws = _once(budget)._replace(num_eot=20)
  return [('apgd_ce', draws), ('apgd_dlr', draws)]


# Name -> budget -> (attack, its budget), each on the survivors of those before.
SUITES: dict[str, Callable[[Budget], list[tuple[str, Budget]]]] = {
  'autoattack': _standard,
  'autoattack_plus': _plus,
  'autoattack_rand': _rand,
}


def tell_few_classes(
  attacks: list[tuple[Any, Budget]],
  num_classes: int,
  show: Callable[[str], None],
) -> None:
  """Says in one sentence what few classes change, if anything.

  Args:
    attacks: entries of ATTACKS, or None, and their budgets.
    num_classes: K.
    show: told the sentence.

  Raises:
    UserError: fewer than two classes.
  """
  if num_classes < 2:
    raise UserError(
      f'the network has {num_classes} class; only one of at least 2 classes '
      'can be attacked'
    )
  given = [own for own, _ in attacks]
  replaced = [
    name
    for name, least in _LEAST_CLASSES.items()
    if num_classes < least and ATTACKS[name] in given
  ]
  targets = max(
    (b.num_targets for own, b in attacks if own in (APGD_T, FAB_T)), default=0
  )
  changes = []
  if replaced:
    changes.append(
      'the difference of two logits takes the place of the DLR loss of '
      f'{" and ".join(replaced)}'
    )
  if targets > num_classes - 1:
    changes.append(f'the number of targets is {num_classes - 1}, not {targets}')
  if changes:
    show(f'with {num_classes} classes ' + ', and '.join(changes))
