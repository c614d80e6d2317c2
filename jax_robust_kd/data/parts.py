"""Cuts a data set into parts, and refuses parts that cannot be meant."""

import hashlib
import sys

import numpy as np

from jax_robust_kd.core import UserError
from jax_robust_kd.data.lazy import Lazy
from jax_robust_kd.data.split import Split

_SAMPLE = 1000  # labels of a set on disk that are looked at
_DARK = 32  # of 255; no set of images is darker throughout
_OVERLAP = 0.05  # share of the test images that may be training images


def select(split: Split, rows: np.ndarray) -> Split:
  """Returns rows [n] of a split; what is on disk stays there."""

  def choose(values):
    if isinstance(values, Lazy):
      return Lazy(values.stream, values.rows[rows], values.labels)
    return values[rows]

  return Split(choose(split.image), choose(split.label))


def sample(total: int) -> np.ndarray:
  """Returns places spread over all images of a set on disk."""
  return np.linspace(0, total - 1, min(total, _SAMPLE)).astype(int)


def hold_out(train: Split, size: int, how: str) -> tuple[Split, Split]:
  """Returns training and validation images.

  Args:
    train: all training images.
    size: how many are for validation.
    how: 'last' takes the last of them, 'stratified' a fixed random draw with
      each class in proportion.

  Raises:
    UserError: nothing, or nothing of a class, would be left; or the last
      images are not like the others.
  """
  total = len(train.label)
  if size < 0:
    raise UserError(f'data.val_size={size} is negative; use 0 or more')
  if size >= total:
    raise UserError(
      f'data.val_size={size} leaves nothing of {total} training images; use '
      'a smaller one'
    )
  if how == 'last':
    _refuse_sorted(train)
    cut = total - size
    return (
      Split(train.image[:cut], train.label[:cut]),
      Split(train.image[cut:], train.label[cut:]),
    )
  if how != 'stratified':
    raise UserError(f"data.val={how!r} is unknown; use 'stratified' or 'last'")
  if isinstance(train.label, Lazy):
    raise UserError(
      "data.val='stratified' needs all labels before training, and those of "
      "a streamed TFDS set are in its records; use data.val='last', or raise "
      'data.memory_gb'
    )
  order = stratified_order(train.label)
  if size > total - len(np.unique(train.label)):
    raise UserError(
      f'data.val_size={size} leaves some class without one of {total} '
      'training images; use a smaller one'
    )
  return select(train, order[size:]), select(train, order[:size])


def stratified_order(label: np.ndarray) -> np.ndarray:
  """Returns a fixed random order in which each class is spread evenly, [N].

  So its beginning has each class in proportion; one image of each class comes
  at the end.

  Args:
    label: [N] integers.
  """
  order = np.random.default_rng(0).permutation(len(label))
  drawn = label[order]
  place = np.empty(len(label))
  for name in np.unique(label):
    rows = np.flatnonzero(drawn == name)
    place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    place[rows[-1]] = 2
  return order[np.argsort(place, kind='stable')]


def _refuse_sorted(train: Split) -> None:
  total = len(train.label)
  lazy = isinstance(train.image, Lazy)
  label = train.label[sample(total)] if lazy else train.label
  blocks = 1 + np.count_nonzero(np.diff(label))
  if 1 < blocks == len(np.unique(label)):
    raise UserError(
      'the training images are sorted by class, so the last of them cannot '
      "serve as validation; set data.val='stratified'"
    )


def refuse_odd_parts(name: str, train: Split, test: Split) -> None:
  """Refuses one class, dark images, and test images that are trained on.

  Images that are on disk are not looked at.

  Args:
    name: of the set, for messages.
    train: all training images.
    test: test images.

  Raises:
    UserError: one sentence with the remedy.
  """
  parts = {'train': train, 'test': test}
  for part, split in parts.items():
    label = split.label
    if not isinstance(label, Lazy) and len(label) > 1 and np.ptp(label) == 0:
      raise UserError(
        f'data.name={name!r}: all {len(label)} {part} images have label '
        f'{label[0]}; give labels of two or more classes'
      )
  arrays = {p: s.image for p, s in parts.items() if _in_memory(s)}
  brightest = {part: int(image.max()) for part, image in arrays.items()}
  for part, value in brightest.items():
    if value < _DARK:
      raise UserError(
        f'data.name={name!r}: the brightest {part} pixel is {value} of 255; '
        'scale uint8 images to 0-255 and float images to [0, 1]'
      )
  if len(arrays) == 2:
    low, high = sorted(brightest, key=brightest.__getitem__)
    if 4 * brightest[low] < brightest[high]:
      raise UserError(
        f'data.name={name!r}: {low} pixels go up to {brightest[low]} and '
        f'{high} pixels up to {brightest[high]} of 255; bring both to one range'
      )
    _refuse_overlap(name, train.image, test.image)


def _in_memory(split: Split) -> bool:
  return not isinstance(split.image, Lazy)


def _refuse_overlap(name: str, train: np.ndarray, test: np.ndarray) -> None:
  def digests(images):
    return [
      hashlib.blake2b(x.tobytes(), digest_size=16).digest() for x in images
    ]

  known = set(digests(train))
  shared = sum(digest in known for digest in digests(test))
  said = f'{shared} of {len(test)} test images are training images too'
  if shared > _OVERLAP * len(test):
    raise UserError(f'data.name={name!r}: {said}; take them out of one part')
  if shared:
    print(f'{name}: {said}', file=sys.stderr)
