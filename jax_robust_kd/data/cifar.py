"""CIFAR-10 and CIFAR-100 from their archives into TFDS' format.

TFDS' own builders need TensorFlow to unpack an archive and to write PNG. Here
the builder is TFDS' (so features, version and order of the images are), but
the archive is read with `tarfile` and the PNG written by Pillow.
"""

from collections.abc import Iterator
import hashlib
import io
from pathlib import Path
import sys
import tarfile
import time
from typing import Any, NamedTuple
import urllib.error
import urllib.request

import numpy as np

from jax_robust_kd.core import UserError

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_TIMEOUT = 60  # seconds without a byte
_BLOCK = 1 << 20


class Archive(NamedTuple):
  """One of the two archives, in their 'binary version'.

  Attributes:
    url: where it is published; its last part is the file's name.
    sha256: of the file, as in TFDS' list of checksums.
    folder: inside the archive.
    train: files of training images.
    test: files of test images.
    labels: (feature, file with its names), in the order of the label bytes.
    num_train: images.
    num_test: images.
  """

  url: str
  sha256: str
  folder: str
  train: tuple[str, ...]
  test: tuple[str, ...]
  labels: tuple[tuple[str, str], ...]
  num_train: int = 50_000
  num_test: int = 10_000


ARCHIVES = {
  'cifar10': Archive(
    'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz',
    'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',
    'cifar-10-batches-bin',
    tuple(f'data_batch_{i}.bin' for i in range(1, 6)),
    ('test_batch.bin',),
    (('label', 'batches.meta.txt'),),
  ),
  'cifar100': Archive(
    'https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz',
    '58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec',
    'cifar-100-binary',
    ('train.bin',),
    ('test.bin',),
    (
      ('coarse_label', 'coarse_label_names.txt'),
      ('label', 'fine_label_names.txt'),
    ),
  ),
}


def prepare(archive: Archive, builder: Any, archive_dir: str) -> None:
  """Writes a set in ArrayRecord where its TFDS builder looks for it.

  Args:
    archive: which.
    builder: TFDS' own, of the set.
    archive_dir: folder with the archive; '' downloads it.

  Raises:
    UserError: the archive is missing, cannot be downloaded, or is not the
      published one.
  """
  path = find_archive(archive, Path(builder.data_dir_root), archive_dir)
  files = _unpack(path, archive)
  for feature, file in archive.labels:
    names = [name for name in files[file].decode().split('\n') if name]
    builder.info.features[feature].names = names
  splits = {
    split: _examples(archive, split, [files[name] for name in names], count)
    for split, names, count in (
      ('train', archive.train, archive.num_train),
      ('test', archive.test, archive.num_test),
    )
  }
  # What a TFDS builder overrides; the stock one would import TensorFlow here.
  builder._split_generators = lambda dl_manager: splits
  builder.download_and_prepare(file_format='array_record')


def _unpack(path: Path, archive: Archive) -> dict[str, bytes]:
  wanted = {
    *archive.train,
    *archive.test,
    *(file for _, file in archive.labels),
  }
  try:
    with tarfile.open(path) as tar:
      found = {
        name: tar.extractfile(f'{archive.folder}/{name}').read()  # type: ignore[union-attr]
        for name in wanted
      }
  except (OSError, EOFError, KeyError, tarfile.TarError) as error:
    raise UserError(f'{path} cannot be unpacked ({error})') from None
  return found


def _examples(
  archive: Archive, split: str, files: list[bytes], count: int
) -> Iterator[tuple[int, dict]]:
  """Yields key and features of each image, as TFDS' builder does."""
  from PIL import Image

  features = [feature for feature, _ in archive.labels]
  size = len(features) + _PIXELS
  content = b''.join(files)
  if len(content) != count * size:
    raise UserError(
      f'{archive.folder}: the {split} files hold {len(content) / size:g} '
      f'images, not {count}'
    )
  for key, record in enumerate(
    np.frombuffer(content, np.uint8).reshape(count, size)
  ):
    pixels = record[len(features) :].reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)
    png = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(png, 'PNG')
    png.seek(0)
    labels = dict(zip(features, map(int, record), strict=False))
    yield key, {'id': f'{split}_{key:05d}', 'image': png, **labels}


def find_archive(archive: Archive, root: Path, archive_dir: str) -> Path:
  """Returns the verified archive: a given one, or downloaded to `root`.

  An interrupted download goes on where it stopped. Proxies are those of the
  environment (https_proxy).

  Raises:
    UserError: it is missing, not the published one, or cannot be downloaded.
  """
  name = archive.url.rpartition('/')[2]
  if archive_dir:
    path = Path(archive_dir).expanduser() / name
    if not path.is_file():
      raise UserError(f'--archive_dir={archive_dir} holds no {name}')
  else:
    path = root / 'downloads' / name
    if not path.is_file():
      _download(archive.url, path)
  print(f'checking {path}', file=sys.stderr)
  with path.open('rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  if found != archive.sha256:
    raise UserError(
      f'{path} is not the published archive (its SHA-256 is {found}, not '
      f'{archive.sha256}); remove it and run again'
    )
  return path


def _download(url: str, path: Path) -> None:
  part = path.with_name(path.name + '.part')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    done = part.stat().st_size if part.exists() else 0
    headers = {'User-Agent': 'jax_robust_kd'}
    if done:
      headers['Range'] = f'bytes={done}-'
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener()  # with the proxies of this moment
    with opener.open(request, timeout=_TIMEOUT) as response:
      resumed = response.status == 206
      with part.open('ab' if resumed else 'wb') as file:
        _copy(response, file, path.name, done if resumed else 0)
    part.replace(path)
  except (OSError, urllib.error.URLError) as error:
    raise UserError(
      f'{url} could not be downloaded to {path} ({error}); set https_proxy if '
      'you are behind a proxy, or bring the file yourself and give its folder '
      'as --archive_dir'
    ) from None


def _copy(response, file, name: str, done: int) -> None:
  length = response.headers.get('Content-Length')
  total = done + int(length) if length else 0
  said = time.monotonic()
  while block := response.read(_BLOCK):
    file.write(block)
    done += len(block)
    if time.monotonic() - said > 2:
      said = time.monotonic()
      of = f' of {total / 1e6:.0f}' if total else ''
      print(f'downloading {name}: {done / 1e6:.0f}{of} MB', file=sys.stderr)
  if total and done != total:
    raise OSError(f'the connection ended after {done} of {total} bytes')
