"""Prepares TFDS sets, once, in the format that needs no TensorFlow to read."""

from collections.abc import Iterator
import contextlib
import importlib.util
from pathlib import Path
import shutil
import sys
from typing import Any

from jax_robust_kd.core import UserError
from jax_robust_kd.data import cifar


def prepare_set(name: str, builder: Any, archive_dir: str = '') -> None:
  """Downloads and prepares a set, unless that is done.

  It may be interrupted at any time and started again, also twice at once: the
  second waits for the first. CIFAR-10 and CIFAR-100 need no TensorFlow.

  Args:
    name: of the set.
    builder: its TFDS builder.
    archive_dir: folder with what TFDS would download, under its own names; ''
      downloads it.

  Raises:
    UserError: TensorFlow is missing, or it failed.
  """
  target = Path(builder.data_dir)
  root = Path(builder.data_dir_root)
  try:
    with _alone(root / f'.{name.replace("/", "_")}.lock', name):
      if builder.is_prepared():
        return
      for unfinished in target.parent.glob(f'incomplete.*_{target.name}'):
        shutil.rmtree(unfinished, ignore_errors=True)  # of a killed run
      if name in cifar.ARCHIVES:
        cifar.prepare(cifar.ARCHIVES[name], builder, archive_dir)
      else:
        _prepare_stock(name, builder, archive_dir)
  except UserError:
    raise
  except Exception as error:  # anything may fail in there: network, disk, TFDS
    reason = str(error).strip().split('\n')[0][:200] or type(error).__name__
    raise UserError(
      f'data.name={name!r} could not be downloaded and prepared in '
      f'{builder.data_dir} ({reason}); is the network there? Or set '
      'data.data_dir to where the set is'
    ) from None


def _prepare_stock(name: str, builder: Any, archive_dir: str) -> None:
  if importlib.util.find_spec('tensorflow') is None:
    raise UserError(
      f'data.name={name!r} is not prepared in {builder.data_dir}, and the '
      'one-time preparation of most TFDS sets needs TensorFlow (reading does '
      'not): run pip install "jax_robust_kd[prepare]" and start again, or set '
      'data.data_dir to where it is'
    )
  from tensorflow_datasets import download

  config = download.DownloadConfig(
    manual_dir=archive_dir or None, try_download_gcs=not archive_dir
  )
  builder.download_and_prepare(
    file_format='array_record', download_config=config
  )


@contextlib.contextmanager
def _alone(path: Path, name: str) -> Iterator[None]:
  """Keeps a second process out, by a lock that ends with the process."""
  import fcntl

  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print(f'waiting: another process prepares {name}', file=sys.stderr)
      fcntl.flock(file, fcntl.LOCK_EX)
    yield
