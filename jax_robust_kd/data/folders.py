"""Image folders: your own, and Tiny-ImageNet's."""

from collections.abc import Iterable
import errno
from functools import partial
import io
import os
from pathlib import Path
import stat

import numpy as np

from jax_robust_kd.core import UserError
from jax_robust_kd.data.decode import Damaged, check_pillow, is_grey, open_image
from jax_robust_kd.data.lazy import Encoded, Lazy, Reading, Stream
from jax_robust_kd.data.npz import Raw
from jax_robust_kd.data.split import Split

_SUFFIXES = ('.png', '.jpg', '.jpeg')
_MAX_BYTES = 2**28  # of a file
_PROBED = 100  # images opened to learn size and colours of the set
TINY_IMAGENET = 'tiny-imagenet-200'  # the folder that its archive holds


def read_folder(path: str, reading: Reading) -> Raw:
  """Finds PATH/train/CLASS/* and PATH/test/CLASS/*, .png or .jpg.

  Classes are numbered in the sorted order of their folders' names. The images
  of each part are put in a fixed random order (NumPy's default_rng(0)), since
  sorted by class the last of them could not serve as validation. Only names
  are read here.

  Raises:
    UserError: Pillow or a folder is missing, one is empty, or train and test
      have different classes.
  """
  root = Path(path).expanduser()
  classes = {part: _class_names(root, part) for part in ('train', 'test')}
  names = classes['train']
  if names != classes['test']:
    differing = sorted(set(names) ^ set(classes['test']))
    raise UserError(
      f'{path}: train and test have different classes, among them '
      f'{differing[0]!r}; give both the same folders'
    )
  train, test = (
    _list_classes(root, [Path(part) / name for name in names])
    for part in ('train', 'test')
  )
  return _make_raw(root, names, train, test, reading)


def read_tiny_imagenet(data_dir: str, reading: Reading) -> Raw:
  """Finds Tiny-ImageNet as its archive unpacks: 200 classes of 64 x 64 JPEGs.

  Its test images have no public labels, so its validation images (val/images,
  labelled in val/val_annotations.txt) are the test part here. Classes are in
  the sorted order of their WordNet names.

  Args:
    data_dir: that folder, or the one which holds it; '' is TFDS_DATA_DIR, or
      TFDS' default.
    reading: how.

  Raises:
    UserError: it is not there, or an annotation names no class.
  """
  root = _find_tiny_imagenet(data_dir)
  wnids = _class_names(root, 'train')
  train = _list_classes(root, [Path('train', w, 'images') for w in wnids])
  files, labels = [], []
  number = {wnid: label for label, wnid in enumerate(wnids)}
  annotations = root / 'val' / 'val_annotations.txt'
  for line in _lines(annotations):
    file, wnid = line.split('\t')[:2]
    if wnid not in number:
      raise UserError(f'{annotations}: {wnid!r} has no folder in {root}/train')
    files.append(f'val/images/{file}')
    labels.append(number[wnid])
  words = dict(line.split('\t')[:2] for line in _lines(root / 'words.txt'))
  names = tuple(words.get(wnid, wnid).split(',')[0] for wnid in wnids)
  return _make_raw(root, names, train, (files, labels), reading)


def _find_tiny_imagenet(data_dir: str) -> Path:
  default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  given = Path(data_dir or default).expanduser()
  for root in (given, given / TINY_IMAGENET):
    if (root / 'val' / 'val_annotations.txt').is_file():
      return root
  raise UserError(
    f"data.name='tiny_imagenet': there is no {TINY_IMAGENET} in {given}; "
    'unpack its archive there or set data.data_dir to where it is'
  )


def _lines(path: Path) -> list[str]:
  """Lines of a table with tabs, or none if there is no such file."""
  if not path.is_file():
    return []
  return [line for line in path.read_text().splitlines() if '\t' in line]


