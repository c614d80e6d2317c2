"""Masked gradients, on evidence by hand."""

from helpers.evidence import (
  NEVER,
  brightness,
  falls_at,
  flags,
  grey,
  runs,
  verdict,
)
import jax
import numpy as np
import pytest

from jax_robust_kd import checks
from jax_robust_kd.checks.masking import (
  EPSILON_CURVE,
  GRADIENTS,
  ONE_STEP,
  SCALE,
  SQUARE,
)


def test_one_step_is_not_stronger_than_many():
  robust = falls_at([NEVER] * 10)
  some = falls_at([1] * 3 + [NEVER] * 7)
  good = verdict(ONE_STEP, runs=runs(some, one_step=robust))
  assert good.level == 'green'
  assert good.value == {'fgsm': 100.0, 'pgd-4': 70.0}
  assert verdict(ONE_STEP, runs=runs(robust, some)).level == 'red'
  one = falls_at([1] + [NEVER] * 9)
  assert verdict(ONE_STEP, runs=runs(robust, one)).level == 'amber'


@pytest.mark.parametrize(
  'curve, level',
  [
    ([10, 6, 3, 0], 'green'),
    ([10, 6, 7, 0], 'amber'),
    ([10, 3, 6, 0], 'red'),
    ([10, 9, 8, 7], 'red'),
    ([10, 6, 5, 4], 'amber'),  # two classes: half is chance
  ],
)
def test_epsilon_curve(curve, level):
  found = runs([[0.0]])._replace(
    radii=[0, 1, 2, 4], curve=np.arange(10) < np.array(curve)[:, None]
  )
  model = grey(np.linspace(0.1, 0.9, 10))
  assert verdict(EPSILON_CURVE, model=model, runs=found).level == level


def test_gradients_along_the_path():
  path = falls_at([3] * 5 + [NEVER] * 95)
  good = runs(path)
  assert verdict(GRADIENTS, runs=good).level == 'green'
  flat = good.restarts[0].flat.copy()
  flat[50:53, 5] = True
  found = verdict(
    GRADIENTS,
    runs=good._replace(restarts=[good.restarts[0]._replace(flat=flat)]),
  )
  assert found.level == 'red'
  assert found.value['zero gradient on the path'] == 3


@pytest.mark.parametrize(
  'rows, step, level, value',
  [
    # Images 0 to 4 are broken at step 3, the other 95 never.
    ([], 0, 'green', {}),
    ([50], 0, 'amber', {'zero loss at the start': 1}),
    ([50, 51], 0, 'red', {'zero loss at the start': 2}),
    ([0], 0, 'green', {'zero loss, broken all the same': 1}),
    ([0, 1], 0, 'amber', {'zero loss, broken all the same': 2}),
    ([50, 51], 4, 'green', {}),  # met on the way, and left again
    ([50], 8, 'amber', {'zero loss at the end': 1}),
    ([50, 51], 8, 'red', {'zero loss at the end': 2}),
    ([0, 1], 8, 'green', {}),
  ],
)
def test_losses_of_zero(rows, step, level, value):
  good = runs(falls_at([3] * 5 + [NEVER] * 95))
  path = good.restarts[0]
  zero = path._replace(loss=path.loss.copy())
  zero.loss[rows, step] = 0
  starts = [good._replace(restarts=[zero])]
  if step == 0:  # a start is the image itself, or a random point near it
    starts.append(good._replace(one_step=zero))
  for each in starts:
    found = verdict(GRADIENTS, runs=each)
    assert found.level == level
    assert {k: v for k, v in found.value.items() if v} == value


def test_scale():
  """Red where the logits may be why; a small gap leaves it a warning."""
  number = np.arange(100)
  ce = flags(number < 90)
  quiet = grey(np.full(100, 0.9), batch_size=100)  # a gap of 7.2
  loud = quiet._replace(
    apply=jax.tree_util.Partial(lambda x: 10 * brightness(x))
  )
  for model, gap, rest in ((quiet, 'green', 'amber'), (loud, 'amber', 'red')):
    for aimed, expected in ((88, 'green'), (86, 'amber'), (84, rest)):
      outcomes = {'apgd_ce': ce, 'apgd_t': flags(number < aimed)}
      found = verdict(SCALE, model=model, outcomes=outcomes)
      assert found.level == max(expected, gap, key=checks.LEVELS.index), aimed


def test_square_is_compared_per_image():

  def square(correct):
    outcomes = {'apgd_ce': flags(np.arange(100) < 50), 'square': flags(correct)}
    return verdict(SQUARE, outcomes=outcomes)

  # As many broken, but others.
  found = square(np.arange(100) >= 2)
  assert found.level == 'red' and found.value['broken by it alone'] == 2
  assert square(np.arange(100) < 80).level == 'green'
  assert square(np.arange(100) >= 1).level == 'amber'
