"""One run at a time in a workdir."""

from collections.abc import Iterator
from contextlib import contextmanager
import errno
import fcntl
import os
from pathlib import Path
import socket

from jax_robust_kd.core import UserError
from jax_robust_kd.runtime import console, processes

_NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)


@contextmanager
def held(folder: Path) -> Iterator[None]:
  """Holds a workdir, on behalf of all processes of a run.

  The operating system gives the lock back when the process ends, however it
  ends; what is left in the file then only tells who it was.

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
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise UserError(
          f'--workdir {folder} is in use by {owner or "another run"}; wait for '
          'it to end, or choose another --workdir'
        ) from None
      console.say(f'{folder} cannot be locked; start only one run there')
    if owner:
      console.say(f'{owner} ended in {folder} before it was done; going on')
    _write(file, f'process {os.getpid()} on {socket.gethostname()}')
    yield
    _write(file, '')


def _write(file, text: str) -> None:
  file.seek(0)
  file.truncate()
  file.write(text)
  file.flush()
