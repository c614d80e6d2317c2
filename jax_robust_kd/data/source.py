"""Finds a data set by name and cuts it into train, validation and test."""

from pathlib import Path
import sys
from typing import NamedTuple

import numpy as np

from jax_robust_kd.core import UserError
from jax_robust_kd.data.extra import Extra
from jax_robust_kd.data.folders import read_folder, read_tiny_imagenet
from jax_robust_kd.data.lazy import Lazy, Reading, into_memory
from jax_robust_kd.data.npz import Raw, read_digits, read_npz, read_object
from jax_robust_kd.data.parts import hold_out, refuse_odd_parts, sample
from jax_robust_kd.data.split import Split, statistics
from jax_robust_kd.data.tfds_source import read_tfds
from jax_robust_kd.runtime.imports import names_object


class Dataset(NamedTuple):
  """A data set, in host memory unless it is too large.

  Attributes:
    train: what is trained on.
    val: training images that are held out; always in memory.
    test: looked at once, after training.
    num_classes: K.
    class_names: [K].
    mean: of each channel, in units of [0, 1], for the model's normalization.
    std: the same.
    name: as it was asked for.
    extra: generated images to train on too, or None.
  """

  train: Split
  val: Split
  test: Split
  num_classes: int
  class_names: tuple[str, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  name: str
  extra: Extra | None = None


class DatasetInfo(NamedTuple):
  """What is known of a data set before it is read.

  Attributes:
    mean: of each channel of the whole training split, in units of [0, 1].
    std: the same.
    val_size: how many training images are held out unless told otherwise.
    train_split: name of the TFDS split; '' if it is not from TFDS.
    test_split: the same.
    train_name: the set to train on, if this one has test images only.
    image_size: side that images of many sizes are brought to.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  val_size: int
  train_split: str = 'train'
  test_split: str = 'test'
  train_name: str = ''
  image_size: int = 0


_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the customary ones

# 1,024 validation images as Gowal et al. 2020 (arXiv:2010.03593). A name with
# a slash (imagenet_resized/64x64) is looked up by what is before it.
DATASETS: dict[str, DatasetInfo] = {
  'digits': DatasetInfo((0.3054,), (0.3758,), 197, '', ''),
  'cifar10': DatasetInfo(*_CIFAR10, 1024),
  'cifar100': DatasetInfo(
    (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), 1024
  ),
  'svhn_cropped': DatasetInfo(
    (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), 1024
  ),
  'stl10': DatasetInfo((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713), 500),
  'cifar10_corrupted': DatasetInfo(*_CIFAR10, 1024, train_name='cifar10'),
  'imagenet2012': DatasetInfo(
    *_IMAGENET, 1024, test_split='validation', image_size=224
  ),
  'imagenet_resized': DatasetInfo(*_IMAGENET, 1024, test_split='validation'),
  'tiny_imagenet': DatasetInfo(
    (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), 1024, '', ''
  ),
}


def load(
  name: str,
  data_dir: str = '',
  val_size: int = 0,
  num_train: int = 0,
  train_split: str = '',
  test_split: str = '',
  reading: Reading | None = None,
  val: str = '',
) -> Dataset:
  """Finds a data set, and reads it into memory unless it is too large.

  Args:
    name: 'digits' (embedded), 'npz:FILE' or FILE.npz (see `npz.read_npz`), an
      image folder (see `folders.read_folder`), 'package.module:factory' (see
      `npz.read_object`), 'tiny_imagenet', or any image classification set of
      TFDS by its name.
    data_dir: of TFDS and Tiny-ImageNet; '' is TFDS_DATA_DIR or TFDS' default.
    val_size: how many training images are held out for validation; 0 is the
      default of the set, for unknown sets 1,024 but at most a tenth.
    num_train: train on the first images only, of those not held out; 0 is all.
    train_split: TFDS split instead of the set's own, as 'train[:40000]'.
    test_split: the same, as 'train[40000:]'.
    reading: how images on disk are read; None is `Reading()`.
    val: 'last' holds out the last training images, 'stratified' a fixed random
      draw with each class in proportion; '' is 'stratified' for .npz files and
      image folders and 'last' for all others.

  Raises:
    UserError: there is no such set, it is damaged, a size does not fit it, or
      its parts cannot be meant (see `parts.refuse_odd_parts`).
  """
  info = _info(name)
  reading = reading or Reading()
  raw = find(name, data_dir, train_split, test_split, reading)
  _check_sizes(name, raw)
  raw = _fit_memory(name, raw, reading)
  own = is_own(name)
  if own:
    refuse_odd_parts(name, raw.train, raw.test)
  total = len(raw.train.label)
  size = info.val_size if info else max(1, min(1024, total // 10))
  how = val or ('stratified' if own else 'last')
  train, val_part = hold_out(raw.train, val_size or size, how)
  # Of all the training images: a small num_train must not change the model.
  mean, std = (info.mean, info.std) if info else _statistics(train)
  return Dataset(
    train=_first(train, num_train),
    val=_in_memory(f'{name} (validation)', val_part),
    test=raw.test,
    num_classes=len(raw.class_names),
    class_names=raw.class_names,
    mean=mean,
    std=std,
    name=name,
  )


def _on_disk(split: Split) -> bool:
  return isinstance(split.image, Lazy)


def _fit_memory(name: str, raw: Raw, reading: Reading) -> Raw:
  """Reads a set from disk into memory unless it is too large for that."""
  lazy = _on_disk(raw.train)
  size = sum(float(np.prod(part.image.shape)) for part in raw[:2]) / 1e9
  if not lazy:
    return raw
  if size > reading.memory_gb:
    print(
      f'{name}: {size:.3g} GB of pixels, streamed from disk by '
      f'{reading.workers} worker processes',
      file=sys.stderr,
    )
    return raw
  return raw._replace(
    train=into_memory(f'{name} (train)', raw.train),
    test=into_memory(f'{name} (test)', raw.test, may_skip=False),
  )


def _in_memory(where: str, split: Split) -> Split:
  return into_memory(where, split) if _on_disk(split) else split


def _statistics(train: Split) -> tuple[tuple, tuple]:
  if _on_disk(train):
    lazy: Lazy = train.image
    some = Lazy(lazy.stream, lazy.rows[sample(len(lazy))])
    train = into_memory('a sample', Split(some, None))
  return statistics(train.image)


def _info(name: str) -> DatasetInfo | None:
  return DATASETS.get(name.partition('/')[0])


def find(
  name: str,
  data_dir: str,
  train_split: str,
  test_split: str,
  reading: Reading,
  archive_dir: str = '',
) -> Raw:
  """Finds a set; images that are files or records are not read yet.

  Args and errors are those of `load`, and `tfds_prepare.prepare_set`.
  """
  info = _info(name) or DatasetInfo((), (), 0)
  if not reading.image_size:
    reading = reading._replace(image_size=info.image_size)
  reader = _find_reader(name, data_dir, reading)
  if reader is None:
    return read_tfds(
      name,
      data_dir,
      train_split or info.train_split,
      test_split or info.test_split,
      reading,
      info.train_name,
      archive_dir,
    )
  for key, value in (('train_split', train_split), ('test_split', test_split)):
    if value:
      raise UserError(
        f'data.{key}={value!r} is for TFDS sets only; data.name={name!r} is '
        'not one, so leave it empty'
      )
  return reader()


def find_test(name: str, data_dir: str = '') -> Split:
  """Finds the test images of a set, as `load` does, and nothing else."""
  return find(name, data_dir, '', '', Reading()).test


def _find_reader(name: str, data_dir: str, reading: Reading):
  """Returns () -> Raw, or None for a TFDS name."""
  if not name:
    raise UserError(
      'data.name is empty; use one of '
      f'{", ".join(DATASETS)}, a TFDS name, npz:FILE or a folder'
    )
  if name == 'digits':
    return read_digits
  if name == 'tiny_imagenet':
    return lambda: read_tiny_imagenet(data_dir, reading)
  if not is_own(name):
    return None
  if names_object(name):
    return lambda: read_object(name)
  if name.startswith('npz:') or name.endswith('.npz'):
    return lambda: read_npz(name.removeprefix('npz:'))
  return lambda: read_folder(name, reading)


def is_own(name: str) -> bool:
  """Returns whether a name is that of a file, a folder or code of one's own."""
  if name in DATASETS:
    return False
  # A TFDS name may hold a slash, but does not begin like a path.
  like_path = name.startswith(('npz:', '.', '/', '~')) or names_object(name)
  return like_path or name.endswith('.npz') or Path(name).is_dir()


def _check_sizes(name: str, raw: Raw) -> None:
  one, other = raw.train.image.shape[1:], raw.test.image.shape[1:]
  if one != other:
    raise UserError(
      f'data.name={name!r}: training images are {one}, test images {other} '
      '(height, width, channels); bring all to one size'
    )


def _first(train: Split, num_train: int) -> Split:
  if num_train < 0 or num_train > len(train.label):
    raise UserError(
      f'data.num_train={num_train}, but there are {len(train.label)} '
      'training images that are not held out; 0 takes all'
    )
  count = num_train or len(train.label)
  return Split(train.image[:count], train.label[:count])
