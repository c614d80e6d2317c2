"""Runs of a comparison: failing, waiting, killed, and one for real."""

import csv
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from jax_robust_kd.__main__ import main
from jax_robust_kd.compare import children, configs, outputs, scatter
from jax_robust_kd.config import load_config
from jax_robust_kd.core import Preempted

ROOT = Path(__file__).parents[2]
KD = f'{ROOT}/configs/kd.py:digits'
NATURAL = f'{ROOT}/configs/natural.py:digits'

# A stand-in for the main program: leaves results, fails, or waits.
FINISH = (
  'import pathlib, sys; pathlib.Path(sys.argv[1], "results.json").touch()'
)


def task(folder, code=FINISH, **fields):
  command = [sys.executable, '-S', '-c', code, str(folder)]
  return children.Task(folder.name, folder, command, **fields)


def run(tasks, at_once=1):
  calls = []
  failed = children.run_all(
    tasks,
    at_once=at_once,
    environment=os.environ,
    after=lambda failed: calls.append(dict(failed)),
  )
  return {folder.name: error for folder, error in failed.items()}, calls


def test_a_failing_run_does_not_stop_the_others(tmp_path, capsys):
  failed, calls = run([
      task(tmp_path / 'user', 'import sys; print("error: no such x", '
           'file=sys.stderr); print("bye"); sys.exit(2)'),
      task(tmp_path / 'bug', 'raise ValueError("what")'),
      task(tmp_path / 'killed', 'import os; os.kill(os.getpid(), 9)'),
      task(tmp_path / 'idle', 'print("all is well")'),
      task(tmp_path / 'good'),
      task(tmp_path / 'pupil', needs=(tmp_path / 'bug',)),
  ])  # fmt: skip
  assert failed == {
    'user': 'no such x',
    'bug': 'exit code 1: ValueError: what',
    'killed': 'killed by SIGKILL; is there enough memory?',
    'idle': 'exit code 0: all is well',
    'pupil': 'not run, as its teacher failed',
  }
  assert len(calls) == 6 and (tmp_path / 'good/results.json').exists()
  assert 'user: FAILED: no such x' in capsys.readouterr().out


def test_the_sentence_is_of_the_newest_attempt(tmp_path):
  assert run([task(tmp_path / 'a', 'raise SystemExit("error: one")')])[0]
  failed, _ = run([task(tmp_path / 'a', 'raise SystemExit(3)')])
  assert failed == {'a': 'exit code 3: it said nothing'}


def test_finished_runs_are_not_run_again(tmp_path):
  tasks = [task(tmp_path / 'a'), task(tmp_path / 'b')]
  run(tasks)
  log = tmp_path / 'a/attempts.jsonl'
  before = log.read_text()
  failed, calls = run(tasks)
  assert (failed, calls, log.read_text()) == ({}, [], before)


def test_a_teacher_is_finished_before_its_students_start(tmp_path):
  slow = 'import time; time.sleep(0.5); ' + FINISH
  needs = (tmp_path / 'teacher',)
  look = (
    'import pathlib, sys; t = pathlib.Path(sys.argv[1]).parent / "teacher"; '
    'assert (t / "results.json").exists(); ' + FINISH
  )
  tasks = [
    task(tmp_path / 'teacher', slow),
    task(tmp_path / 'a', look, needs=needs),
    task(tmp_path / 'b', look, needs=needs),
  ]
  assert run(tasks, at_once=3)[0] == {}


def test_sigterm_has_the_runs_save(tmp_path, capsys):
  """And is no failure of theirs; nothing else starts."""
  saves = (
    'import pathlib, signal, sys, time; own = pathlib.Path(sys.argv[1])\n'
    'def save(*_):\n'
    '  time.sleep(0.3); (own / "saved").touch(); sys.exit(75)\n'
    'signal.signal(signal.SIGTERM, save); (own / "ready").touch()\n'
    'time.sleep(60)\n'
  )
  tasks = [task(tmp_path / name, saves) for name in 'abc']

  def terminate():
    while not all((tmp_path / name / 'ready').exists() for name in 'ab'):
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=terminate).start()
  begin = time.monotonic()
  with pytest.raises(Preempted, match='the same command goes on'):
    run(tasks, at_once=2)
  assert time.monotonic() - begin < 30
  assert [(tmp_path / n / 'saved').exists() for n in 'abc'] == [1, 1, 0]
  assert not (tmp_path / 'c').exists()
  assert 'FAILED' not in capsys.readouterr().out
  # The seconds of a run that has saved are known.
  assert 0.3 <= children.wall_clock(tmp_path / 'a') < 30


