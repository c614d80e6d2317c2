"""Checks of the model's behaviour and of what an evaluation left behind."""

import jax
import numpy as np

from jax_robust_kd.checks.report import LIMITS, Check, check, grade
from jax_robust_kd.checks.subject import (
  Attacked,
  Subject,
  has_image,
  logits,
  margins,
)

_PASSES = 5
_RULE = 'relative logit difference'


def clean(subject: Subject) -> Check:
  """Whether the model classifies these images at all."""
  logit = logits(subject, subject.image)
  accuracy = 100 * np.mean(margins(logit, subject.label) < 0)
  chance = 100 / logit.shape[1]
  level = grade('below chance', chance - accuracy)
  return check('clean', {'accuracy': accuracy, 'chance': chance}, level)


def _difference(some: np.ndarray, other: np.ndarray) -> float:
  """Largest difference, relative to the largest logit."""
  return float(np.abs(some - other).max() / max(np.abs(some).max(), 1e-30))


def determinism(subject: Subject) -> Check:
  """Whether the same batch gives the same logits every time."""
  first = logits(subject, subject.image)
  again = [logits(subject, subject.image) for _ in range(_PASSES - 1)]
  largest = np.max([_difference(first, other) for other in again])
  return check('determinism', {'difference': largest}, grade(_RULE, largest))


def batches(subject: Subject) -> Check:
  """Whether an image's logits depend on its neighbours or their number.

  That is what BatchNorm in training mode does, and what no attack notices.
  """
  image = subject.image
  alone = logits(subject, image)
  half = (subject.batch_size + 1) // 2
  smaller = logits(subject, image[::-1], half)[::-1]
  # Each half batch in the company of negatives, which have other statistics.
  mixed = []
  for first in range(0, len(image), half):
    part = image[first : first + half]
    company = 1 - np.resize(
      part, (subject.batch_size - len(part), *part[0].shape)
    )
    together = logits(subject, np.concatenate([part, company]))
    mixed.append(together[: len(part)])
  value = {
    'other size': _difference(alone, smaller),
    'other images': _difference(alone, np.concatenate(mixed)),
  }
  return check('batches', value, *(grade(_RULE, v) for v in value.values()))


def are_logits(subject: Subject) -> Check:
  """Whether the outputs are finite and not probabilities."""
  logit = logits(subject, subject.image)
  sums = np.sum(logit, axis=1, dtype=np.float64)
  in_range = (logit.min() >= -1e-3) and (logit.max() <= 1 + 1e-3)
  value = {
    'not finite': np.sum(~np.isfinite(logit)),
    'probabilities': bool(in_range and np.abs(sums - 1).max() < 1e-3),
  }
  return check(
    'logits', value, *(grade('not logits', v) for v in value.values())
  )


def precision(subject: Subject, attacked: dict[str, Attacked]) -> Check:
  """Whether the worst case over attacks depends on the products' precision.

  Args:
    subject: model and images.
    attacked: by name.
  """
  images = [subject.image]
  for each in attacked.values():
    there = has_image(each)[:, None, None, None]
    if each.adv is not None:
      images.append(np.where(there, each.adv, subject.image))
  value = {}
  for name in ('highest', 'default', 'bfloat16'):
    with jax.default_matmul_precision(name):
      flags = [margins(logits(subject, x), subject.label) < 0 for x in images]
    value[name] = 100 * np.mean(np.all(flags, axis=0))
  change = max(value.values()) - min(value.values())
  level = grade('precision changes', change, 100 / len(subject.label))
  return check('precision', value, level)


def box(
  *each: tuple[Subject, dict[str, Attacked]], norm: str, epsilon: float
) -> Check:
  """Whether adversarial images are in the ball and in [0, 1], in float64.

  Args:
    *each: model and images with what attacks left of them, by name.
    norm: 'linf', 'l2' or 'l1'.
    epsilon: radius in pixel range 0-1.
  """
  order = {'linf': np.inf, 'l2': 2, 'l1': 1}[norm]
  # One part in a million, and half a float32 spacing at 1 for each pixel.
  pixels = each[0][0].image[0].size
  rounding = {'linf': 1, 'l2': np.sqrt(pixels), 'l1': pixels}[norm] * 2.0**-24
  allowed = epsilon * (1 + 1e-6) + rounding
  value = {'beyond epsilon': 0.0, 'beyond [0, 1]': 0.0, 'not finite': 0.0}
  found = [(subject, one) for subject, part in each for one in part.values()]
  for subject, one in found:
    there = has_image(one)
    if one.adv is None or not there.any():
      continue
    x = one.adv[there].astype(np.float64)
    image = subject.image[there].astype(np.float64)
    value['not finite'] += np.sum(~np.isfinite(x))
    x = np.where(np.isfinite(x), x, image)
    length = np.linalg.norm((x - image).reshape(len(x), -1), order, axis=1)
    for key, excess in (
      ('beyond epsilon', length.max() - allowed),
      ('beyond [0, 1]', max(-x.min(), x.max() - 1)),
    ):
      value[key] = max(value[key], excess)
  return check('box', value, *(grade('outside', v) for v in value.values()))


def rescoring(*each: tuple[Subject, dict[str, Attacked]]) -> Check:
  """Whether adversarial images, scored again, give the same flags.

  Attacks that stop at the decision boundary leave ties, which rounding may
  turn; they are counted apart.

  Args:
    *each: model and images with what attacks left of them, by name.
  """
  value = {'images': 0, 'flags differ': 0, 'borderline flags differ': 0}
  for subject, attacked in each:
    clean = margins(logits(subject, subject.image), subject.label) < 0
    for one in attacked.values():
      there = has_image(one)
      if one.adv is None or not there.any():
        continue
      logit = logits(subject, one.adv[there])
      margin = margins(logit, subject.label[there])
      differ = (clean[there] & (margin < 0)) != one.correct[there]
      tie = np.abs(margin) <= LIMITS[_RULE].red * np.nanmax(np.abs(logit))
      value['images'] += len(margin)
      value['flags differ'] += np.sum(differ & ~tie)
      value['borderline flags differ'] += np.sum(differ & tie)
  levels = [grade(key, value[key]) for key in tuple(value)[1:]]
  return check('rescoring', value, *levels)
