"""A workdir is held by one run, and said to be open where it cannot be."""

import errno
import subprocess
import sys

import pytest

from jax_robust_kd.core import UserError
from jax_robust_kd.runtime import lock

HOLD = """
import pathlib, sys
from jax_robust_kd.runtime import lock
with lock.held(pathlib.Path(sys.argv[1])):
  print('held', flush=True)
  sys.stdin.read()
"""


def test_a_folder_is_held_once_and_free_when_its_process_is_killed(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path)],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert process.stdout and process.stdout.readline() == 'held\n'
  with (
    pytest.raises(UserError, match=f'in use by process {process.pid} on '),
    lock.held(tmp_path),
  ):
    pass
  process.kill()
  process.communicate()
  with lock.held(tmp_path):
    pass
  assert (tmp_path / 'lock').read_text() == ''


def test_a_system_without_flock_is_told_so(tmp_path, monkeypatch, capsys):
  """As on Windows, where Python has no `fcntl`."""
  monkeypatch.setitem(sys.modules, 'fcntl', None)
  with lock.held(tmp_path), lock.held(tmp_path):
    said = ' '.join(capsys.readouterr().out.split())
  assert said.count('cannot be locked; start only one run there') == 2
  assert 'was here last; make sure that it has ended' in said
  assert 'before it was done' not in said


@pytest.mark.parametrize('number', [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_so(
  tmp_path, monkeypatch, capsys, number
):
  fcntl = pytest.importorskip('fcntl')

  def fail(file, how):
    raise OSError(number, 'no locks')

  monkeypatch.setattr(fcntl, 'flock', fail)
  with lock.held(tmp_path):
    pass
  assert 'cannot be locked' in ' '.join(capsys.readouterr().out.split())
  assert (tmp_path / 'lock').read_text() == ''
