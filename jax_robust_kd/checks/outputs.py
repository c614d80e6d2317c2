"""Checks of the model's outputs: accuracy, determinism, logits, rounding."""

import jax
import numpy as np

from jax_robust_kd.checks.check import Check, Limit, Measured, one_image
from jax_robust_kd.checks.evidence import Evidence, percent, with_pgd
from jax_robust_kd.checks.model import has_image, is_correct, logits, margins

_PASSES = 5
TIE = 1e-4  # relative logit difference that rounding explains


def _difference(some: np.ndarray, other: np.ndarray) -> float:
  """Returns the largest difference, relative to the largest logit."""
  return float(np.abs(some - other).max() / max(np.abs(some).max(), 1e-30))


def _clean(e: Evidence) -> Measured:
  logit = logits(e.model)
  accuracy = percent(margins(logit, e.model.label) < 0)
  chance = 100 / logit.shape[1]
  shown = {'accuracy': accuracy, 'chance': chance}
  return shown, {'below chance': chance - accuracy}


CLEAN = Check(
  'clean',
  _clean,
  {'below chance': Limit(-10, -1)},
  'The images fit the model.',
  'Hardly better than guessing: check labels and preprocessing first, as '
  'nothing below means much.',
)


def _determinism(e: Evidence) -> Measured:
  first = logits(e.model)
  again = [logits(e.model) for _ in range(_PASSES - 1)]
  largest = np.max([_difference(first, other) for other in again])
  return {'difference': largest}, {'relative logit difference': largest}


DETERMINISM = Check(
  'determinism',
  _determinism,
  {'relative logit difference': Limit(1e-5, TIE)},
  'The same batch gives the same logits.',
  'The same batch gives different logits: turn dropout and noise off, or '
  'attack the average over draws.',
)


def _batches(e: Evidence) -> Measured:
  """Compares with half a batch, and with other images in the batch.

  BatchNorm in training mode differs there, and no attack notices it.
  """
  image, size = e.model.image, e.model.batch_size
  alone = logits(e.model)
  half = (size + 1) // 2
  smaller = logits(e.model, image[::-1], half)[::-1]
  # Each half batch together with negatives, which have other statistics.
  mixed = []
  for first in range(0, len(image), half):
    part = image[first : first + half]
    negatives = 1 - np.resize(part, (size - len(part), *part[0].shape))
    together = logits(e.model, np.concatenate([part, negatives]))
    mixed.append(together[: len(part)])
  shown = {
    'other size': _difference(alone, smaller),
    'other images': _difference(alone, np.concatenate(mixed)),
  }
  return shown, {'relative logit difference': np.max(list(shown.values()))}


BATCHES = Check(
  'batches',
  _batches,
  {'relative logit difference': Limit(1e-5, TIE)},
  'Logits do not depend on the rest of the batch.',
  'Logits depend on the rest of the batch: put BatchNorm into evaluation '
  'mode, in the attack too.',
)


def _logits(e: Evidence) -> Measured:
  logit = logits(e.model)
  sums = np.sum(logit, axis=1, dtype=np.float64)
  in_range = (logit.min() >= -1e-3) and (logit.max() <= 1 + 1e-3)
  shown = {
    'not finite': np.sum(~np.isfinite(logit)),
    'probabilities': bool(in_range and np.abs(sums - 1).max() < 1e-3),
  }
  return shown, {'not logits': max(shown.values())}


LOGITS = Check(
  'logits',
  _logits,
  {'not logits': Limit(0, 0)},
  'The outputs are logits.',
  'The outputs are probabilities or not finite: return what comes before '
  'the softmax, or gradients vanish.',
)


def _precision(e: Evidence) -> Measured:
  """Scores the worst case over all attacks in three precisions."""
  images = [e.model.image]
  for outcome in with_pgd(e.runs, e.outcomes).values():
    there = has_image(outcome)[:, None, None, None]
    if outcome.adv is not None:
      images.append(np.where(there, outcome.adv, e.model.image))
  shown = {}
  for name in ('highest', 'default', 'bfloat16'):
    with jax.default_matmul_precision(name):
      flags = [is_correct(e.model, x) for x in images]
    shown[name] = percent(np.all(flags, axis=0))
  change = max(shown.values()) - min(shown.values())
  return shown, {'precision changes': change}


PRECISION = Check(
  'precision',
  _precision,
  {'precision changes': Limit(0, 0.5, one_image)},
  'Rounding does not decide.',
  'The accuracy depends on the precision of products: attack and score in '
  'float32 with the highest matmul precision.',
)