def test_some_run_at_once(tmp_path):
  meet = (  # each waits until the other has started
    'import pathlib, sys, time; own = pathlib.Path(sys.argv[1]); '
    '(own / "here").touch(); other = own.parent / "ab".replace(own.name, "")\n'
    'for _ in range(100):\n  time.sleep(0.1)\n'
    '  if (other / "here").exists(): break\nelse: raise SystemExit(1)\n'
  )
  tasks = [task(tmp_path / name, meet + FINISH) for name in 'ab']
  assert run(tasks, at_once=2)[0] == {}


def test_time_to_go_follows_the_work(tmp_path):
  tasks = [
    task(tmp_path / n, cost=w) for n, w in [('a', 2.0), ('b', 4.0), ('c', 6.0)]
  ]
  assert children.time_left(tasks, {}, 1) is None
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a/results.json').touch()
  log = tmp_path / 'a/attempts.jsonl'
  log.write_text('{"event": "start"}\n{"event": "end", "seconds": 20}\n')
  assert children.wall_clock(tmp_path / 'a') == 20
  assert children.time_left(tasks, {}, 1) == pytest.approx(100)
  assert children.time_left(tasks, {}, 2) == pytest.approx(50)
  assert children.time_left(tasks, {tmp_path / 'c': 'x'}, 1) == pytest.approx(
    40
  )
  # An attempt that was cut has no end: the time is not known.
  log.write_text('{"event": "start"}\n' + log.read_text())
  assert children.wall_clock(tmp_path / 'a') is None


TEACHER = """
from jax_robust_kd.config import base_config


def get_config():
  c = base_config('digits')
  c.method = dict(name='natural')
  c.student.width = 2
  c.data.batch_size = 32  # the program of natural training is shared
  c.data.augment.crop_pad = 0
  c.optimizer.epochs = 1
  return c
"""
TINY = (
  '--config.data.num_train=128',
  '--config.data.val_size=32',
  '--config.data.batch_size=32',
  '--config.eval.batch_size=50',
  '--config.eval.num_examples=50',
  '--config.student.width=2',
  '--config.optimizer.epochs=1',
  '--config.validation.attack=pgd-1',
  "--config.eval.suite=('pgd-1',)",
  '--config.log_every=1',
)


RUNS = f"""
from jax_robust_kd.config import load_config
from jax_robust_kd.core import Preempted


def get_runs():
  natural = load_config({NATURAL!r})
  natural.data.augment.crop_pad = 0
  return [('kd', load_config({KD!r})), ('no crop', natural)]
"""


def command(folder, *more):
  return [
    sys.executable, '-m', 'jax_robust_kd', 'compare', '--workdir',
    str(folder / 'w'), '--configs', f'{folder}/runs.py', '--seeds', '0,1',
    *TINY,
    f'--config.teacher.config={folder}/teacher.py', *more,
  ]  # fmt: skip


