"""Reads data sets from files: the embedded digits, .npz, image folders."""

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

_DIGITS = Path(__file__).with_name('digits.npz')
_DIGITS_TRAIN = 1297
_SUFFIXES = ('.png', '.jpg', '.jpeg')


class Raw(NamedTuple):
  """A data set as read, before validation images are held out."""

  train: Split
  test: Split
  class_names: tuple[str, ...]


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
  arrays = _load_npz(Path(path).expanduser())
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


def read_folder(path: str) -> Raw:
  """Reads PATH/train/CLASS/* and PATH/test/CLASS/*, .png or .jpg of one size.

  Classes are numbered in the sorted order of their folders' names. The images
  of each part are put in a fixed random order (NumPy's default_rng(0)), since
  sorted by class the last of them could not serve as validation.

  Raises:
    UserError: a folder is missing or empty, train and test have different
      classes, an image is damaged, or images differ in size.
  """
  root = Path(path).expanduser()
  classes = {part: _class_names(root, part) for part in ('train', 'test')}
  names = classes['train']
  if names != classes['test']:
    differing = sorted(set(names) ^ set(classes['test']))
    raise UserError(
      f'{path}: train and test have different classes, among them '
      f'{differing[0]!r}; give both the same folders'
    )
  images: list[np.ndarray] = []
  labels, counts = [], []
  for part in ('train', 'test'):
    for label, name in enumerate(names):
      found = _image_files(root / part / name)
      images += [_read_image(file) for file in found]
      labels += [label] * len(found)
    counts.append(len(labels))
  whole = Split(_stack(path, images), np.array(labels, np.int32))
  train, test = (_shuffle(part) for part in _cut(whole, counts[0]))
  return Raw(train, test, names)


def _cut(split: Split, size: int) -> tuple[Split, Split]:
  return (
    Split(split.image[:size], split.label[:size]),
    Split(split.image[size:], split.label[size:]),
  )


def _shuffle(split: Split) -> Split:
  order = np.random.default_rng(0).permutation(len(split.label))
  return Split(split.image[order], split.label[order])


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


def _class_names(root: Path, part: str) -> tuple[str, ...]:
  folder = root / part
  if not folder.is_dir():
    raise UserError(
      f'data.name: there is no folder {folder}; an image folder holds '
      'train/CLASS/ and test/CLASS/'
    )
  names = sorted(
    entry.name
    for entry in folder.iterdir()
    if entry.is_dir() and not entry.name.startswith('.')
  )
  if len(names) < 2:
    raise UserError(
      f'{folder}: it holds {len(names)} folders; it needs one for each of '
      'two or more classes'
    )
  return tuple(names)


def _image_files(folder: Path) -> list[Path]:
  found = sorted(
    file
    for file in folder.iterdir()
    if file.suffix.lower() in _SUFFIXES and not file.name.startswith('.')
  )
  if not found:
    raise UserError(
      f'{folder}: class {folder.name!r} has no images ({", ".join(_SUFFIXES)})'
    )
  return found


def _read_image(path: Path) -> np.ndarray:
  try:
    from PIL import Image  # only folders need it
  except ImportError:
    raise UserError(
      f'{path}: reading images needs Pillow; run: pip install pillow'
    ) from None
  try:
    with Image.open(path) as image:
      if image.mode[0] in 'IF':
        raise UserError(
          f'{path}: an image of mode {image.mode}; use 8 bits per channel'
        )
      grey = image.mode in ('1', 'L')
      pixels = np.asarray(image.convert('L' if grey else 'RGB'))
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
    raise UserError(
      f'{path}: the image is damaged ({e}); replace or remove it'
    ) from None
  return pixels.reshape(*pixels.shape[:2], -1)


def _stack(path: str, images: list[np.ndarray]) -> np.ndarray:
  sizes = sorted({image.shape[:2] for image in images})
  if len(sizes) > 1:
    raise UserError(
      f'{path}: images of different sizes, among them {sizes[0]} and '
      f'{sizes[-1]} (height, width); bring all to one size'
    )
  channels = max(image.shape[-1] for image in images)
  # Grey images among coloured ones become coloured.
  shape = (len(images), *sizes[0], channels)
  whole = np.empty(shape, np.uint8)
  for place, image in enumerate(images):
    whole[place] = image
  return whole
