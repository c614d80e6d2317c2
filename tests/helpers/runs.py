"""Runs of the program that are killed at named points, and what they leave."""

import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

import numpy as np

from jax_robust_kd.runtime import checkpoint
from jax_robust_kd.runtime.files import read_json

ROOT = Path(__file__).parents[2]

# Runs the program with a line of Python that plants the kill, `argv[0]`.
WITH_KILL = """
import os, signal, sys, threading, time
from pathlib import Path
from jax_robust_kd import main
from jax_robust_kd.runtime import faults

def die(): os.kill(os.getpid(), signal.SIGKILL)

def kill(name, when=lambda **facts: True, count=1):
  calls = []
  def watch(point, **facts):
    if point == name and when(**facts): calls.append(1)
    if len(calls) == count: die()
  faults.watch(watch)

def kill_rename(end, after=False):  # a file or folder gets its final name
  original = os.rename
  def replaced(source, target, **kwargs):
    found = str(target).endswith(end)
    if found and not after: die()
    original(source, target, **kwargs)
    if found: die()
  os.rename = replaced

def logs(step):  # the line of a step
  wanted = ('metrics.jsonl', step)
  return lambda path, record: (path.name, record['step']) == wanted

def appears(pattern, end):  # in the middle of writing what will be named `end`
  original = os.rename
  def slow(source, target, **kwargs):
    time.sleep(5 if str(target).endswith(end) else 0)
    original(source, target, **kwargs)
  os.rename = slow
  def watch():
    while not any(workdir.glob(pattern)): time.sleep(0.0005)
    die()
  threading.Thread(target=watch, daemon=True).start()

plan, *argv = sys.argv[1:]
workdir = Path(argv[-1].removeprefix('--workdir='))
exec(plan)
sys.argv = ['main', *argv]
main.run_command(main.main)
"""

# 96 images in batches of 32: 3 steps an epoch, 9 steps.
TINY = (
  '--config.data.num_train=96',
  '--config.data.val_size=32',
  '--config.data.batch_size=32',
  '--config.eval.batch_size=32',
  '--config.eval.num_examples=40',
  '--config.student.width=4',
  '--config.optimizer.epochs=3',
  '--config.optimizer.ema_decay=0.9',
  '--config.train_attack.num_steps=2',
  '--config.validation.every_epochs=1',
  '--config.save.every_steps=2',
  '--config.log_every=1',
  '--config.validation.attack=pgd-2',
  "--config.eval.suite=('fgsm','pgd-2')",
)

# The evaluation's attacks are: clean, fgsm, pgd-2. Validations are at steps 3,
# 6 and 9, each calling check_inside twice; checkpoints at 2, 4, 6, 8 and 9.
POINTS = {
  'compiling the first step': "kill('described')",
  'before a line is logged': "kill('log', logs(5))",
  'after the line, before its checkpoint': "kill('logged', logs(4))",
  # A checkpoint that is whole before its line would lose the line.
  'when logging takes long': (
    "kill('log', lambda **f: logs(4)(**f) and not time.sleep(2))"
  ),
  'in the arrays of a checkpoint': (
    "appears('checkpoints/last/4.*/state.*/*/d/*', '/state')"
  ),
  'before a checkpoint is whole': "kill_rename('last/6')",
  'after a checkpoint is whole': "kill_rename('last/6', after=True)",
  'in validation': "kill('attacked', count=4)",
  'in the first best checkpoint': "kill_rename('best/3')",
  # The next one must wait: its record says that the best one is there.
  'when the best checkpoint takes long': (
    "appears('checkpoints/last/4', 'best/3')"
  ),
  'between the best and the last checkpoint': (
    "kill('save', lambda folder, step: (folder, step) == ('last', 9))"
  ),
  'before the last checkpoint is whole': "kill_rename('last/9')",
  'before the evaluation': "kill('evaluate')",
  'between attacks': "kill('kept', count=2)",
  'while the flags are written': "kill('keep', count=3)",
  'before the results': (
    "kill('write', lambda path: path.name == 'results.json')"
  ),
}

