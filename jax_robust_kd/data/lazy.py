"""Images that stay on disk until rows of them are asked for."""

from collections.abc import Callable, Iterable
import sys
import time
from typing import Any, NamedTuple

import numpy as np

from jax_robust_kd.core import UserError
from jax_robust_kd.data.decode import Damaged, decode
from jax_robust_kd.data.split import Split

_CHUNK = 500  # images read at once into memory
SKIP = ', or set data.damaged=skip to train without it'


class Reading(NamedTuple):
  """How the images of a set are read.

  Attributes:
    image_size: side in pixels that images are brought to, see `decode.decode`;
      0: as they are, and all of one size.
    memory_gb: a set of more gigabytes of pixels is streamed from disk.
    workers: processes that decode streamed images; 0 is a thread of this one.
    damaged: 'stop' at an image that cannot be decoded, or 'skip' it, naming it.
  """

  image_size: int = 0
  memory_gb: float = 8.0
  workers: int = 4
  damaged: str = 'stop'


class Encoded(NamedTuple):
  """An image as it is stored; `error` says why it could not be read."""

  name: str
  content: bytes
  label: int
  error: str = ''


class Stream(NamedTuple):
  """A data set on disk; it travels to worker processes, so it is small.

  Attributes:
    read: rows [n] -> n Encoded; opens what it needs in each process.
    shape: (H, W, C) of an image once decoded.
    num_classes: K.
    reading: how.
  """

  read: Callable[[np.ndarray], list[Encoded]]
  shape: tuple[int, int, int]
  num_classes: int
  reading: Reading


class Lazy:
  """Stands for an array in a Split, but is read when rows are asked for.

  The one class with behaviour beside the models: whoever indexes a Split need
  not know where its images are. `lazy[rows]` is an array, `lazy[a:b]` lazy.
  """

  def __init__(self, stream: Stream, rows: np.ndarray, labels: bool = False):
    self.stream, self.rows, self.labels = stream, rows, labels
    self.shape = (len(rows), *(() if labels else stream.shape))
    self.dtype = np.dtype(np.int32 if labels else np.uint8)

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, rows) -> Any:
    chosen = self.rows[rows]
    if isinstance(rows, slice):
      return Lazy(self.stream, chosen, self.labels)
    flat = chosen.reshape(-1)
    if self.labels:
      found = np.array([e.label for e in self.stream.read(flat)], np.int32)
    else:
      part = decode_rows(self.stream, flat)
      stop_if_damaged(part, '')
      found = part.image
    return found.reshape(*chosen.shape, *self.shape[1:])


class Part(NamedTuple):
  """Some decoded rows.

  Attributes:
    image: [n, H, W, C] uint8; 0 where damaged.
    label: [n] int32.
    damaged: what is wrong, by place in this part.
  """

  image: np.ndarray
  label: np.ndarray
  damaged: dict[int, str]


def lazy_split(stream: Stream, size: int) -> Split:
  """Returns all `size` images of a stream as a Split that reads nothing."""
  rows = np.arange(size)
  return Split(Lazy(stream, rows), Lazy(stream, rows, labels=True))


def decode_rows(stream: Stream, rows: np.ndarray) -> Part:
  """Reads and decodes rows [n] of a stream.

  Raises:
    UserError: an image has another size than the set, or no label.
  """
  image = np.zeros((len(rows), *stream.shape), np.uint8)
  label = np.zeros(len(rows), np.int32)
  damaged = {}
  fit = bool(stream.reading.image_size)
  for place, found in enumerate(stream.read(rows)):
    try:
      if found.error:
        raise Damaged(found.error)
      check_label(stream, found)
      image[place] = decode(found.name, found.content, stream.shape, fit)
      label[place] = found.label
    except Damaged as error:
      damaged[place] = f'{found.name}: the image is damaged ({error})'
  return Part(image, label, damaged)


def check_label(stream: Stream, found: Encoded) -> None:
  """Raises UserError if the label of an image names no class."""
  if not 0 <= found.label < stream.num_classes:
    raise UserError(
      f'{found.name}: its label is {found.label}, but there are '
      f'{stream.num_classes} classes; an image without a label cannot be used'
    )


def stop_if_damaged(part: Part, remedy: str) -> None:
  """Raises UserError, naming the first damaged image, if there is one."""
  for problem in part.damaged.values():
    raise UserError(f'{problem}; replace it{remedy}')


def into_memory(where: str, split: Split, may_skip: bool = True) -> Split:
  """Reads a lazy split; damaged images stop it, or are named and left out.

  Args:
    where: what to call the split in messages.
    split: of `Lazy` images.
    may_skip: whether damaged ones may be left out; they are not in a test.

  Raises:
    UserError: as `decode_rows`, or there is a damaged image and they stop.
  """
  lazy: Lazy = split.image
  image = np.empty(lazy.shape, np.uint8)
  label = np.empty(len(lazy), np.int32)
  kept, said = 0, time.monotonic()
  for start in range(0, len(lazy), _CHUNK):
    part = decode_rows(lazy.stream, lazy.rows[start : start + _CHUNK])
    if not may_skip or lazy.stream.reading.damaged == 'stop':
      stop_if_damaged(part, SKIP if may_skip else '')
    report(part.damaged.values())
    good = np.setdiff1d(np.arange(len(part.label)), list(part.damaged))
    image[kept : kept + len(good)] = part.image[good]
    label[kept : kept + len(good)] = part.label[good]
    kept += len(good)
    if time.monotonic() - said > 10:
      said = time.monotonic()
      print(f'reading {where}: {start}/{len(lazy)}', file=sys.stderr)
  if not kept:
    raise UserError(f'{where}: every image is damaged')
  return Split(image[:kept], label[:kept])


def report(problems: Iterable[str]) -> None:
  """Names images that were left out."""
  for problem in problems:
    print(f'skipped: {problem}', file=sys.stderr)
