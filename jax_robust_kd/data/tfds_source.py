"""Reads prepared TFDS sets without TensorFlow (ArrayRecord)."""

import importlib.util
import io
import os
import sys
import time
from typing import Any

import numpy as np

from jax_robust_kd.core import UserError
from jax_robust_kd.data.files import Raw
from jax_robust_kd.data.split import Split, check_range, make_split

_CHUNK = 1000  # records read at once


def read_tfds(
  name: str, data_dir: str, train_split: str, test_split: str
) -> Raw:
  """Reads an image classification set of TensorFlow Datasets.

  Reading needs no TensorFlow. Only a set that is not prepared yet is downloaded
  and prepared, once, which for TFDS' own sets needs it.

  Args:
    name: as TFDS knows it, 'cifar10' or 'mnist_corrupted/spatter'.
    data_dir: where TFDS keeps its sets; '' is the environment variable
      TFDS_DATA_DIR, or TFDS' own default.
    train_split: a TFDS split, as 'train' or 'train[:40000]'.
    test_split: the same, for testing.

  Raises:
    UserError: a package, the set or a split is missing, the download failed,
      or the set is not one of 8-bit images of one size with one label each.
  """
  _check_packages(name)
  builder = _make_builder(name, data_dir)
  # Before a download, which may be of hundreds of gigabytes.
  image_key, label_key = _check_features(name, builder.info)
  if not builder.is_prepared():
    _prepare(name, builder)
  train, test = (
    _read_split(name, builder, split, image_key, label_key)
    for split in (train_split, test_split)
  )
  names = tuple(builder.info.features[label_key].names)
  raw = Raw(train, test, names)
  _check_disjoint(builder.info.splits, train_split, test_split)
  for split, part in ((train_split, train), (test_split, test)):
    check_range(f'{name} ({split})', part, len(names))
  return raw


def _check_packages(name: str) -> None:
  packages = ('tensorflow_datasets', 'array_record', 'PIL')
  missing = [p for p in packages if importlib.util.find_spec(p) is None]
  if missing:
    raise UserError(
      f'data.name={name!r} is a TFDS set, and reading it needs '
      f'{", ".join(missing)}; run: pip install tensorflow-datasets '
      'array-record pillow importlib_resources'
    )


def _make_builder(name: str, data_dir: str) -> Any:
  import tensorflow_datasets as tfds  # slow to import, and not always there

  root = data_dir or os.environ.get('TFDS_DATA_DIR') or None
  place = root or 'the default folder of TFDS'
  try:
    return tfds.builder(name, data_dir=root)
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


def _prepare(name: str, builder: Any) -> None:
  """Downloads and prepares the set, once.

  Raises:
    UserError: TensorFlow is missing, or it failed.
  """
  if importlib.util.find_spec('tensorflow') is None:
    raise UserError(
      f'data.name={name!r} is not prepared in {builder.data_dir}, and the '
      'one-time preparation of a stock TFDS set needs TensorFlow (reading '
      'does not): run pip install "jax_robust_kd[prepare]" and start again, '
      'or set data.data_dir to where it is'
    )
  try:
    builder.download_and_prepare(file_format='array_record')
  except Exception as error:  # anything may fail in there: network, disk, TFDS
    raise UserError(
      f'data.name={name!r} could not be downloaded and prepared in '
      f'{builder.data_dir} ({_first_line(error)}); is the network there? '
      'Or set data.data_dir to where the set is'
    ) from None


def _check_features(name: str, info: Any) -> tuple[str, str]:
  """Returns the keys of image and label, after checking their types."""
  import tensorflow_datasets as tfds

  features = dict(info.features.items())
  image_key, label_key = 'image', 'label'
  if len(info.supervised_keys or ()) == 2:
    image_key, label_key = info.supervised_keys
  image: Any = features.get(image_key)
  label: Any = features.get(label_key)
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
  if None in shape or dtype != np.uint8:
    raise UserError(
      f'data.name={name!r} has images of shape {shape} and type '
      f'{dtype}; only 8-bit images of one size can be '
      'read here'
    )
  return image_key, label_key


def _read_split(
  name: str, builder: Any, split: str, image_key: str, label_key: str
) -> Split:
  import tensorflow_datasets as tfds

  features = builder.info.features
  # Pictures that are not used (masks, say) are not decoded; ours by Pillow.
  skip = {
    key: tfds.decode.SkipDecoding()
    for key, feature in features.items()
    if isinstance(feature, tfds.features.Image)
  }
  try:
    source = builder.as_data_source(split, decoders=skip)
    size = len(source)
  except NotImplementedError:
    raise UserError(
      f'data.name={name!r} in {builder.data_dir} is stored as '
      f'{builder.info.file_format.value}, which only TensorFlow reads; '
      "prepare it again with file_format='array_record'"
    ) from None
  except ValueError as error:
    raise UserError(
      f'data.name={name!r} has no split {split!r} '
      f'({_first_line(error)}); it has {", ".join(builder.info.splits)}: set '
      'data.train_split and data.test_split'
    ) from None
  image = np.empty((size, *features[image_key].shape), np.uint8)
  label = np.empty(size, np.int64)
  try:
    _fill(f'{name} ({split})', source, image_key, label_key, image, label)
  except (RuntimeError, OSError, SyntaxError, ValueError) as error:
    raise UserError(
      f'data.name={name!r}: split {split!r} in {builder.data_dir} is damaged '
      f'({_first_line(error)}); remove it and prepare it again'
    ) from None
  return make_split(f'{name} ({split})', image, label)


def _fill(
  where: str,
  source: Any,
  image_key: str,
  label_key: str,
  image: np.ndarray,
  label: np.ndarray,
) -> None:
  """Reads all records into `image` and `label`; says so if it takes long."""
  said = time.monotonic()
  for start in range(0, len(label), _CHUNK):
    places = range(start, min(start + _CHUNK, len(label)))
    records = source.__getitems__(list(places))
    for place, record in zip(places, records, strict=True):
      image[place] = _decode(record[image_key], image.shape[-1])
      label[place] = record[label_key]
    if time.monotonic() - said > 10:
      said = time.monotonic()
      print(f'reading {where}: {places[-1] + 1}/{len(label)}', file=sys.stderr)


def _decode(encoded: bytes, channels: int) -> np.ndarray:
  from PIL import Image

  with Image.open(io.BytesIO(encoded)) as image:
    mode = {1: 'L', 3: 'RGB', 4: 'RGBA'}[channels]
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
  return pixels.reshape(*pixels.shape[:2], channels)


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
