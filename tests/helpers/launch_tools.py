"""A place where the launchers can be run: a small repository, stand-ins."""

import json
import os
from pathlib import Path
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple

HERE = Path(__file__).parent
LAUNCH = HERE.parents[1] / 'launch'
STAND_INS = HERE / 'stand_ins'
sys.path.insert(0, str(STAND_INS))
from known_flags import COMMANDS  # noqa: E402

PROGRAMS = sorted({name.split()[0] for name in COMMANDS})
HOST_PROGRAMS = ('sudo', 'mountpoint', 'python3', 'tail')


class Place(NamedTuple):
  """Where a launcher runs."""

  repository: Path
  folder: Path  # of the stand-ins: calls, what exists, hosts, plan
  env: dict[str, str]


def git(place: Path, *words: str) -> str:
  """Runs git there; returns what it prints."""
  name = ['-c', 'user.name=a', '-c', 'user.email=a@b']
  return subprocess.run(
    ['git', *name, *words],
    cwd=place,
    check=True,
    capture_output=True,
    text=True,
  ).stdout


def make_repository(repository: Path) -> None:
  """Makes a committed repository with the launchers."""
  shutil.copytree(
    LAUNCH, repository / 'launch', ignore=shutil.ignore_patterns('env')
  )
  (repository / 'requirements.lock').write_text('jax==1\n')
  (repository / '.gitignore').write_text('runs/\n')
  git(repository, 'init', '--quiet', '--template=')
  git(repository, 'add', '.')
  git(repository, 'commit', '--quiet', '--message', 'one')


def make_place(folder: Path, template: Path) -> Place:
  """Makes a copy of a repository, and the stand-ins."""
  repository, stand_in = folder / 'repo', folder / 'stand_in'
  shutil.copytree(template, repository)
  for name in ('bin', 'host_bin', 'hosts/0', 'hosts/1', 'plan'):
    (stand_in / name).mkdir(parents=True)
  for name in PROGRAMS:
    (stand_in / 'bin' / name).symlink_to(STAND_INS / 'stand_in.py')
  for name in HOST_PROGRAMS:
    (stand_in / 'host_bin' / name).symlink_to(STAND_INS / 'host.sh')
  env = dict(
    PATH=f'{stand_in}/bin:{os.environ["PATH"]}',
    HOME=str(folder),
    STAND_IN=str(stand_in),
    PLAN=str(stand_in / 'plan'),
    PROGRAM=str(STAND_INS / 'program.sh'),
    POLL='0.05',
    PAUSE='0',
    SHARE='10.0.0.2:/runs',
    GIT_AUTHOR_NAME='a',
    GIT_AUTHOR_EMAIL='a@b',
    GIT_COMMITTER_NAME='a',
    GIT_COMMITTER_EMAIL='a@b',
  )
  return Place(repository, stand_in, env)


def launch(place: Place, line: str, *words: str, code: int = 0, **env: str):
  """Runs launch/LINE WORDS; returns what it printed, errors included."""
  done = subprocess.run(
    [*shlex.split(f'launch/{line}'), *words],
    cwd=place.repository,
    env=dict(place.env, **env),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=60,
  )
  assert done.returncode == code, done.stdout
  return done.stdout


def arguments(place: Place) -> list[str]:
  """Those of the program, with a workdir that may be made here."""
  return ['--config', 'configs/a b.py:x', '--workdir', f'{place.folder}/one']


def calls(place: Place) -> list[list[str]]:
  """The recorded calls, oldest first."""
  path = place.folder / 'calls.jsonl'
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


def exists(place: Place) -> list[str]:
  """What was created and not deleted."""
  path = place.folder / 'world.json'
  return json.loads(path.read_text()) if path.exists() else []


def plan(place: Place, process: int, *steps: str) -> None:
  """Says what a process of the program does, time after time."""
  path = Path(place.env['PLAN']) / str(process)
  path.write_text(''.join(f'{step}\n' for step in steps))


def program_calls(place: Place, process: int) -> list[list[str]]:
  """Platform, devices and arguments of each start of a process."""
  path = Path(place.env['PLAN']) / f'{process}.calls'
  if not path.exists():
    return []
  return [line.split(' ', 2) for line in path.read_text().splitlines()]


def alive(place: Place) -> list[int]:
  """The processes of the program that still run."""
  pids = (Path(place.env['PLAN']) / 'pids').read_text().split()
  return [int(pid) for pid in pids if not _ended(int(pid))]


def _ended(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return True
  status = Path(f'/proc/{pid}/stat')  # one that nobody waited for has ended too
  try:
    return status.read_text().split()[2] == 'Z'
  except FileNotFoundError:
    return Path('/proc').is_dir()  # it ended just now