def _class_names(root: Path, part: str) -> tuple[str, ...]:
  folder = root / part
  if not folder.is_dir():
    raise UserError(
      f'data.name: there is no folder {folder}; an image folder holds '
      'train/CLASS/ and test/CLASS/'
    )
  with os.scandir(folder) as entries:
    names = sorted(
      entry.name
      for entry in entries
      if entry.is_dir() and not entry.name.startswith('.')
    )
  if len(names) < 2:
    raise UserError(
      f'{folder}: it holds {len(names)} folders; it needs one for each of '
      'two or more classes'
    )
  return tuple(names)


def _list_classes(
  root: Path, folders: list[Path]
) -> tuple[list[str], list[int]]:
  """Returns the names of the images below `root`, and their labels."""
  files: list[str] = []
  labels: list[int] = []
  for label, folder in enumerate(folders):
    found = sorted(
      name
      for name in _entries(root / folder)
      if name.lower().endswith(_SUFFIXES) and not name.startswith('.')
    )
    if not found:
      raise UserError(
        f'{root / folder}: class {folder.parts[1]!r} has no images '
        f'({", ".join(_SUFFIXES)})'
      )
    files += [str(folder / name) for name in found]
    labels += [label] * len(found)
  return files, labels


def _entries(folder: Path) -> Iterable[str]:
  return os.listdir(folder) if folder.is_dir() else ()


def _make_raw(
  root: Path,
  names: tuple[str, ...],
  train: tuple[list[str], list[int]],
  test: tuple[list[str], list[int]],
  reading: Reading,
) -> Raw:
  check_pillow()
  shape = _find_shape(root, train[0] + test[0], reading.image_size)

  def make_split(files: list[str], labels: list[int]) -> Split:
    order = np.random.default_rng(0).permutation(len(labels))
    # Bytes of one array, as a million Python strings would weigh 100 MB.
    encoded = np.array([os.fsencode(file) for file in files])[order]
    label = np.array(labels, np.int32)[order]
    read = partial(_read_files, str(root), encoded, label)
    stream = Stream(read, shape, len(names), reading)
    return Split(Lazy(stream, np.arange(len(label))), label)

  return Raw(make_split(*train), make_split(*test), names, str(root))


def _find_shape(
  root: Path, files: list[str], size: int
) -> tuple[int, int, int]:
  """Returns (H, W, C): size of the first image, colours of a sample."""
  from PIL import ExifTags, Image

  damaged = (Damaged, OSError, SyntaxError, ValueError, TypeError)
  found, sizes = [], []
  chosen = np.linspace(0, len(files) - 1, min(len(files), _PROBED)).astype(int)
  for place in chosen:
    try:
      with open_image(io.BytesIO(_read_file(root / files[place]))) as image:
        found.append(is_grey(image.mode) or image.mode[0] in 'IF')
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
        width, height = image.size[::-1] if turned else image.size
        sizes.append((height, width))
    except (*damaged, Image.DecompressionBombError):
      continue  # it is named when it is read
  if not found:
    raise UserError(f'{root}: none of {len(chosen)} images can be opened')
  height, width = (size, size) if size else sizes[0]
  # Grey images among coloured ones become coloured.
  return height, width, 1 if all(found) else 3


def _read_file(path: Path) -> bytes:
  """Reads a regular file of at most 256 MB; others might never end."""
  found = path.stat()
  if not stat.S_ISREG(found.st_mode):
    raise OSError(errno.EINVAL, 'it is no regular file')
  if found.st_size > _MAX_BYTES:
    raise OSError(errno.EFBIG, f'it has {found.st_size:,} bytes')
  return path.read_bytes()


def _read_files(
  root: str, files: np.ndarray, labels: np.ndarray, rows: np.ndarray
) -> list[Encoded]:
  found = []
  for row in rows:
    path = Path(root, os.fsdecode(bytes(files[row])))
    try:
      content, error = _read_file(path), ''
    except OSError as failed:
      content, error = b'', failed.strerror or str(failed)
    found.append(Encoded(str(path), content, int(labels[row]), error))
  return found
