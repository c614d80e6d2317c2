"""Checks of strength: whether a stronger attack would find more."""

import math

import numpy as np

from jax_robust_kd.checks.check import Check, Limit, Measured, by_chance
from jax_robust_kd.checks.evidence import (
  Evidence,
  kind,
  percent,
  under_attacks,
  under_gradients,
)
from jax_robust_kd.checks.pgd import survives


def _targets(e: Evidence) -> Measured:
  """Compares attacks on any class, as PGD, and on one each, as APGD-T."""
  targeted = {n: o for n, o in e.outcomes.items() if kind(n).endswith('_t')}
  others = {n: o for n, o in e.outcomes.items() if n not in targeted}
  aimed = np.all([o.correct for o in targeted.values()], axis=0)
  shown = {
    'without targets': percent(under_gradients(e._replace(outcomes=others))),
    'with targets': percent(aimed),
    'both': percent(aimed & under_gradients(e)),
  }
  return shown, {'one kind alone misses': max(shown.values()) - shown['both']}


TARGETS = Check(
  'targets',
  _targets,
  {'one kind alone misses': Limit(5, math.inf)},
  'Attacks with targets and without find about the same.',
  'Attacks with targets and without find different images: run both, and '
  'count only the worst case.',
)


def _convergence(e: Evidence) -> Measured:
  """Counts images that twice the steps break, and no other attack."""
  steps, others = e.options.num_steps, under_attacks(e)
  shown = {
    f'{n} steps': percent(others & survives(e.runs.restarts[0], n))
    for n in (steps, 2 * steps)
  }
  return shown, {'more steps gain': -np.diff(list(shown.values()))[0]}


CONVERGENCE = Check(
  'convergence',
  _convergence,
  {'more steps gain': Limit(0.5, 0.5, by_chance)},
  'Twice the steps find nothing more.',
  'Twice the steps find more: the accuracy is an upper bound; take more.',
)


def _restarts(e: Evidence) -> Measured:
  """Counts images that more random starts break, and no other attack."""
  others = under_attacks(e)
  each = [others & survives(t, e.options.num_steps) for t in e.runs.restarts]
  shown = {
    '1 restart': percent(each[0]),
    f'{len(each)} restarts': percent(np.all(each, axis=0)),
  }
  gain = shown['1 restart'] - min(shown.values())
  return shown, {'more restarts gain': gain}


RESTARTS = Check(
  'restarts',
  _restarts,
  {'more restarts gain': Limit(0.5, 0.5, by_chance)},
  'More restarts find nothing more.',
  'More restarts find more: the accuracy is an upper bound; take more.',
)


def _reported(e: Evidence) -> Measured:
  reported = np.asarray(e.reported)
  shown = {
    'evaluation': percent(reported),
    'with the checks': percent(reported & under_gradients(e)),
  }
  return shown, {'checks gain': shown['evaluation'] - shown['with the checks']}


REPORTED = Check(
  'reported',
  _reported,
  {'checks gain': Limit(0.5, 0.5, by_chance)},
  'The attacks of the checks find nothing more.',
  'The attacks of the checks break more than the evaluation did: report the '
  'lower accuracy, and run a stronger suite.',
)
