"""Reads sets of arrays: the embedded digits, .npz, and one's own."""

from pathlib import Path
from typing import NamedTuple
import zipfile
import zlib

import numpy as np

from jax_robust_kd.core import UserError
from jax_robust_kd.data.split import (
  Split,
  check_every_class,
  check_range,
  make_split,
)
from jax_robust_kd.runtime.imports import load_object

_DIGITS = Path(__file__).with_name('digits.npz')
_DIGITS_TRAIN = 1297


class Raw(NamedTuple):
  """A data set as found, before validation images are held out."""

  train: Split
  test: Split
  class_names: tuple[str, ...]
  folder: str = ''  # of the set's files, if it has one


def read_digits() -> Raw:
  """Reads the embedded digits [1797, 8, 8, 1]: 1,297 to train, 500 to test.

  Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, 1998. Pixels
  are round(v * 255 / 16) of the original 0..16. The file's `order` is a fixed
  permutation, since the original order follows the writers.
  """
  with np.load(_DIGITS) as file:
    order = file['order']
    whole = make_split('digits', file['image'][order], file['label'][order])
  names = tuple(str(digit) for digit in range(10))
  return Raw(*_cut(whole, _DIGITS_TRAIN), names)


def read_npz(path: str) -> Raw:
  """Reads a data set from one .npz file.

  Its keys are train_image, train_label, test_image, test_label; or image and
  label, of which the last fifth of a fixed permutation (NumPy's default_rng(0))
  is for testing. See `make_split` for the types. The optional key class_names
  holds one string per class.

  Raises:
    UserError: the file is missing or damaged, a key is missing, an array is
      not what it should be, or a class has no training images.
  """
  return _from_arrays(path, _load_npz(Path(path).expanduser()))


def read_object(spec: str) -> Raw:
  """Reads a data set of one's own, 'package.module:factory'.

  `factory()` returns a dict of arrays with the keys of `read_npz`, whose errors
  it shares.
  """
  arrays = load_object('data.name', spec)()
  if not isinstance(arrays, dict):
    raise UserError(
      f'data.name={spec!r} returns a {type(arrays).__name__}; return a dict of '
      'arrays: train_image, train_label, test_image, test_label'
    )
  return _from_arrays(spec, {k: np.asarray(v) for k, v in arrays.items()})


def _from_arrays(path: str, arrays: dict[str, np.ndarray]) -> Raw:
  parts = ('train_image', 'train_label', 'test_image', 'test_label')
  if all(key in arrays for key in parts):
    train, test = (
      make_split(f'{path} ({p})', arrays[f'{p}_image'], arrays[f'{p}_label'])
      for p in ('train', 'test')
    )
  elif 'image' in arrays and 'label' in arrays:
    whole = make_split(path, arrays['image'], arrays['label'])
    order = np.random.default_rng(0).permutation(len(whole.label))
    test_size = max(1, len(order) // 5)
    whole = Split(whole.image[order], whole.label[order])
    train, test = _cut(whole, len(order) - test_size)
  else:
    raise UserError(
      f'{path}: it has the keys {sorted(arrays)}; it needs {", ".join(parts)}'
      ', or image and label'
    )
  names = arrays.get('class_names')
  if names is None:
    names = range(int(train.label.max(initial=0)) + 1)
  raw = Raw(train, test, tuple(str(name) for name in names))
  _check_classes(path, raw)
  return raw


def _cut(split: Split, size: int) -> tuple[Split, Split]:
  return (
    Split(split.image[:size], split.label[:size]),
    Split(split.image[size:], split.label[size:]),
  )


def _load_npz(path: Path) -> dict[str, np.ndarray]:
  if not path.is_file():
    raise UserError(f'data.name: there is no file {path}')
  damaged = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
  try:
    with np.load(path, allow_pickle=False) as file:
      # A plain .npy array loads too, but has no keys.
      return {key: file[key] for key in file.files}
  except (*damaged, AttributeError, TypeError, NotImplementedError) as error:
    raise UserError(
      f'{path}: not a readable .npz file of plain arrays ({error}); write '
      'it again with numpy.savez'
    ) from None


def _check_classes(path: str, raw: Raw) -> None:
  if len(raw.class_names) < 2:
    raise UserError(f'{path}: there is only one class; classify two or more')
  check_range(f'{path} (train)', raw.train, len(raw.class_names))
  check_range(f'{path} (test)', raw.test, len(raw.class_names))
  check_every_class(f'{path} (train)', raw.train, raw.class_names)
