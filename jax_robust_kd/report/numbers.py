"""Numbers of a report: intervals, classes, confusion, which images are shown.

An image's margin is its largest wrong logit minus the right one; below 0 it is
classified correctly.
"""

from typing import NamedTuple

import numpy as np

from jax_robust_kd.evaluation.evaluate import interval

ROW = 3  # strips of each kind


class ClassAccuracy(NamedTuple):
  """Accuracy by class, in percent.

  Attributes:
    images: [K] number of images of each class.
    clean: [K], NaN where a class has no image.
    robust: [K], under every attack.
    worst: the lowest robust accuracy of a class.
    worst_class: its number.
    worst_three: the mean of the three lowest.
  """

  images: np.ndarray
  clean: np.ndarray
  robust: np.ndarray
  worst: float
  worst_class: int
  worst_three: float


def by_class(
  label: np.ndarray, clean: np.ndarray, robust: np.ndarray, num_classes: int
) -> ClassAccuracy:
  """Returns accuracy by class, with the worst one and the mean of three.

  Args:
    label: [N] integers.
    clean: [N] bool.
    robust: [N] bool.
    num_classes: K.

  >>> found = by_class(np.array([0, 0, 1]), np.ones(3, bool),
  ...                  np.array([True, False, True]), 2)
  >>> found.worst, found.worst_class, found.worst_three
  (50.0, 0, 75.0)
  """
  count = np.bincount(label, minlength=num_classes)
  with np.errstate(invalid='ignore'):
    clean, robust = (
      100 * np.bincount(label, flags, minlength=num_classes) / count
      for flags in (clean, robust)
    )
  lowest = np.sort(robust[count > 0])[:3]
  return ClassAccuracy(
    count,
    clean,
    robust,
    float(lowest[0]),
    int(np.nanargmin(robust)),
    float(lowest.mean()),
  )


def confusion(
  label: np.ndarray, predicted: np.ndarray, num_classes: int
) -> np.ndarray:
  """Returns [K, K] counts: rows are true classes, columns predicted ones."""
  table = np.zeros((num_classes, num_classes), int)
  np.add.at(table, (label, predicted), 1)
  return table


def percent_interval(correct: np.ndarray) -> tuple[float, float]:
  """Returns the 95 % Wilson interval of a share, in percent."""
  low, high = interval(int(correct.sum()), len(correct))
  return 100 * low, 100 * high


def choose_strips(
  clean: np.ndarray, margin: np.ndarray
) -> dict[str, np.ndarray]:
  """Chooses images to show, by a rule that leaves nothing to choose.

  Of the images that are correct without attack: those with the smallest
  distance of the margin to 0, and those around its median, among the kept ones
  (margin below 0 under the worst attack) and among the broken ones.

  Args:
    clean: [N] bool, correct without attack.
    margin: [N] largest margin over the attacks, NaN where not attacked.

  Returns:
    Kind -> rows, at most three of each.
  """
  chosen = {}
  asked = clean & np.isfinite(margin)
  for kind, rows in (
    ('kept', np.flatnonzero(asked & (margin < 0))),
    ('broken', np.flatnonzero(asked & (margin >= 0))),
  ):
    rows = rows[np.argsort(np.abs(margin[rows]), kind='stable')]
    middle = max(len(rows) // 2 - ROW // 2, ROW)
    chosen[f'{kind}, lowest margin'] = rows[:ROW]
    chosen[f'{kind}, median margin'] = rows[middle : middle + ROW]
  return chosen


def differing_settings(config: dict, recipe: dict) -> list[tuple]:
  """Returns (key, of the run, of the recipe) where two configs differ."""
  one, other = _flat(config), _flat(recipe)
  return [
    (key, one.get(key, '(not set)'), other.get(key, '(not set)'))
    for key in sorted(one.keys() | other.keys())
    if one.get(key, '(not set)') != other.get(key, '(not set)')
  ]


def _flat(config: dict, prefix: str = '') -> dict:
  flat = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat |= _flat(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat
