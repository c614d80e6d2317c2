"""Images and labels, and what must be true of them."""

from typing import Any, NamedTuple

import numpy as np

from jax_robust_kd.core import UserError


class Split(NamedTuple):
  """One part of a data set: arrays, or `lazy.Lazy` ones that are on disk."""

  image: Any  # [N, H, W, C] uint8
  label: Any  # [N] int32, in [0, num_classes)


def make_split(where: str, image: np.ndarray, label: np.ndarray) -> Split:
  """Checks and converts raw arrays.

  Args:
    where: what to call these arrays in a message.
    image: [N, H, W, C], uint8, or float in [0, 1]. Floats are rounded to the
      nearest of the 256 values of uint8, a change of up to 1/510.
    label: [N], integers from 0.

  Raises:
    UserError: no images, wrong rank, type or range, or lengths that differ.
  """
  if image.ndim != 4:
    raise UserError(
      f'{where}: the images have shape {image.shape}; use [images, height, '
      'width, channels]'
    )
  if not image.size:
    raise UserError(f'{where}: there are no images; it has {image.shape}')
  _refuse_channels_first(where, image.shape, len(label))
  if label.ndim != 1:
    raise UserError(
      f'{where}: the labels have shape {label.shape}; use one integer per image'
    )
  if len(image) != len(label):
    raise UserError(
      f'{where}: {len(image)} images but {len(label)} labels; each image '
      'needs one label'
    )
  return Split(_to_uint8(where, image), _to_int32(where, label))


def _refuse_channels_first(where: str, shape: tuple, num_labels: int) -> None:
  count, height, width, channels = shape
  if channels > 4 and height < min(width, channels):
    raise UserError(
      f'{where}: the images have shape {shape}, which looks like [images, '
      'channels, height, width]; give image.transpose(0, 2, 3, 1)'
    )
  if count != num_labels == channels:
    raise UserError(
      f'{where}: the images have shape {shape}, which looks like [height, '
      'width, channels, images]; give image.transpose(3, 0, 1, 2)'
    )


def _to_uint8(where: str, image: np.ndarray) -> np.ndarray:
  if image.dtype == np.uint8:
    return image
  if not np.issubdtype(image.dtype, np.floating):
    raise UserError(
      f'{where}: the images are {image.dtype}; use uint8, or float in [0, 1]'
    )
  low, high = float(image.min()), float(image.max())
  if not (low >= 0 and high <= 1):  # written so that NaN fails too
    raise UserError(
      f'{where}: the float images range over [{low:g}, {high:g}]; scale '
      'them to [0, 1], or use uint8'
    )
  return np.rint(image.astype(np.float32) * 255).astype(np.uint8)


def _to_int32(where: str, label: np.ndarray) -> np.ndarray:
  if not np.issubdtype(label.dtype, np.integer):
    raise UserError(
      f'{where}: the labels are {label.dtype}; use integers from 0'
    )
  if label.min() < 0:
    raise UserError(
      f'{where}: there is a label {label.min()}; use integers from 0 (a '
      'split without labels cannot be used)'
    )
  if label.max() > np.iinfo(np.int32).max:
    raise UserError(f'{where}: there is a label {label.max()}, too large')
  return label.astype(np.int32)


def check_range(where: str, split: Split, num_classes: int) -> None:
  """Checks that every label names a class.

  Raises:
    UserError: a label is too large.
  """
  if split.label.max() >= num_classes:
    raise UserError(
      f'{where}: there is a label {split.label.max()}, but only '
      f'{num_classes} classes (0 to {num_classes - 1})'
    )


def check_every_class(where: str, split: Split, names: tuple[str, ...]) -> None:
  """Checks that every class has an image.

  Raises:
    UserError: naming the first class that has none.
  """
  count = np.bincount(split.label, minlength=len(names))
  if not count.all():
    raise UserError(
      f'{where}: class {names[int(count.argmin())]!r} has no images; '
      'number the classes without gaps'
    )


def statistics(image: np.ndarray) -> tuple[tuple, tuple]:
  """Returns mean and standard deviation of each channel, in units of [0, 1].

  A standard deviation is at least 1/255, so that one may divide by it.

  Args:
    image: [N, H, W, C] uint8.
  """
  value = np.arange(256) / 255
  mean, std = [], []
  for channel in range(image.shape[-1]):
    # Counting the 256 values is exact, and needs no float copy of the images.
    count = np.bincount(image[..., channel].ravel(), minlength=256)
    center = count @ value / count.sum()
    spread = np.sqrt(count @ (value - center) ** 2 / count.sum())
    mean.append(float(center))
    std.append(max(float(spread), 1 / 255))
  return tuple(mean), tuple(std)