def results(folder):
  return sorted((folder / 'w').glob('**/results.json'))


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
  """A comparison of two methods and two seeds that was killed once."""
  folder = tmp_path_factory.mktemp('compare')
  (folder / 'teacher.py').write_text(TEACHER)
  (folder / 'runs.py').write_text(RUNS)
  environment = {
    **os.environ,
    'JAX_NUM_CPU_DEVICES': '1',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  first = subprocess.Popen(command(folder), cwd=ROOT, env=environment)
  end = time.monotonic() + 240
  log = folder / 'w/runs/kd/seed-0/log.txt'  # the teacher is finished then
  while not (log.exists() and log.stat().st_size):
    assert time.monotonic() < end and first.poll() is None
    time.sleep(0.02)
  first.send_signal(signal.SIGKILL)
  first.wait()
  kept = {path: path.stat().st_mtime_ns for path in results(folder)}
  again = subprocess.run(
    command(folder, '--jobs', '2'),
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
  )
  return folder, kept, again


def test_a_killed_comparison_goes_on(compared):
  folder, kept, again = compared
  assert again.returncode == 0, again.stdout + again.stderr
  names = [str(p.parent.relative_to(folder / 'w')) for p in results(folder)]
  assert names == [
      'runs/kd/seed-0', 'runs/kd/seed-1', 'runs/no_crop/seed-0',
      'runs/no_crop/seed-1', 'teacher',
  ]  # fmt: skip
  assert list(kept) == [folder / 'w/teacher/results.json']
  assert all(path.stat().st_mtime_ns == at for path, at in kept.items())
  assert re.search(r'run 2 of 5, about .+ to go: kd, seed 0', again.stdout)


def test_what_was_counted_is_what_runs(compared):
  """The cost is counted without a teacher; the run counts it with one."""
  folder, _, _ = compared
  told = json.loads((folder / 'w/comparison.json').read_text())
  passes = {r['label']: r['passes_per_step'] for r in told['runs']}
  for label, name in (('kd', 'kd'), ('no crop', 'no_crop')):
    log = (folder / f'w/runs/{name}/seed-1/log.txt').read_text()
    found = re.search(r'as much as ([\d.]+) +forward passes', log)
    assert found and float(found[1]) == round(passes[label], 1)


def test_all_files_tell_the_same(compared):
  folder, _, _ = compared
  told = json.loads((folder / 'w/comparison.json').read_text())
  with (folder / 'w/comparison.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [(r['label'], r['seed']) for r in rows] == [
      ('teacher', ''), ('kd', '0'), ('no crop', '0'), ('kd', '1'),
      ('no crop', '1'),
  ]  # fmt: skip
  for line, run in zip(rows, told['runs'], strict=True):
    card = json.loads(Path(line['folder'], 'results.json').read_text())
    assert float(line['clean']) == card['clean_acc'] == run['card']['clean_acc']
    assert float(line['pgd-1']) == card['accuracy']['pgd-1']
    assert (line['eps'], line['num_examples']) == ('2/16', '50')
    assert line['commit'] == card['commit']
  kd = next(s for s in told['labels'] if s['label'] == 'kd')
  cells = [x for x in rows if x['label'] == 'kd']
  one, two = (float(x['clean']) for x in cells)
  assert kd['mean']['clean'] == (one + two) / 2
  assert kd['sd']['clean'] == pytest.approx(abs(one - two) / 2**0.5)
  of = {s['label']: s for s in told['labels']}
  for line in rows:
    for name in ('clean', 'pgd-1', 'worst case'):
      for kind in ('mean', 'sd'):
        found = of[line['label']][kind].get(name, '')
        assert line[f'{name} {kind}'] == str(found)
  text = (folder / 'w/comparison.md').read_text()
  assert f'| kd | 2 | {kd["text"]["clean"]} |' in text
  assert text.startswith('digits, 50 test images, linf 2/16, accuracy in %')


def test_the_picture_is_drawn(compared):
  pytest.importorskip('matplotlib')
  picture = (compared[0] / 'w/comparison.png').read_bytes()
  assert picture[:4] == b'\x89PNG' and len(picture) > 10_000


def test_another_config_is_refused_before_anything_runs(compared, capsys):
  folder, _, _ = compared
  words = command(folder, '--config.optimizer.momentum=0.5')[4:]
  assert main(['jax-robust-kd', 'compare', *words]) == 2
  said = capsys.readouterr().err
  assert 'holds a run with another config: optimizer.momentum' in said


def test_without_matplotlib_there_is_a_table_still(
  monkeypatch, compared, tmp_path
):
  """And a teacher that was trained before is in it."""
  monkeypatch.setattr(scatter, 'can_draw', lambda: False)
  workdir = compared[0] / 'w'
  with (c := load_config(KD)).unlocked():
    c.teacher.checkpoint = str(workdir / 'teacher')
  run = configs.Run('kd', c, workdir / 'runs/kd/seed-0', KD, 0)
  outputs.write(tmp_path, [run], {}, [])
  lines = (tmp_path / 'comparison.md').read_text().splitlines()
  assert lines[4].startswith('| teacher (teacher) |  |')
  assert lines[5].startswith('| kd | 1 |')
  assert not (tmp_path / 'comparison.png').exists()


@pytest.mark.skipif(
  not hasattr(os, 'sched_setaffinity'), reason='the system cannot'
)
def test_runs_at_once_share_the_cores(tmp_path):
  """Each writes which cores it may use."""
  code = (
    'import os, pathlib, sys, time; time.sleep(0.3); '
    'p = pathlib.Path(sys.argv[1]); '
    'p.write_text(" ".join(map(str, sorted(os.sched_getaffinity(0)))))'
  )
  tasks = []
  for name in 'ab':
    folder = tmp_path / name
    command = [sys.executable, '-c', code, str(folder / 'results.json')]
    tasks.append(children.Task(name, folder, command))
  failed = children.run_all(
    tasks, at_once=2, environment=os.environ, after=lambda failed: None
  )
  assert not failed
  found = [set((t.folder / 'results.json').read_text().split()) for t in tasks]
  every = set(map(str, os.sched_getaffinity(0)))
  assert found[0] | found[1] == every
  assert not found[0] & found[1] or len(every) == 1
