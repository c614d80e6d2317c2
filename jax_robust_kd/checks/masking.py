"""Checks for masked gradients: attacks by gradients that are led astray."""

import math

import numpy as np

from jax_robust_kd.checks.check import Check, Limit, Measured, one_image
from jax_robust_kd.checks.evidence import (
  Evidence,
  percent,
  under,
  under_gradients,
)
from jax_robust_kd.checks.model import is_correct, logits
from jax_robust_kd.checks.pgd import after, survives, survives_noise


def _scale(e: Evidence) -> Measured:
  """Compares APGD on the cross-entropy with targeted APGD."""
  ordered = np.sort(logits(e.model), axis=1)
  gap = float(np.median(ordered[:, -1] - ordered[:, -2]))
  shown = {
    'apgd_ce': percent(under(e, 'apgd_ce')),
    'with apgd_t': percent(under(e, 'apgd_ce', 'apgd_t')),
    'median logit gap': gap,
  }
  missed = shown['apgd_ce'] - shown['with apgd_t']
  limits = SCALE.limits
  if not gap > limits['median logit gap'].amber:
    # The loss is a poor guide, but not for the logits' scale: at most amber.
    missed = min(missed, limits['cross-entropy minus targeted'].red)
  return shown, {
    'cross-entropy minus targeted': missed,
    'median logit gap': gap,
  }


SCALE = Check(
  'scale',
  _scale,
  {
    'cross-entropy minus targeted': Limit(2, 5, one_image),
    # In nats. In float32 the cross-entropy is 0 from a gap of 17 on.
    'median logit gap': Limit(17, math.inf),
  },
  'Attacks that see the scale of the logits agree with those that do not.',
  'The scale of the logits blinds the cross-entropy: trust only attacks '
  'that are invariant to it, such as APGD-T.',
)


def _gradients(e: Evidence) -> Measured:
  """Counts gradients and losses that are exactly 0, or not finite.

  In float32 the cross-entropy is 0 from a gap of 17 between the two largest
  logits on, its gradient only from 88 on. A loss of 0 at the start is a warning
  where PGD breaks the image all the same, as it does to networks that nobody
  defended; where it does not, the loss may be why.
  """
  at_image, path = e.runs.one_step, e.runs.restarts[0]
  correct = path.margin < 0
  starts = (at_image.loss[:, 0] == 0) | (path.loss[:, 0] == 0)
  stays = survives(path)
  at_end = after(path, -1) & (path.loss[:, -1] == 0)
  flat = {
    'zero gradient at the image': percent(at_image.flat[:, 0]),
    'zero gradient on the path': percent(np.any(path.flat & correct, axis=1)),
  }
  zero = {
    'zero loss at the start': percent(starts & stays),
    'zero loss, broken all the same': percent(starts & ~stays),
    'zero loss at the end': percent(at_end),
  }
  return {**flat, **zero}, {'zero gradient': max(flat.values()), **zero}


GRADIENTS = Check(
  'gradients',
  _gradients,
  {
    'zero gradient': Limit(0, 1, one_image),
    'zero loss at the start': Limit(0, 1, one_image),
    'zero loss, broken all the same': Limit(1, math.inf),
    'zero loss at the end': Limit(0, 1, one_image),
  },
  'Gradients are there, at the image and along the path.',
  'Gradients or losses are exactly 0, so gradient attacks stand still: '
  'replace the non-differentiable part (BPDA) or rescale the logits.',
)


def _epsilon_zero(e: Evidence) -> Measured:
  differ = percent(is_correct(e.model) != e.runs.curve[0])
  return {'differ': differ}, {'epsilon 0 differs': differ}


EPSILON_ZERO = Check(
  'epsilon_zero',
  _epsilon_zero,
  {'epsilon 0 differs': Limit(0, 0)},
  'A radius of 0 changes nothing.',
  'A radius of 0 changes the result: the attack does not see the model '
  'that is scored.',
)


def _one_step(e: Evidence) -> Measured:
  """Compares FGSM, PGD-10 and PGD-100 at their last points."""
  steps, path = e.options.num_steps, e.runs.restarts[0]
  shown = {'fgsm': percent(after(e.runs.one_step, 1))}
  for count in (min(10, steps), steps):
    shown[f'pgd-{count}'] = percent(after(path, count))
  loss = max(0.0, *np.diff(list(shown.values())))
  return shown, {'iterating loses': loss}


ONE_STEP = Check(
  'one_step',
  _one_step,
  {'iterating loses': Limit(0, 0.5, one_image)},
  'More steps are never weaker than one.',
  'An iterative attack is weaker than a shorter one: its gradients '
  'mislead it, so the accuracy under it is too high.',
)


def _epsilon_curve(e: Evidence) -> Measured:
  num_classes = logits(e.model).shape[1]
  accuracy = [percent(correct) for correct in e.runs.curve]
  shown = {
    f'{radius:.3g}': value
    for radius, value in zip(e.runs.radii, accuracy, strict=True)
  }
  return shown, {
    'curve rises': max(np.diff(accuracy)),
    'left without a bound': accuracy[-1],
    'left above chance': accuracy[-1] - 100 / num_classes,
  }


EPSILON_CURVE = Check(
  'epsilon_curve',
  _epsilon_curve,
  {
    'curve rises': Limit(0, 0.5, one_image),
    'left without a bound': Limit(1, math.inf),
    'left above chance': Limit(0, 0, one_image),
  },
  'Accuracy falls with the radius, to nothing.',
  'Accuracy does not fall with the radius to nothing, as any image can '
  'become any other: the attack fails, the model is not robust.',
)


def _compare(e: Evidence, name: str, correct: np.ndarray) -> Measured:
  """Counts images that an attack without gradients breaks alone."""
  white_box = under_gradients(e)
  gain = percent(white_box) - percent(white_box & correct)
  shown = {
    'white box': percent(white_box),
    name: percent(correct),
    'broken by it alone': gain,
  }
  return shown, {f'{name} gains': gain}


def _noise(e: Evidence) -> Measured:
  draws, seed = e.options.num_draws, e.options.seed
  norm, epsilon = e.budget.norm, e.budget.epsilon
  correct = survives_noise(e.model, norm, epsilon, draws, seed)
  return _compare(e, 'noise', correct)


NOISE = Check(
  'noise',
  _noise,
  {'noise gains': Limit(0, 0.5, one_image)},
  'Random noise breaks nothing that gradients do not.',
  'Random noise breaks what gradients do not: gradients are masked.',
)


def _square(e: Evidence) -> Measured:
  return _compare(e, 'square', under(e, 'square'))


SQUARE = Check(
  'square',
  _square,
  {'square gains': Limit(0, 0.2, one_image)},
  'Square breaks nothing that gradients do not.',
  'Square, without gradients, breaks what gradients do not: they are '
  'masked; count only the worst case and adapt an attack.',
)
