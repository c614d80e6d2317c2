"""The folder of a run: where it is, and what may be written there."""

import errno
import json
import os
from pathlib import Path
import socket

from jax_robust_kd import config as config_lib
from jax_robust_kd.config import Config
from jax_robust_kd.core import UserError
from jax_robust_kd.runtime.files import read_json, write_json

_INSIDE = 200  # most characters of a file's path in a workdir


def find_workdir(text: str) -> Path:
  """Returns the folder that `--workdir` names, which need not be there.

  Raises:
    UserError: it cannot be the name of a folder.
  """
  if '\0' in text:
    raise UserError(f'--workdir {text!r} holds a zero byte; leave it out')
  scheme, found, _ = text.partition('://')
  if found:
    raise UserError(
      f'--workdir {text}: {scheme}:// is not supported; use a folder of this '
      'machine, or a bucket that is mounted as one'
    )
  try:
    path = Path(text).expanduser()
  except RuntimeError:
    raise UserError(
      f'--workdir {text}: there is no such user; write the path of the folder'
    ) from None
  try:
    os.lstat(path / ('-' * _INSIDE))
  except OSError as error:
    if error.errno == errno.ENAMETOOLONG:
      raise UserError(
        f'--workdir {text[:40]}... is too long by the rules of its file '
        'system; use a shorter one'
      ) from None
  return path


def as_json(c: Config) -> dict:
  """Returns a config as JSON gives it back: tuples as lists."""
  return json.loads(json.dumps(c.to_dict()))


def read_config(folder: str | Path) -> Config:
  """Reads the config of a run, with the names and settings of today.

  Raises:
    UserError: there is no run.
  """
  path = Path(folder) / 'config.json'
  if not path.exists():
    raise UserError(
      f'{folder} is not the workdir of a run (it has no config.json)'
    )
  c = config_lib.base_config('cifar10')
  with c.unlocked():
    c.update(config_lib.upgrade(read_json(path)))
  return c


def check_workdir(folder: Path, c: Config, mode: str) -> None:
  """Refuses a workdir that holds another config or cannot be written.

  Args:
    folder: made if it is not there.
    c: what is going to run in it.
    mode: as of `job.run`.

  Raises:
    UserError: it does.
  """
  path = folder / 'config.json'
  if path.exists():
    differing = config_lib.differing_keys(
      as_json(read_config(folder)), as_json(c)
    )
    # The batches are the same with any number of workers.
    differing = [key for key in differing if key != 'data.workers']
    if mode != 'train':
      ignored = ('validation.', 'eval.', 'check.')
      differing = [key for key in differing if not key.startswith(ignored)]
    if differing:
      raise UserError(
        f'{folder} holds a run with another config: {", ".join(differing)} '
        'differ; choose a new --workdir, or set them back to go on'
      )
  elif mode != 'train':
    raise UserError(f'{folder} has no config.json; train there first')
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f'.writable-{socket.gethostname()}-{os.getpid()}'
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise UserError(
      f'--workdir {folder} cannot be written: {error.strerror}'
    ) from None


def claim_workdir(folder: Path, c: Config) -> None:
  """Writes config.json into a new workdir.

  Once it is there, another config is refused: first read all that may turn out
  to be a mistake.
  """
  if not (folder / 'config.json').exists():
    write_json(folder / 'config.json', as_json(c))
