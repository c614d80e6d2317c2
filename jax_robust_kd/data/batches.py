"""Batches of a split in memory; a pure function of seed and step."""

from collections.abc import Iterator

import numpy as np

from jax_robust_kd.core import UserError
from jax_robust_kd.data.split import Split


def num_batches(n: int, batch_size: int) -> int:
  """Returns how many full batches an epoch of `n` images has.

  Raises:
    UserError: there is not one.
  """
  if batch_size < 1 or n < batch_size:
    raise UserError(
      f'data.batch_size={batch_size} does not fit {n} training images; use '
      f'1 to {n}'
    )
  return n // batch_size


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
  """Returns the order of `n` images in an epoch: a permutation, [n] int64."""
  return np.random.default_rng((seed, epoch)).permutation(n)


def train_batches(
  split: Split,
  *,
  batch_size: int,
  seed: int,
  start_step: int,
  process_index: int = 0,
  process_count: int = 1,
  num_local_devices: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields training batches without end, from any step on.

  Step s takes batch s mod m of epoch s div m, where m = `num_batches`; the
  images of an epoch that do not fill a batch are left out of it (others in the
  next epoch). Nothing is replayed, so starting late costs nothing. The global
  batch is cut into contiguous parts, first by process and then by device.

  Args:
    split: what to draw from.
    batch_size: images of all devices of all processes together.
    seed: of the order of the images.
    start_step: the first step.
    process_index: which part of each batch to yield.
    process_count: how many processes share a batch.
    num_local_devices: of this process.

  Yields:
    With leading dimensions [local devices, images per device]: 'image' uint8
    [..., H, W, C], 'label' int32, and 'index' int32, the place of each image
    in the global batch.

  Raises:
    UserError: the batch does not divide over the devices, or is too large.
  """
  _check_divides('data', batch_size, process_count * num_local_devices)
  per_epoch = num_batches(len(split.label), batch_size)
  local = batch_size // process_count
  place = np.arange(local, dtype=np.int32) + process_index * local

  def batches():
    step, epoch, order = start_step, -1, np.empty(0, np.int64)
    while True:
      if step // per_epoch != epoch:
        epoch = step // per_epoch
        order = epoch_order(seed, epoch, len(split.label))
      rows = order[step % per_epoch * batch_size + place]
      yield _to_devices(split, rows, place, num_local_devices)
      step += 1

  return batches()


def eval_batches(
  split: Split,
  *,
  batch_size: int,
  num_local_devices: int = 1,
  rows: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields every image once, in order; the last batch is padded, not dropped.

  Args:
    split: what to evaluate.
    batch_size: images of all devices together; the last batch has as many, its
      padding being image 0 of the split.
    num_local_devices: of this process.
    rows: [N] places in the split of the images to take; None is all.

  Yields:
    With leading dimensions [local devices, images per device]: 'image' uint8
    [..., H, W, C], 'label' int32, 'index' int32, the place of each image in the
    split, and 'mask' bool, False for padding.

  Raises:
    UserError: the batch does not divide over the devices, or there is no image.
  """
  _check_divides('eval', batch_size, num_local_devices)
  if rows is None:
    rows = np.arange(len(split.label))
  if not len(rows):
    raise UserError('there are no images to evaluate')

  def batches():
    for start in range(0, len(rows), batch_size):
      real = rows[start : start + batch_size]
      place = np.zeros(batch_size, np.int32)
      place[: len(real)] = real
      batch = _to_devices(split, place, place, num_local_devices)
      mask = np.arange(batch_size) < len(real)
      yield {**batch, 'mask': mask.reshape(num_local_devices, -1)}

  return batches()


def _to_devices(
  split: Split, rows: np.ndarray, index: np.ndarray, num_devices: int
) -> dict[str, np.ndarray]:
  """Takes `rows` of the split, with leading dimensions [devices, each]."""
  batch = {
    'image': split.image[rows],
    'label': split.label[rows],
    'index': index,
  }
  return {
    key: value.reshape(num_devices, -1, *value.shape[1:])
    for key, value in batch.items()
  }


def _check_divides(group: str, batch_size: int, devices: int) -> None:
  if batch_size < 1 or batch_size % devices:
    raise UserError(
      f'{group}.batch_size={batch_size} does not divide over {devices} '
      f'devices; use a multiple of {devices}'
    )
