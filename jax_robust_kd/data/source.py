"""Finds a data set by name and cuts it into train, validation and test."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jax_robust_kd.core import UserError
from jax_robust_kd.data.files import Raw, read_digits, read_folder, read_npz
from jax_robust_kd.data.split import Split, statistics
from jax_robust_kd.data.tfds_source import read_tfds


class Dataset(NamedTuple):
  """A data set in host memory.

  Attributes:
    train: what is trained on.
    val: the last of the original training images, never trained on.
    test: looked at once, after training.
    num_classes: K.
    class_names: [K].
    mean: of each channel, in units of [0, 1], for the model's normalization.
    std: the same.
    name: as it was asked for.
  """

  train: Split
  val: Split
  test: Split
  num_classes: int
  class_names: tuple[str, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  name: str


class DatasetInfo(NamedTuple):
  """What is known of a data set before it is read.

  Attributes:
    mean: of each channel of the whole training split, in units of [0, 1].
    std: the same.
    val_size: how many training images are held out unless told otherwise.
    train_split: name of the TFDS split; '' if it is not from TFDS.
    test_split: the same.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  val_size: int
  train_split: str = 'train'
  test_split: str = 'test'


# 1,024 validation images as Gowal et al. 2020 (arXiv:2010.03593).
DATASETS: dict[str, DatasetInfo] = {
  'digits': DatasetInfo((0.3054,), (0.3758,), 197, '', ''),
  'cifar10': DatasetInfo(
    (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 1024
  ),
  'cifar100': DatasetInfo(
    (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), 1024
  ),
  'svhn_cropped': DatasetInfo(
    (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), 1024
  ),
}


def load(
  name: str,
  data_dir: str = '',
  val_size: int = 0,
  num_train: int = 0,
  train_split: str = '',
  test_split: str = '',
) -> Dataset:
  """Reads a whole data set into memory.

  Args:
    name: 'digits' (embedded), 'npz:FILE' or FILE.npz (see `files.read_npz`), an
      image folder (see `files.read_folder`), or any image classification set of
      TFDS by its name.
    data_dir: of TFDS; '' is TFDS_DATA_DIR or TFDS' default.
    val_size: this many images, the last of the training split, are held out
      for validation; 0 is the default of the set, for unknown sets 1,024 but
      at most a tenth.
    num_train: train on the first images only, of those not held out; 0 is all.
    train_split: TFDS split instead of the set's own, as 'train[:40000]'.
    test_split: the same, as 'train[40000:]'.

  Raises:
    UserError: there is no such set, it is damaged, or a size does not fit it.
  """
  info = DATASETS.get(name)
  raw = _read(name, data_dir, train_split, test_split)
  _check_sizes(name, raw)
  train, val = _hold_out(raw.train, val_size, info)
  # Of all the training images: a small num_train must not change the model.
  mean, std = (info.mean, info.std) if info else statistics(train.image)
  return Dataset(
    train=_first(train, num_train),
    val=val,
    test=raw.test,
    num_classes=len(raw.class_names),
    class_names=raw.class_names,
    mean=mean,
    std=std,
    name=name,
  )


def _read(name: str, data_dir: str, train_split: str, test_split: str) -> Raw:
  reader = _find_reader(name)
  if reader is None:
    default = DATASETS.get(name, DatasetInfo((), (), 0))
    return read_tfds(
      name,
      data_dir,
      train_split or default.train_split,
      test_split or default.test_split,
    )
  for key, value in (('train_split', train_split), ('test_split', test_split)):
    if value:
      raise UserError(
        f'data.{key}={value!r} is for TFDS sets only; data.name={name!r} is '
        'not one, so leave it empty'
      )
  return reader()


def _find_reader(name: str):
  """Returns () -> Raw, or None for a TFDS name."""
  if not name:
    raise UserError(
      'data.name is empty; use one of '
      f'{", ".join(DATASETS)}, a TFDS name, npz:FILE or a folder'
    )
  if name == 'digits':
    return read_digits
  if name in DATASETS:
    return None
  path = name.removeprefix('npz:')
  if path != name or name.endswith('.npz'):
    return lambda: read_npz(path)
  # A TFDS name may hold a slash, but does not begin like a path.
  if name.startswith(('.', '/', '~')) or Path(name).is_dir():
    return lambda: read_folder(name)
  return None


def _check_sizes(name: str, raw: Raw) -> None:
  one, other = raw.train.image.shape[1:], raw.test.image.shape[1:]
  if one != other:
    raise UserError(
      f'data.name={name!r}: training images are {one}, test images {other} '
      '(height, width, channels); bring all to one size'
    )


def _hold_out(
  train: Split, val_size: int, info: DatasetInfo | None
) -> tuple[Split, Split]:
  """Cuts the last `val_size` images off."""
  total = len(train.label)
  if val_size < 0:
    raise UserError(f'data.val_size={val_size} is negative; use 0 or more')
  size = val_size or (info.val_size if info else min(1024, total // 10)) or 1
  if size >= total:
    raise UserError(
      f'data.val_size={size} leaves nothing of {total} training images; use '
      'a smaller one'
    )
  label = train.label
  if np.all(np.diff(label) >= 0) and label[0] != label[-1]:
    raise UserError(
      'the training images are sorted by class, so the last of them cannot '
      'serve as validation; shuffle them'
    )
  cut = total - size
  return (
    Split(train.image[:cut], label[:cut]),
    Split(train.image[cut:], label[cut:]),
  )


def _first(train: Split, num_train: int) -> Split:
  if num_train < 0 or num_train > len(train.label):
    raise UserError(
      f'data.num_train={num_train}, but there are {len(train.label)} '
      'training images that are not held out; 0 takes all'
    )
  count = num_train or len(train.label)
  return Split(train.image[:count], train.label[:count])
