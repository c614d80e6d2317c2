"""Adversarial images: in the ball, and scored again."""

from helpers.evidence import grey, verdict
import numpy as np
import pytest

from jax_robust_kd.attacks import Budget
from jax_robust_kd.checks.images import BOX, RESCORING
from jax_robust_kd.checks.model import Outcome


@pytest.mark.parametrize(
  'change, epsilon, key',
  [
    (0.1001, 0.1, 'beyond epsilon'),
    (0.11, 0.2, 'beyond [0, 1]'),
    (np.nan, 0.1, 'not finite'),
  ],
)
def test_box_in_float64(change, epsilon, key):
  model = grey([0.2, 0.9])
  correct = np.ones(2, bool)
  good = Outcome(correct, model.image - np.float32(0.1))
  bad = Outcome(correct, model.image + np.float32(change))
  all_good = model, {'good': good}
  assert verdict(BOX, model=model, scored=(all_good,)).level == 'green'
  found = verdict(
    BOX,
    model=model,
    budget=Budget('linf', epsilon, epsilon / 4),
    scored=(all_good, (model, {'b': bad})),
  )
  assert found.level == 'red' and found.value[key] > 0


def test_rescoring_finds_other_flags_but_forgives_ties():
  model = grey([0.2, 0.3, 0.8])
  far = model.image
  near = np.concatenate([np.full_like(far[:1], 0.49999), far[1:]])
  gone = np.concatenate([np.full_like(far[:1], np.nan), far[1:]])
  for adv, first_correct, level in (
    (far, True, 'green'),
    (far, False, 'red'),
    (near, False, 'amber'),
    (gone, False, 'green'),  # not attacked, as it was broken before
  ):
    each = Outcome(np.array([first_correct, True, True]), adv)
    outcomes = {'a': each, 'b': each._replace(adv=None)}
    found = verdict(RESCORING, model=model, scored=((model, outcomes),))
    assert found.level == level, found
    assert found.value['images'] == (2 if adv is gone else 3)
  both = verdict(
    RESCORING, model=model, scored=((model, outcomes), (model, {'a': each}))
  )
  assert both.value['images'] == 4
