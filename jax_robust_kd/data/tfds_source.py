"""Reads prepared TFDS sets without TensorFlow (ArrayRecord)."""

import functools
import importlib.util
import os
from typing import Any

import numpy as np

from jax_robust_kd.core import UserError
from jax_robust_kd.data.lazy import Encoded, Reading, Stream, lazy_split
from jax_robust_kd.data.npz import Raw
from jax_robust_kd.data.split import Split
from jax_robust_kd.data.tfds_prepare import prepare_set


def read_tfds(
  name: str,
  data_dir: str,
  train_split: str,
  test_split: str,
  reading: Reading,
  train_name: str = '',
  archive_dir: str = '',
) -> Raw:
  """Finds an image classification set of TensorFlow Datasets.

  Reading needs no TensorFlow. Only a set that is not prepared yet is downloaded
  and prepared, once, which for most of TFDS' own sets needs it.

  Args:
    name: as TFDS knows it, 'cifar10' or 'mnist_corrupted/spatter'.
    data_dir: where TFDS keeps its sets; '' is the environment variable
      TFDS_DATA_DIR, or TFDS' own default.
    train_split: a TFDS split, as 'train' or 'train[:40000]'.
    test_split: the same, for testing.
    reading: how.
    train_name: the set to train on, for sets that have test images only; '' is
      `name`.
    archive_dir: as for `tfds_prepare.prepare_set`.

  Raises:
    UserError: a package, the set or a split is missing, the download failed,
      or the set is not one of 8-bit images with one label each.
  """
  train_name = train_name or name
  _check_packages(name)
  root = data_dir or os.environ.get('TFDS_DATA_DIR') or ''
  trained = tested = _open_set(train_name, root, reading, archive_dir)
  if train_name != name:
    tested = _open_set(name, root, reading, archive_dir)
  train = _find_split(train_name, root, trained, train_split, reading)
  test = _find_split(name, root, tested, test_split, reading)
  if trained is tested:
    _check_disjoint(trained.info.splits, train_split, test_split)
  one, other = (_class_names(builder.info) for builder in (trained, tested))
  if len(one) != len(other):
    raise UserError(
      f'{train_name} has {len(one)} classes, but {name} has {len(other)}'
    )
  return Raw(train, test, one, str(tested.data_dir))


def _open_set(name: str, root: str, reading: Reading, archive_dir: str) -> Any:
  """Returns the TFDS builder of a set, downloaded and prepared if need be."""
  builder = _make_builder(name, root)
  # Before a download, which may be of hundreds of gigabytes.
  _check_features(name, builder.info, reading)
  if not builder.is_prepared():
    prepare_set(name, builder, archive_dir)
    builder = _make_builder(name, root)
  return builder


def _check_packages(name: str) -> None:
  packages = ('tensorflow_datasets', 'array_record', 'PIL')
  missing = [p for p in packages if importlib.util.find_spec(p) is None]
  if missing:
    raise UserError(
      f'data.name={name!r} is a TFDS set, and reading it needs '
      f'{", ".join(missing)}; run: pip install tensorflow-datasets '
      'array-record pillow importlib_resources'
    )


def _make_builder(name: str, root: str) -> Any:
  import tensorflow_datasets as tfds  # slow to import, and not always there

  place = root or 'the default folder of TFDS'
  try:
    return tfds.builder(name, data_dir=root or None)
  except tfds.core.DatasetNotFoundError:
    raise UserError(
      f'data.name={name!r} is neither a known set, a .npz file, a folder nor a '
      f'TFDS set (looked in {place}); check its spelling'
    ) from None
  except Exception as error:  # a bad name, a damaged folder, a missing package
    raise UserError(
      f'data.name={name!r} could not be opened in {place} '
      f'({_first_line(error)}); check its name and data.data_dir'
    ) from None


def _keys(info: Any) -> tuple[str, str]:
  """Returns the names of the features that are image and label."""
  if len(info.supervised_keys or ()) == 2:
    return info.supervised_keys
  return 'image', 'label'


def _class_names(info: Any) -> tuple[str, ...]:
  return tuple(info.features[_keys(info)[1]].names)


