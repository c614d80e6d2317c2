"""One run at a time in a workdir."""

from collections.abc import Iterator
from contextlib import contextmanager
import errno
import os
from pathlib import Path
import socket
from typing import IO

from jax_robust_kd.core import UserError
from jax_robust_kd.runtime import console, processes

_NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)


@contextmanager
def held(folder: Path) -> Iterator[None]:
  """Holds a workdir, on behalf of all processes of a run.

  The operating system gives the lock back when the process ends, however it
  ends; what is left in the file then only tells who it was. Where folders
  cannot be locked, which is said, two runs are not kept apart.

  Raises:
    UserError: another run holds it.
  """
  if not processes.is_first():
    yield
    return
  with (folder / 'lock').open('a+') as file:
    file.seek(0)
    owner = file.read().strip()
    try:
      locked = _lock(file)
    except OSError:
      raise UserError(
        f'--workdir {folder} is in use by {owner or "another run"}; wait for '
        'it to end, or choose another --workdir'
      ) from None
    if not locked:
      console.say(f'{folder} cannot be locked; start only one run there')
    if owner and locked:
      console.say(f'{owner} ended in {folder} before it was done; going on')
    elif owner:
      console.say(f'{owner} was here last; make sure that it has ended')
    _write(file, f'process {os.getpid()} on {socket.gethostname()}')
    yield
    _write(file, '')


def _lock(file: IO) -> bool:
  """Locks a file until it is closed.

  Returns:
    False where the operating system or the file system cannot lock.

  Raises:
    OSError: somebody else holds the lock.
  """
  try:
    import fcntl
  except ImportError:  # Windows
    return False
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in _NO_LOCKS:
      return False
    raise
  return True


def _write(file: IO, text: str) -> None:
  file.seek(0)
  file.truncate()
  file.write(text)
  file.flush()
