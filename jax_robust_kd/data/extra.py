"""Generated images as extra training data, mapped from one .npz file.

Gowal et al. 2021 (arXiv:2110.09468), Rebuffi et al. 2021 (arXiv:2103.01946) and
Wang et al. 2023 (arXiv:2302.04638) give such files: 'image' uint8 [N, 32, 32,
3] and 'label' [N], of one to fifty million images.
"""

from pathlib import Path
import struct
from typing import NamedTuple
import zipfile

import numpy as np

from jax_robust_kd.core import UserError
from jax_robust_kd.data.split import Split, check_range, make_split

_LOCAL_HEADER = struct.Struct('<26xHH')  # of a zip member, up to its name


class Extra(NamedTuple):
  """Images that are mixed into every training batch.

  Attributes:
    split: the images; labels are -1 where the teacher is to give them.
    share: of each batch that they take, in (0, 1).
  """

  split: Split
  share: float


def extra_places(batch_size: int, share: float) -> np.ndarray:
  """Returns which places of a batch extra images take, [batch_size] bool.

  Their number is batch_size * share, rounded down; they are spread evenly, so
  that every device has about the same number.
  """
  edges = np.floor(np.arange(batch_size + 1) * share + 1e-9)
  return np.diff(edges) > 0


def load_extra(
  file: str,
  *,
  share: float,
  labels: str,
  shape: tuple[int, int, int],
  num_classes: int,
) -> Extra:
  """Opens extra images; pixels stay on disk until they are needed.

  Args:
    file: .npz, not compressed, with 'image' and, unless the teacher labels
      them, 'label'.
    share: of each batch, in (0, 1). Gowal et al. use 0.7 on CIFAR-10.
    labels: 'file', or 'teacher': the class that the teacher sees in each image.
    shape: (H, W, C) of the set they are mixed into.
    num_classes: of that set.

  Raises:
    UserError: the file is missing, damaged, compressed, or does not fit.
  """
  if not 0 < share < 1:
    raise UserError(f'data.extra.share={share} must be between 0 and 1')
  path = Path(file.removeprefix('npz:')).expanduser()
  image = map_array(path, 'image')
  if image.dtype != np.uint8 or image.shape[1:] != tuple(shape):
    raise UserError(
      f'{path}: its images are {image.dtype} of shape {image.shape[1:]}; use '
      f'uint8 of {tuple(shape)}, as in the set they are mixed into'
    )
  if labels == 'teacher':
    return Extra(Split(image, np.full(len(image), -1, np.int32)), share)
  split = make_split(str(path), image, np.asarray(map_array(path, 'label')))
  check_range(str(path), split, num_classes)
  return Extra(split, share)


def map_array(path: Path, key: str) -> np.ndarray:
  """Maps one array of an uncompressed .npz file into memory, read-only.

  Raises:
    UserError: the file or the array is missing, damaged or compressed.
  """
  if not path.is_file():
    raise UserError(f'data.extra.file: there is no file {path}')
  try:
    with zipfile.ZipFile(path) as archive:
      if f'{key}.npy' not in archive.namelist():
        raise UserError(
          f'{path}: it holds no array {key!r}'
          + (', so set data.extra.labels=teacher' if key == 'label' else '')
        )
      member = archive.getinfo(f'{key}.npy')
    if member.compress_type != zipfile.ZIP_STORED:
      raise UserError(
        f'{path}: it is compressed and cannot be mapped into memory; run: '
        f'jax-robust-kd prepare --name {path}'
      )
    return _map_member(path, member)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(
      f'{path}: not a readable .npz file ({error}); write it again'
    ) from None


def _map_member(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
  with path.open('rb') as file:
    file.seek(member.header_offset)
    lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    file.seek(sum(lengths), 1)
    version = np.lib.format.read_magic(file)
    read = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, fortran, dtype = read(file)
    order = 'F' if fortran else 'C'
    return np.memmap(path, dtype, 'r', file.tell(), shape, order)
