"""Attacks and suites by name, and the jobs that a suite runs.

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
from typing import NamedTuple

from jax_robust_kd.attacks.apgd import APGD_CE, APGD_DLR, APGD_T
from jax_robust_kd.attacks.fab import FAB, FAB_T
from jax_robust_kd.attacks.gradient import (
  NUM_STEPS,
  Budget,
  check_epsilon,
  cw,
  fgsm,
  kl_pgd,
  pgd,
)
from jax_robust_kd.attacks.square import SQUARE
from jax_robust_kd.attacks.stepwise import Attack, Stepwise
from jax_robust_kd.core import UserError
from jax_robust_kd.runtime.imports import load_object

ATTACKS: dict[str, Attack] = {
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

# NAME, or one's own as `load_object` reads it, then steps and restarts.
_NAME = r'(?:.+\.py:|[A-Za-z_][\w.]*:)?[A-Za-z_]\w*'
_SPEC = re.compile(rf'({_NAME})(?:-(\d+)(?:x(\d+))?)?')


def find_attack(spec: str, budget: Budget) -> tuple[Attack, Budget]:
  """Reads an attack as papers write it: 'fgsm', 'pgd-20', 'square-500'.

  Args:
    spec: name, number of steps, number of restarts after an 'x'. The name of
      an attack of one's own is 'package.module:factory' or 'FILE.py:factory',
      where `factory()` returns a function as `pgd` or a `Stepwise`.
    budget: norm, epsilon, step size, start; what `spec` leaves out. A number
      of steps that neither names, 0, is the attack's own.

  Returns:
    The attack and the budget with the steps and restarts of `spec`.

  Raises:
    UserError: the name is not in ATTACKS, the form is wrong, the attack does
      not know the norm, or one's own cannot be imported.

  Examples:
    >>> attack, longer = find_attack('pgd-50x10', budget)
    >>> attack is ATTACKS['pgd'], longer.num_steps, longer.num_restarts
    (True, 50, 10)
  """
  match = _SPEC.fullmatch(spec)
  if not match or not (match[1] in ATTACKS or ':' in match[1]):
    known = [*ATTACKS, *SUITES]
    close = difflib.get_close_matches(spec.split('-')[0], known)
    hint = f'did you mean {close[0]!r}?' if close else f'known: {sorted(known)}'
    raise UserError(
      f'attack {spec!r} is unknown; write NAME, NAME-STEPS or '
      f'NAME-STEPSxRESTARTS such as pgd-20; {hint}'
    )
  name = match[1]
  steps = int(match[2]) if match[2] else budget.num_steps
  restarts = int(match[3] or budget.num_restarts)
  if (match[2] and steps < 1) or restarts < 1:
    raise UserError(f'attack {spec!r} needs at least one step and one restart')
  budget = budget._replace(num_steps=steps, num_restarts=restarts)
  if ':' in name:
    return load_object('attack', name)(), budget
  if budget.norm == 'l1' and name not in _KNOW_L1:
    raise UserError(
      f'attack {spec!r} has no l1 version; use one of {_KNOW_L1}, or '
      "'autoattack'"
    )
  return ATTACKS[name], budget


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


# Name -> budget -> (attack, its budget), each on what is still correct.
SUITES: dict[str, Callable[[Budget], list[tuple[str, Budget]]]] = {
  'autoattack': _standard,
  'autoattack_plus': _plus,
  'autoattack_rand': _rand,
}


class Job(NamedTuple):
  """One column of the result.

  Attributes:
    column: its name, such as 'pgd-20' or 'autoattack.apgd_t'.
    attack: a function, an attack in steps, or None for 'clean'.
    budget: the threat model and the length.
    after: columns; an image is attacked if it is still correct in all of them.
  """

  column: str
  attack: Attack | None
  budget: Budget
  after: tuple[str, ...]


def plan(suite: tuple[str, ...], budget: Budget) -> list[Job]:
  """Returns the jobs of a suite, 'clean' first.

  Args:
    suite: attacks such as 'pgd-20' or 'square-500', and names of SUITES.
    budget: the threat model.

  Raises:
    UserError: an unknown name, or a radius of 0 or less.
  """
  check_epsilon(budget.epsilon)
  jobs = []
  for spec in suite:
    if spec not in SUITES:
      column = spec.rpartition(':')[2]
      if column != spec and any(column == job.column for job in jobs):
        raise UserError(f'suite {suite} has two attacks {column!r}; rename one')
      jobs.append(Job(column, *find_attack(spec, budget), ('clean',)))
      continue
    before = ('clean',)
    for name, parts in SUITES[spec](budget):
      column = f'{spec}.{name}'
      jobs.append(Job(column, *find_attack(name, parts), before))
      before = (*before, column)
  draws = {job.budget.num_eot for job in jobs} or {budget.num_eot}
  if len(draws) > 1:
    raise UserError(
      f'suite {suite} mixes attacks on networks with and without randomness; '
      "evaluate 'autoattack_rand' alone"
    )
  clean = Job('clean', None, budget._replace(num_eot=draws.pop()), ())
  return [clean, *jobs]


def plan_deterministic(suite: tuple[str, ...], budget: Budget) -> list[Job]:
  """Plans attacks on networks without randomness.

  Raises:
    UserError: as `plan`, or a suite that averages over draws.
  """
  for spec in suite:
    parts = SUITES[spec](budget) if spec in SUITES else []
    if any(part.num_eot > 1 for _, part in parts):
      raise UserError(
        f'suite {spec!r} averages over draws of a network with randomness, and '
        "these networks have none; use 'autoattack'"
      )
  return plan(suite, budget)


def needs_gradient(job: Job) -> bool:
  """Returns whether a job differentiates the network."""
  return job.attack not in (None, ATTACKS['square'])


def num_steps(job: Job, num_classes: int) -> int:
  """Returns the steps that a job takes at most for each image."""
  if job.attack in (None, fgsm):
    return 1
  if isinstance(job.attack, Stepwise):
    runs = job.attack.num_runs(job.budget, num_classes)
    return runs * job.attack.num_steps(job.budget)
  return job.budget.num_restarts * (job.budget.num_steps or NUM_STEPS)


def check_num_classes(
  jobs: list[Job], num_classes: int, say: Callable[[str], None]
) -> None:
  """Refuses a single class, and says in one sentence what few classes change.

  Args:
    jobs: from `plan`.
    num_classes: K.
    say: text -> None, told the sentence where there is one.

  Raises:
    UserError: fewer than two classes.
  """
  if num_classes < 2:
    raise UserError(
      f'the network has {num_classes} class; only one of at least 2 classes '
      'can be attacked'
    )
  planned = [job.attack for job in jobs]
  replaced = [
    name
    for name, least in _LEAST_CLASSES.items()
    if num_classes < least and ATTACKS[name] in planned
  ]
  targets = max(
    (job.budget.num_targets for job in jobs if job.attack in (APGD_T, FAB_T)),
    default=0,
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
    say(f'with {num_classes} classes ' + ', and '.join(changes))