def _check_features(name: str, info: Any, reading: Reading) -> None:
  import tensorflow_datasets as tfds

  features = dict(info.features.items())
  image: Any
  image, label = (features.get(key) for key in _keys(info))
  usable = isinstance(image, tfds.features.Image) and isinstance(
    label, tfds.features.ClassLabel
  )
  if not usable:
    raise UserError(
      f'data.name={name!r} is not an image classification set: it has '
      f'{", ".join(features)}'
    )
  shape: Any = image.shape
  dtype: Any = image.np_dtype
  if dtype != np.uint8 or shape[-1] is None:
    raise UserError(
      f'data.name={name!r} has images of shape {shape} and type {dtype}; '
      'only 8-bit images can be read here'
    )
  if None in shape and not reading.image_size:
    raise UserError(
      f'data.name={name!r} has images of many sizes; set data.image_size, for '
      'example to 224'
    )


def _find_split(
  name: str, root: str, builder: Any, split: str, reading: Reading
) -> Split:
  """Checks that there is such a split; reads no image of it."""
  info = builder.info
  try:
    size = len(_open_split(name, root, split))
  except NotImplementedError:
    raise UserError(
      f'data.name={name!r} in {builder.data_dir} is stored as '
      f'{info.file_format.value}, which only TensorFlow reads; '
      "prepare it again with file_format='array_record'"
    ) from None
  except ValueError as error:
    raise UserError(
      f'data.name={name!r} has no split {split!r} '
      f'({_first_line(error)}); it has {", ".join(info.splits)}: set '
      'data.train_split and data.test_split'
    ) from None
  if not size:
    raise UserError(f'{name} ({split}): there are no images')
  shape: Any = info.features[_keys(info)[0]].shape
  if reading.image_size:
    shape = (reading.image_size, reading.image_size, shape[-1])
  read = functools.partial(_read_records, name, root, split)
  stream = Stream(read, shape, len(_class_names(info)), reading)
  return lazy_split(stream, size)


@functools.lru_cache(maxsize=8)  # each process opens a split once
def _open_split(name: str, root: str, split: str) -> Any:
  import tensorflow_datasets as tfds

  builder = _make_builder(name, root)
  # Pictures that are not used (masks, say) are not decoded; ours by Pillow.
  skip = {
    key: tfds.decode.SkipDecoding()
    for key, feature in builder.info.features.items()
    if isinstance(feature, tfds.features.Image)
  }
  return builder.as_data_source(split, decoders=skip)


def _read_records(
  name: str, root: str, split: str, rows: np.ndarray
) -> list[Encoded]:
  source = _open_split(name, root, split)
  image_key, label_key = _keys(source.dataset_info)
  places = [int(row) for row in rows]
  names = [f'{name} {split}, record {place}' for place in places]
  try:
    records = source.__getitems__(places)
  except (RuntimeError, OSError, ValueError) as error:
    if len(places) == 1:
      return [Encoded(names[0], b'', 0, _first_line(error))]
    # One of them is damaged: one by one, the others can be read.
    return [_read_records(name, root, split, np.array([p]))[0] for p in places]
  found = []
  for where, record in zip(names, records, strict=True):
    image, label = record[image_key], record[label_key]
    if image is None or label is None:  # so reads a file that was cut short
      found.append(Encoded(where, b'', 0, 'the record is empty'))
    else:
      found.append(Encoded(where, image, int(label)))
  return found


def _check_disjoint(infos: Any, train_split: str, test_split: str) -> None:
  """Checks that no image is both trained and tested on.

  Raises:
    UserError: the two splits share images.
  """
  from tensorflow_datasets.core import splits

  def rows(split: str) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    spec = splits.AbstractSplit.from_spec(split)
    for part in spec.to_absolute(infos):
      every = range(infos[part.splitname].num_examples)
      chosen = every[part.from_ or 0 : part.to]
      found.setdefault(part.splitname, set()).update(chosen)
    return found

  train, test = rows(train_split), rows(test_split)
  shared = sum(len(train[key] & test[key]) for key in train if key in test)
  if shared:
    raise UserError(
      f'data.train_split={train_split!r} and data.test_split={test_split!r} '
      f'share {shared} images; make them disjoint'
    )


def _first_line(error: BaseException) -> str:
  return str(error).strip().split('\n')[0][:200] or type(error).__name__
