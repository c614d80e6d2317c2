"""Checks of adversarial images: in the ball, and scored again."""

import math

import numpy as np

from jax_robust_kd.checks.check import Check, Limit, Measured
from jax_robust_kd.checks.evidence import Evidence
from jax_robust_kd.checks.model import has_image, is_correct, logits, margins
from jax_robust_kd.checks.outputs import TIE


def _box(e: Evidence) -> Measured:
  """Measures the distance from ball and [0, 1] in float64."""
  norm, epsilon = e.budget.norm, e.budget.epsilon
  order = {'linf': np.inf, 'l2': 2, 'l1': 1}[norm]
  # One part in a million, and half a float32 spacing at 1 for each pixel.
  pixels = e.model.image[0].size
  rounding = {'linf': 1, 'l2': np.sqrt(pixels), 'l1': pixels}[norm] * 2.0**-24
  allowed = epsilon * (1 + 1e-6) + rounding
  shown = {'beyond epsilon': 0.0, 'beyond [0, 1]': 0.0, 'not finite': 0.0}
  pairs = [(m, o) for m, outcomes in e.scored for o in outcomes.values()]
  for model, outcome in pairs:
    there = has_image(outcome)
    if outcome.adv is None or not there.any():
      continue
    adv = outcome.adv[there].astype(np.float64)
    image = model.image[there].astype(np.float64)
    shown['not finite'] += np.sum(~np.isfinite(adv))
    adv = np.where(np.isfinite(adv), adv, image)
    length = np.linalg.norm((adv - image).reshape(len(adv), -1), order, axis=1)
    for key, excess in (
      ('beyond epsilon', length.max() - allowed),
      ('beyond [0, 1]', max(-adv.min(), adv.max() - 1)),
    ):
      shown[key] = max(shown[key], excess)
  return shown, {'outside': max(shown.values())}


BOX = Check(
  'box',
  _box,
  {'outside': Limit(0, 0)},  # pixel range 0-1, or number of bad values
  'Adversarial images are in the ball and in [0, 1].',
  'Adversarial images leave the ball or [0, 1], or are not finite: the '
  'attack is wrong, so do not count them.',
)


def _rescoring(e: Evidence) -> Measured:
  """Scores all adversarial images again.

  Attacks that stop at the decision boundary leave ties, which rounding may
  turn; they are counted apart.
  """
  shown = {'images': 0, 'flags differ': 0, 'borderline flags differ': 0}
  for model, outcomes in e.scored:
    clean = is_correct(model)
    for outcome in outcomes.values():
      there = has_image(outcome)
      if outcome.adv is None or not there.any():
        continue
      logit = logits(model, outcome.adv[there])
      margin = margins(logit, model.label[there])
      differ = (clean[there] & (margin < 0)) != outcome.correct[there]
      tie = np.abs(margin) <= TIE * np.nanmax(np.abs(logit))
      shown['images'] += len(margin)
      shown['flags differ'] += np.sum(differ & ~tie)
      shown['borderline flags differ'] += np.sum(differ & tie)
  return shown, {key: shown[key] for key in RESCORING.limits}


RESCORING = Check(
  'rescoring',
  _rescoring,
  {'flags differ': Limit(0, 0), 'borderline flags differ': Limit(0, math.inf)},
  'All adversarial images, scored again, give the same flags.',
  'Adversarial images, scored again, give other flags: another '
  'model, mode or precision was attacked (amber: only ties differ).',
)
