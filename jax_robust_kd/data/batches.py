"""Batches of a split; a pure function of seed and step."""

from collections.abc import Iterator
import functools
import itertools

import numpy as np

from jax_robust_kd.core import UserError
from jax_robust_kd.data.extra import Extra, extra_places
from jax_robust_kd.data.lazy import Lazy
from jax_robust_kd.data.split import Split
from jax_robust_kd.data.stream import read_ahead


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


@functools.lru_cache(maxsize=4)  # 10 MB each for ImageNet
def epoch_order(
  seed: int, epoch: int, n: int, salt: tuple[int, ...] = ()
) -> np.ndarray:
  """Returns the order of `n` images in an epoch: a permutation, [n] int64.

  Another `salt` gives another order. The array is read-only.
  """
  order = np.random.default_rng((seed, epoch, *salt)).permutation(n)
  order.setflags(write=False)
  return order


def step_rows(
  step: int,
  *,
  seed: int,
  n: int,
  batch_size: int,
  place: np.ndarray,
  salt: tuple[int, ...] = (),
) -> np.ndarray:
  """Returns which of `n` images are at the places of a step's batch.

  Args:
    step: batch s mod m of epoch s div m, where m = `num_batches`.
    seed: of the order.
    n: images.
    batch_size: over all processes.
    place: [local] places in the batch.
    salt: of the order.
  """
  epoch, batch = divmod(step, num_batches(n, batch_size))
  return epoch_order(seed, epoch, n, salt)[batch * batch_size + place]


def train_batches(
  split: Split,
  *,
  batch_size: int,
  seed: int,
  start_step: int,
  process_index: int = 0,
  process_count: int = 1,
  num_local_devices: int = 1,
  extra: Extra | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields training batches without end, from any step on.

  Step s takes batch s mod m of epoch s div m, where m = `num_batches`; the
  images of an epoch that do not fill a batch are left out of it (others in the
  next epoch). Nothing is replayed, so starting late costs nothing. The global
  batch is cut into contiguous parts, first by process and then by device, so
  it is the same on any number of them.

  Args:
    split: what to draw from.
    batch_size: images of all devices of all processes together.
    seed: of the order of the images.
    start_step: the first step.
    process_index: which part of each batch to yield.
    process_count: how many processes share a batch.
    num_local_devices: of this process.
    extra: images that take a share of the places of each batch, spread evenly
      over it. The others are drawn from `split` as for a smaller batch.

  Yields:
    With leading dimensions [local devices, images per device]: 'image' uint8
    [..., H, W, C], 'label' int32, 'index' int32, the place of each image in
    the global batch, and 'row' int32, its place in `split`: for an extra image
    the number of images in `split`.

  Raises:
    UserError: the batch does not divide over the devices, or is too large.
  """
  check_divides('data', batch_size, process_count * num_local_devices)
  local = batch_size // process_count
  here = slice(process_index * local, (process_index + 1) * local)
  index = np.arange(batch_size, dtype=np.int32)[here]
  parts = [
    (chosen[here], _draw(source, chosen, here, start_step, seed, salt))
    for source, chosen, salt in _sources(split, extra, batch_size)
  ]
  own = ~extra_places(batch_size, extra.share if extra else 0.0)[here]

  def batches():
    while True:
      image, label, row = _join(parts, local)
      row = np.where(own, row, len(split.label)).astype(np.int32)
      yield _to_devices(
        num_local_devices, image=image, label=label, index=index, row=row
      )

  return batches()


def _sources(split: Split, extra: Extra | None, batch_size: int):
  """Returns (split, which places of a batch it fills, salt of its order)."""
  if extra is None:
    return [(split, np.ones(batch_size, bool), ())]
  chosen = extra_places(batch_size, extra.share)
  both = (split, ~chosen, ()), (extra.split, chosen, (1,))
  return [each for each in both if each[1].any()]


def _draw(
  split: Split,
  chosen: np.ndarray,
  here: slice,
  start: int,
  seed: int,
  salt: tuple[int, ...],
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Yields (image, label, row) of this process's part of step after step."""
  count = int(chosen.sum())
  num_batches(len(split.label), count)
  rows_of = functools.partial(
    step_rows,
    seed=seed,
    n=len(split.label),
    batch_size=count,
    place=(np.cumsum(chosen) - 1)[here][chosen[here]],
    salt=salt,
  )
  taken = _take(split, rows_of, start)
  return (
    (image, label, rows_of(step))
    for step, (image, label) in enumerate(taken, start)
  )


def _take(split: Split, rows_of, start: int):
  """Yields (image, label) of step after step."""
  if isinstance(split.image, Lazy):
    return read_ahead(split.image, rows_of, start)
  every = map(rows_of, itertools.count(start))
  return ((split.image[rows], split.label[rows]) for rows in every)


def _join(parts, size: int):
  """Takes the next of each part, and puts all into their places of a batch."""
  found = [(chosen, *next(taken)) for chosen, taken in parts]
  if len(found) == 1:
    return found[0][1:]
  whole = tuple(np.empty((size, *x.shape[1:]), x.dtype) for x in found[0][1:])
  for chosen, *values in found:
    for joined, value in zip(whole, values, strict=True):
      joined[chosen] = value
  return whole


def _to_devices(
  num_devices: int, **values: np.ndarray
) -> dict[str, np.ndarray]:
  """Gives all values leading dimensions [devices, each]."""
  return {
    key: value.reshape(num_devices, -1, *value.shape[1:])
    for key, value in values.items()
  }


def check_divides(group: str, batch_size: int, devices: int) -> None:
  """Checks that every device gets as many images of a batch as the others.

  Args:
    group: 'data' or 'eval', whose `batch_size` it is.
    batch_size: images of all devices.
    devices: how many these are.

  Raises:
    UserError: they do not.
  """
  if batch_size < 1 or batch_size % devices:
    raise UserError(
      f'{group}.batch_size={batch_size} does not divide over {devices} '
      f'devices; use a multiple of {devices}'
    )
