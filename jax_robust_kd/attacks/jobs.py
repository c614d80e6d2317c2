"""What a suite runs: a job for each column of its result."""

from typing import Any, NamedTuple

from jax_robust_kd.attacks.gradient import (
  NUM_STEPS,
  Budget,
  check_epsilon,
  fgsm,
)
from jax_robust_kd.attacks.names import ATTACKS, SUITES, find_attack
from jax_robust_kd.attacks.stepwise import Stepwise
from jax_robust_kd.core import UserError


class Job(NamedTuple):
  """One column of the result.

  Attributes:
    column: its name, such as 'pgd-20' or 'autoattack.apgd_t'.
    attack: as `make_attack` takes it; None for 'clean'.
    budget: the threat model and the length.
    after: columns whose survivors it attacks.
  """

  column: str
  attack: Any
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
      jobs.append(Job(spec, *find_attack(spec, budget), ('clean',)))
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
  plain = budget._replace(num_eot=draws.pop())
  return [Job('clean', None, plain, ()), *jobs]


def plan_keyless(suite: tuple[str, ...], budget: Budget) -> list[Job]:
  """Plans attacks on networks that draw nothing.

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
  """Returns whether it differentiates the network."""
  return job.attack not in (None, ATTACKS['square'])


def num_steps(job: Job, num_classes: int) -> int:
  """Returns the steps that a job takes at most for each image."""
  if job.attack in (None, fgsm):
    return 1
  if isinstance(job.attack, Stepwise):
    runs = job.attack.num_runs(job.budget, num_classes)
    return runs * job.attack.num_steps(job.budget)
  return job.budget.num_restarts * (job.budget.num_steps or NUM_STEPS)
