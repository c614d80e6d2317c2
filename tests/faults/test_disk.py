"""What a disk can do to a run while it saves, and what the run then does."""

import os
import shutil

from helpers import runs
import pytest

pytestmark = pytest.mark.slow

# Something happens once the line of a step has been logged; checkpoints are due
# at steps 2, 4, 6, 8 and 9, and `best` may be at 3, 6 and 9.
AFTER = """
import resource, shutil
def happen(point, path=None, record=None, **facts):
  if point == 'logged' and path.name == 'metrics.jsonl':
    happens.get(record['step'], lambda: None)()
faults.watch(happen)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def room(kilobytes):
  limit = kilobytes * 1024 if kilobytes else resource.RLIM_INFINITY
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
def slow(seconds, original=os.rename):
  def rename(source, target, **kwargs):
    time.sleep(seconds if 'checkpoints' in str(target) else 0)
    original(source, target, **kwargs)
  os.rename = rename
last, away = workdir / 'checkpoints/last', workdir / 'away'
def take_away():  # between two saves
  while not (last / '4').exists(): time.sleep(0.01)
  time.sleep(0.5)
  last.rename(away)
def lose_permission():
  os.setegid(65534), os.seteuid(65534)
"""
FULL = AFTER + 'happens = {3: lambda: room(4), 7: lambda: room(0)}'
REMOVED = AFTER + 'happens = {5: take_away}'
# A file stands where the folder was.
REPLACED = AFTER + (
  'happens = {5: lambda: (take_away(), last.write_text("")),'
  ' 7: lambda: (last.unlink(), last.mkdir())}'
)
NO_PERMISSION = AFTER + 'happens = {5: lose_permission}'
SLOW = AFTER + 'happens = {1: lambda: slow(2)}'


@pytest.fixture
def place(quick_reference):
  """Returns (environment, an empty workdir, the undisturbed run)."""
  environment, workdir, kept, _ = quick_reference
  shutil.rmtree(workdir, ignore_errors=True)
  return environment, workdir, kept


def says(errors: str) -> str:
  """Returns the one sentence a run ended with."""
  assert 'Traceback' not in errors, errors
  lines = [s for s in errors.splitlines() if s.startswith('stopped: ')]
  assert len(lines) == 1, errors
  return lines[0]


@pytest.mark.parametrize(
  'plan, sentence',
  [
    (FULL, 'could not save a checkpoint in'),
    (REPLACED, 'could not save a checkpoint in'),
    pytest.param(
      NO_PERMISSION,
      'cannot be written: Permission denied',
      marks=pytest.mark.skipif(os.geteuid() != 0, reason='only root can'),
    ),
  ],
  ids=['full', 'replaced', 'no permission'],
)
def test_it_stops_in_a_sentence_and_goes_on_later(plan, sentence, place):
  environment, workdir, kept = place
  done = runs.run(environment, runs.arguments(workdir), plan, code=1)
  assert sentence in says(done.stderr)
  found = workdir / 'checkpoints/last'
  if found.is_file():  # what took its place is for its owner to remove
    found.unlink()
  runs.run(environment, runs.arguments(workdir))
  runs.assert_equal_runs(workdir, kept)


@pytest.mark.parametrize('plan', [FULL, REPLACED], ids=['full', 'replaced'])
def test_it_goes_on_without_that_checkpoint_where_told(plan, place):
  environment, workdir, kept = place
  flag = '--config.save.on_failure=go_on'
  argv = runs.arguments(workdir, 'pgd_at.py:digits', flag)
  done = runs.run(environment, argv, plan, code=0)
  assert 'could not save a checkpoint in' in done.stdout
  assert 'going on without it' in done.stdout
  assert 'Traceback' not in done.stderr
  last, expected = (runs.arrays(w, 'last') for w in (workdir, kept))
  assert last['digests'] == expected['digests']
  # What was not saved does not count as the best one.
  chosen = last['record']['best']['step']
  assert runs.arrays(workdir, 'best')['steps'] == [chosen]


def test_a_folder_that_is_removed_is_made_again(place):
  environment, workdir, kept = place
  runs.run(environment, runs.arguments(workdir), REMOVED, code=0)
  last, expected = (runs.arrays(w, 'last') for w in (workdir, kept))
  assert last['digests'] == expected['digests']


def test_a_slow_disk_changes_nothing(place):
  environment, workdir, kept = place
  runs.run(environment, runs.arguments(workdir), SLOW, code=0)
  runs.assert_equal_runs(workdir, kept)