TEACHER = """
from jax_robust_kd.config import base_config

def get_config():
  c = base_config('digits')
  c.method = dict(name='trades')
  c.student = dict(name='small_resnet', depth=8, width=4)
  c.data.batch_size = 32
  c.eval.update(batch_size=32, num_examples=40, suite=('fgsm',))
  c.validation.update(attack='pgd-2', every_epochs=1)
  c.optimizer.epochs = 2
  c.save.every_steps = 2
  c.log_every = 1
  return c
"""
# The teacher has 6 steps and validations at 3 and 6; the student follows.
TEACHER_POINTS = {
  'in the teacher': "kill('log', logs(5))",
  'in the evaluation of the teacher': "kill('kept')",
  'in the student': "kill('log', logs(5), count=2)",
  'in a checkpoint of the student': (
    "appears('checkpoints/last/4.*/state.*/*/d/*', '/state')"
  ),
  'in the evaluation of the student': "kill('kept', count=4)",
}


class Reference(NamedTuple):
  """A run that nobody killed, moved away from the workdir of all others."""

  environment: dict
  workdir: Path  # for the runs that are killed
  kept: Path  # the run itself
  output: str


def make_environment(folder: Path) -> dict:
  """With one cache of compiled programs, so that starting again is quick."""
  return {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': '2',
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'PYTHONPATH': str(ROOT),
  }


def make_reference(folder: Path, **variables: str) -> Reference:
  environment = make_environment(folder) | variables
  workdir, kept = folder / 'run', folder / 'reference'
  done = run(environment, arguments(workdir))
  workdir.rename(kept)
  return Reference(environment, workdir, kept, done.stdout)


def arguments(workdir, config='pgd_at.py:digits', *flags) -> list[str]:
  return [
    f'--config={ROOT}/configs/{config}', *TINY, *flags, f'--workdir={workdir}'
  ]  # fmt: skip


def run(
  environment, argv, plan=None, code=-signal.SIGKILL
) -> subprocess.CompletedProcess:
  """Runs the program, to its end or to its planned death."""
  start = ['-m', 'jax_robust_kd.main']
  if plan is not None:
    start = ['-c', WITH_KILL, plan]
  done = subprocess.run(
    [sys.executable, *start, *argv],
    env=environment,
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  expected = 0 if plan is None else code
  assert done.returncode == expected, done.stdout + done.stderr
  return done


def arrays(workdir: Path, name: str) -> dict:
  """Every number of the newest checkpoint, with its record."""
  folder = checkpoint.open_folder(workdir, name, 2)
  steps = sorted(folder.all_steps())
  found = checkpoint.restore(folder, None)
  folder.close()
  assert found is not None
  state, record = found
  return {
    'steps': steps,
    'record': record,
    'digests': checkpoint.digests(state),
  }


def assert_equal_runs(workdir: Path, reference: Path) -> None:
  """Weights, optimizer, log, results and flags are the same, bitwise."""
  for name in ('last', 'best'):
    assert arrays(workdir, name) == arrays(reference, name)
  for name in ('metrics.jsonl', 'config.json'):
    assert (workdir / name).read_bytes() == (reference / name).read_bytes()
  results = [read_json(w / 'results.json') for w in (workdir, reference)]
  for card in results:
    card.pop('commit')  # someone may commit while this test runs
  assert results[0] == results[1]
  assert kept(workdir) == kept(reference)
  name = 'images.csv'
  assert (workdir / name).read_bytes() == (reference / name).read_bytes()


def kept(workdir) -> dict[str, dict[str, bytes]]:
  """What each attack left, but for the identity, which holds the commit."""
  found = {}
  for path in sorted((workdir / 'attacked').glob('[!u]*.npz')):
    with np.load(path) as file:
      names = set(file.files) - {'identity'}
      found[path.name] = {n: file[n].tobytes() for n in names}
  return found


def check_kill(environment, argv, plan, workdir, reference) -> str:
  """Kills a run, starts it again to its end, compares; returns its output."""
  shutil.rmtree(workdir, ignore_errors=True)
  run(environment, argv, plan)
  done = run(environment, argv)
  assert_equal_runs(workdir, reference)
  return done.stdout


def table(output: str) -> list[str]:
  return [s for s in output.splitlines() if s.startswith(('│', 'digits,'))]
