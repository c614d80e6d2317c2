"""The local launcher for real: one of four processes is killed."""

import os
from pathlib import Path
import signal
import subprocess
import sys

from helpers import several_processes as processes
from helpers.runs import ROOT
import pytest

pytestmark = pytest.mark.slow


def begin(workdir: Path) -> subprocess.Popen:
  return subprocess.Popen(
    ['launch/local.sh', '--processes', '4', '--devices', '1', '--retries', '2',
     '--', *processes.arguments(workdir)],
    cwd=ROOT,
    env={
      **os.environ,
      'PYTHON': sys.executable,
      'PYTHONPATH': str(ROOT),
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )  # fmt: skip


def descendants(pid: int) -> list[int]:
  found = subprocess.run(
    ['pgrep', '-P', str(pid)], capture_output=True, text=True
  ).stdout.split()
  return [int(c) for c in found] + [
    d for c in found for d in descendants(int(c))
  ]


def words_of(pid: int) -> str:
  """Returns the command line of a process, '' if it has ended."""
  path = Path(f'/proc/{pid}/cmdline')
  try:
    return path.read_text().replace('\0', ' ')
  except OSError:
    return ''


def test_four_processes_one_killed_all_start_again(tmp_path):
  plain = begin(tmp_path / 'plain')
  assert plain.communicate(timeout=500) and plain.returncode == 0

  run = begin(tmp_path / 'run')
  processes.wait_for_step(tmp_path / 'run', 3)
  victims = [
    pid for pid in descendants(run.pid) if '--process_id 2' in words_of(pid)
  ]
  assert victims
  os.kill(victims[-1], signal.SIGKILL)  # the child, which does the work
  output, errors = run.communicate(timeout=500)
  assert run.returncode == 0, errors
  assert 'restart 1 of 2' in errors
  assert 'going on from step' in output
  found = [processes.weights_of(tmp_path / name) for name in ('plain', 'run')]
  assert found[0] == found[1]
  assert processes.log_of(tmp_path / 'plain') == processes.log_of(
    tmp_path / 'run'
  )
  assert not descendants(run.pid)
