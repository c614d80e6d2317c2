"""Limits, chance, and what a check must measure."""

import math

from helpers.evidence import (
  FOUR,
  NEVER,
  falls_at,
  flags,
  grey,
  runs,
  verdict,
  wandering,
)
import numpy as np
import pytest

from jax_robust_kd.checks.check import Check, Limit, by_chance, grade
from jax_robust_kd.checks.masking import SQUARE
from jax_robust_kd.checks.strength import CONVERGENCE, REPORTED, RESTARTS


@pytest.mark.parametrize('count', [10, 64, 100, 1000])
def test_what_chance_explains(count):
  """The binomial tail, summed over all its terms."""
  likely = [
    math.comb(count, k) * 0.005**k * 0.995 ** (count - k)
    for k in range(count + 1)
  ]
  allowed = round(by_chance(count) * count / 100)
  assert sum(likely[allowed + 1 :]) <= 0.01 < sum(likely[allowed:])
  # So many images that are broken late are amber, one more is red.
  for more, level in ((0, 'amber'), (1, 'red')):
    late = falls_at([7] * (allowed + more) + [NEVER] * (count - allowed - more))
    found = verdict(CONVERGENCE, runs=runs(late))
    assert found.level == level
    rest = verdict(
      RESTARTS,
      runs=runs(falls_at([NEVER] * count), restarts=[wandering(late - 0.5)]),
      options=FOUR._replace(num_steps=8),
    )
    assert rest.level == level
    # Of an evaluation that missed as many.
    ours = {'apgd_ce': flags(np.arange(count) >= allowed + more)}
    everyone = np.ones(count, bool)
    missed = verdict(REPORTED, outcomes=ours, reported=everyone)
    assert missed.level == level


def test_what_chance_explains_of_many_images():
  """It comes down to the half point, and ends."""
  assert 0.5 < by_chance(50_000) < 0.6
  assert 0.5 < by_chance(10_000_000) < 0.6
  late = falls_at([7] * 4 + [NEVER] * 996)
  assert verdict(CONVERGENCE, runs=runs(late)).level == 'green'


def test_one_image_is_never_red_and_nan_always():
  limit = SQUARE.limits['square gains']
  assert grade(limit, 1.0, 100) == 'amber'
  assert grade(limit, 2.0, 100) == 'red'
  # 30 less 29 of 100 images, which float64 has as a little more than 1.
  assert grade(limit, 100 * 0.3 - 100 * 0.29, 100) == 'amber'
  assert grade(limit, 0.0, 100) == 'green'
  assert grade(limit, float('nan'), 100) == 'red'


@pytest.mark.parametrize('numbers', [{}, {'a': 0, 'c': 0}, dict(a=0, b=0, c=0)])
def test_a_check_measures_what_its_limits_say(numbers):
  limits = {'a': Limit(0, 0), 'b': Limit(0, 0)}
  check = Check('odd', lambda e: ({}, numbers), limits, 'Good.', 'Bad.')
  with pytest.raises(ValueError, match='odd'):
    verdict(check, model=grey([0.9]))
  check = check._replace(limits=dict.fromkeys(numbers, Limit(0, 0)))
  if numbers:
    assert verdict(check, model=grey([0.9])).meaning == 'Good.'


def test_the_worst_limit_counts():
  limits = {'a': Limit(0, 2), 'b': Limit(1, 9)}
  for b, level in ((1, 'amber'), (2, 'amber'), (10, 'red')):
    numbers = {'a': 1, 'b': b}
    check = Check('odd', lambda e: ({'x': 1}, numbers), limits, 'Good.', 'Bad.')
    assert verdict(check, model=grey([0.9])) == ('odd', level, {'x': 1}, 'Bad.')
