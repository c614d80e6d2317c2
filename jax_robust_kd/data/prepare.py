"""Prepares a data set once, and checks every image of it.

Run again, it checks that nothing has changed since.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
import hashlib
import json
from pathlib import Path
import sys
import time
from types import SimpleNamespace
from typing import NamedTuple
import zipfile

from absl import logging
import numpy as np

from jax_robust_kd.core import RunError, UserError
from jax_robust_kd.data import source
from jax_robust_kd.data.decode import Damaged, decode
from jax_robust_kd.data.lazy import (
  Encoded,
  Lazy,
  Reading,
  Stream,
  check_label,
)
from jax_robust_kd.data.npz import Raw

_CHUNK = 256  # images that a thread checks at once


class Check(NamedTuple):
  """What a pass over one part of a set found.

  Attributes:
    images: how many there are.
    sha256: of the sorted SHA-256 of each image's file and label: the same in
      any order.
    damaged: one sentence for each image that cannot be decoded.
  """

  images: int
  sha256: str
  damaged: list[str]


def check(images: Lazy, where: str) -> Check:
  """Reads and decodes every image of a split on disk."""
  digests, damaged = [], []
  said = time.monotonic()
  with ThreadPoolExecutor() as pool:
    starts = range(0, len(images), _CHUNK)
    chunks = (images.rows[start : start + _CHUNK] for start in starts)
    for found in pool.map(partial(_check_rows, images), chunks):
      digests += [digest for digest, _ in found]
      damaged += [problem for _, problem in found if problem]
      if time.monotonic() - said > 2:
        said = time.monotonic()
        print(
          f'checking {where}: {len(digests)}/{len(images)}', file=sys.stderr
        )
  total = hashlib.sha256(b''.join(sorted(digests))).hexdigest()
  return Check(len(images), total, damaged)


# Training and test images of the whole sets.
_PUBLISHED = {
  'cifar10': (50_000, 10_000),
  'cifar100': (50_000, 10_000),
  'imagenet2012': (1_281_167, 50_000),
  'stl10': (5_000, 8_000),
  'svhn_cropped': (73_257, 26_032),
  'tiny_imagenet': (100_000, 10_000),
}


def _check_rows(images: Lazy, rows: np.ndarray) -> list[tuple[bytes, str]]:
  """Returns digest, and what is wrong or '', of each image."""
  return [
    _check_one(images.stream, found) for found in images.stream.read(rows)
  ]


def _check_one(stream: Stream, found: Encoded) -> tuple[bytes, str]:
  problem = found.error
  try:
    if not problem:
      check_label(stream, found)
      fit = bool(stream.reading.image_size)
      decode(found.name, found.content, stream.shape, fit)
  except (Damaged, UserError) as error:
    problem = str(error)
  digest = hashlib.sha256(b'%d ' % found.label + found.content).digest()
  return digest, f'{found.name}: {problem}' if problem else ''


def prepare(name: str, data_dir: str, archive_dir: str, image_size: int) -> str:
  """Prepares and checks a set; returns what to print.

  Raises:
    UserError: it cannot be found or prepared, or holds other images than when
      it was first checked.
    RunError: some images are damaged.
  """
  if name.endswith('.npz') and _is_compressed(_npz_path(name)):
    return _unpack(_npz_path(name))
  reading = Reading(image_size=image_size)
  raw = source.find(name, data_dir, '', '', reading, archive_dir)
  if not isinstance(raw.train.image, Lazy):
    return f'{name}: {_count(raw)}'
  checks = {
    part: check(split.image, f'{name} ({part})')
    for part, split in (('train', raw.train), ('test', raw.test))
  }
  damaged = [line for found in checks.values() for line in found.damaged]
  for line in damaged:
    print(f'damaged: {line}', file=sys.stderr)
  if damaged:
    raise RunError(f'{name}: {len(damaged)} damaged images, named above')
  kept = _compare(Path(raw.folder) / 'checked.json', checks)
  text = f'{name}: {_count(raw)}, all whole, {kept}; in {raw.folder}'
  published = _PUBLISHED.get(name)
  if published in (None, tuple(found.images for found in checks.values())):
    return text
  return (
    f'{text}\nNOT COMPLETE: {name} was published with %d and %d' % published
  )


def _count(raw: Raw) -> str:
  train, test = (len(part.label) for part in (raw.train, raw.test))
  return (
    f'{train} training and {test} test images, {len(raw.class_names)} classes'
  )


def _compare(path: Path, checks: dict[str, Check]) -> str:
  """Compares with the first check of the set, or keeps this one."""
  found = {
    part: {'images': c.images, 'sha256': c.sha256} for part, c in checks.items()
  }
  if path.is_file():
    if json.loads(path.read_text()) != found:
      raise UserError(
        f'{path.parent} holds other images than when it was first checked; '
        f'restore it from a copy, or remove {path} if the change was meant'
      )
    return 'unchanged since the first check'
  try:
    path.write_text(json.dumps(found, indent=2) + '\n')
  except OSError as error:
    return f'not recorded ({error.strerror})'
  return 'recorded'


def _npz_path(name: str) -> Path:
  return Path(name.removeprefix('npz:')).expanduser()


def _is_compressed(path: Path) -> bool:
  try:
    with zipfile.ZipFile(path) as archive:
      return any(member.compress_type for member in archive.infolist())
  except (OSError, zipfile.BadZipFile) as error:
    raise UserError(f'{path}: not a readable .npz file ({error})') from None


def _unpack(path: Path) -> str:
  """Writes an uncompressed copy, which can be mapped into memory."""
  target = path.with_name(f'{path.stem}_unpacked.npz')
  unfinished = target.with_name(f'unfinished.{target.name}')
  try:
    with (
      zipfile.ZipFile(path) as archive,
      zipfile.ZipFile(unfinished, 'w', zipfile.ZIP_STORED) as copy,
    ):
      for member in archive.infolist():
        with archive.open(member) as file:
          _copy(file, copy, member)
    unfinished.replace(target)
  except (OSError, zipfile.BadZipFile, EOFError) as error:
    unfinished.unlink(missing_ok=True)
    raise UserError(f'{path} could not be unpacked ({error})') from None
  return f'{target}: unpacked; use this file'


def _copy(file, copy: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
  big = member.file_size > 2**31
  with copy.open(member.filename, 'w', force_zip64=big) as out:
    while block := file.read(1 << 24):
      out.write(block)


def run(args: SimpleNamespace) -> int:
  """Runs the command; returns its exit code."""
  logging.set_verbosity(logging.ERROR)  # TFDS warns that nothing is there yet
  print(prepare(args.name, args.data_dir, args.archive_dir, args.image_size))
  return 0
