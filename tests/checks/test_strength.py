"""Whether a stronger attack would find more, on evidence by hand."""

from helpers.evidence import NEVER, falls_at, flags, runs, verdict, wandering
import numpy as np

from jax_robust_kd.checks.strength import (
  CONVERGENCE,
  REPORTED,
  RESTARTS,
  TARGETS,
)


def test_convergence_counts_images_that_fall_late():
  early = falls_at([3] * 5 + [NEVER] * 5)
  assert verdict(CONVERGENCE, runs=runs(early)).level == 'green'
  late = falls_at([3] * 3 + [7, 8] + [NEVER] * 5)
  found = verdict(CONVERGENCE, runs=runs(late))
  assert found.level == 'red'
  assert found.value == {'4 steps': 70.0, '8 steps': 50.0}
  # Nothing is gained where another attack has been.
  others = {'apgd_ce': flags(np.arange(10) < 3)}
  found = verdict(CONVERGENCE, runs=runs(late), outcomes=others)
  assert found.level == 'green'


def test_restarts_count_images_that_only_later_ones_break():
  first = falls_at([3] * 5 + [NEVER] * 5)
  same = verdict(RESTARTS, runs=runs(first, restarts=[wandering(first)]))
  assert same.level == 'green'
  other = wandering(first[::-1])
  found = verdict(RESTARTS, runs=runs(first, restarts=[other]))
  assert found.level == 'red' and found.value['2 restarts'] == 0


def test_targets():
  number = np.arange(100)
  robust = falls_at([NEVER] * 100)
  for aimed, level in ((50, 'green'), (45, 'green'), (44, 'amber')):
    outcomes = {
      'suite.apgd_ce': flags(number < 50),
      'apgd_t-9': flags(number < aimed),
      'square': flags(number < 0),  # has no gradients
    }
    found = verdict(TARGETS, runs=runs(robust), outcomes=outcomes)
    assert found.level == level
    assert found.value == {
      'without targets': 50, 'with targets': aimed, 'both': aimed
    }  # fmt: skip
  # And the other way round: PGD, without a target, breaks half.
  half = falls_at([3] * 50 + [NEVER] * 50)
  found = verdict(TARGETS, runs=runs(half), outcomes=outcomes | {
    'suite.apgd_ce': flags(number >= 0),
    'apgd_t-9': flags(number >= 10),
  })  # fmt: skip
  assert found.level == 'amber'
  assert found.value == {
    'without targets': 50, 'with targets': 90, 'both': 50
  }  # fmt: skip


def test_an_evaluation_that_found_too_little():
  ours = {'apgd_ce': flags(np.arange(100) < 50)}
  for count, level in ((50, 'green'), (52, 'amber'), (60, 'red')):
    found = verdict(REPORTED, outcomes=ours, reported=np.arange(100) < count)
    assert found.level == level
