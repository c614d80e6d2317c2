"""A run that is killed and started again equals one that was not, bitwise.

Each kill is a real SIGKILL, sent by the process to itself at an exact point of
the program (or from outside, at whatever point that meets).
"""

import os
from pathlib import Path
import platform
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
import pytest

from jax_robust_kd import checkpoint, lock, main
from jax_robust_kd.metrics import read_json, read_lines

ROOT = Path(__file__).parent.parent

# Runs the program with a line of Python that plants the kill, `argv[0]`.
WITH_KILL = """
import os, signal, sys, threading, time
from pathlib import Path
from jax_robust_kd import assess, build, evaluate, main, metrics, results, train

def die(): os.kill(os.getpid(), signal.SIGKILL)

def kill(module, name, when=lambda *args: True, count=1, after=False):
  original, calls = getattr(module, name), []
  def replaced(*args, **kwargs):
    calls.extend([1] if when(*args) else [])
    if len(calls) == count and not after: die()
    result = original(*args, **kwargs)
    if len(calls) == count: die()
    return result
  setattr(module, name, replaced)

def logs(step):  # the line of a step is about to be logged
  return lambda path, line: (path.name, line['step']) == ('metrics.jsonl', step)

def becomes(end):  # a file or folder is about to get its final name
  return lambda source, target: str(target).endswith(end)

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
  '--config.attack.num_steps=2',
  '--config.eval.every_epochs=1',
  '--config.save.every_steps=2',
  '--config.log_every=1',
  '--config.eval.attack=pgd-2',
  "--config.eval.suite=('fgsm','pgd-2')",
)

# The evaluation's attacks are: clean, fgsm, pgd-2. Validations are at steps 3,
# 6 and 9, each calling check_inside twice; checkpoints at 2, 4, 6, 8 and 9.
POINTS = {
  'compiling the first step': "kill(train.preview, 'describe', after=True)",
  'before a line is logged': "kill(metrics, 'append', logs(5))",
  'after the line, before its checkpoint': (
    "kill(metrics, 'append', logs(4), after=True)"
  ),
  # A checkpoint that is whole before its line would lose the line.
  'when logging takes long': (
    "kill(metrics, 'append', lambda *a: logs(4)(*a) and not time.sleep(2))"
  ),
  'in the arrays of a checkpoint': (
    "appears('checkpoints/last/4.*/state.*/*/d/*', '/state')"
  ),
  'before a checkpoint is whole': "kill(os, 'rename', becomes('last/6'))",
  'after a checkpoint is whole': (
    "kill(os, 'rename', becomes('last/6'), after=True)"
  ),
  'in validation': "kill(evaluate.packing, 'check_inside', count=4)",
  'in the first best checkpoint': "kill(os, 'rename', becomes('best/3'))",
  # The next one must wait: its record says that the best one is there.
  'when the best checkpoint takes long': (
    "appears('checkpoints/last/4', 'best/3')"
  ),
  'between the best and the last checkpoint': (
    "kill(train.checkpoint, 'save', lambda f, n, *_: "
    "(f.directory.name, n) == ('last', 9))"
  ),
  'before the last checkpoint is whole': (
    "kill(os, 'rename', becomes('last/9'))"
  ),
  'before the evaluation': "kill(assess, 'evaluate_run')",
  'between attacks': "kill(evaluate, '_save', count=2, after=True)",
  'while the flags are written': "kill(evaluate.np, 'savez', count=3)",
  'before the results': "kill(results, 'write_json', becomes_results)",
}
RESULTS = "becomes_results = lambda p, _: p.name == 'results.json'\n"

TEACHER = """
from jax_robust_kd.config import base_config

def get_config():
  c = base_config('digits')
  c.method = dict(name='trades')
  c.student = dict(name='small_resnet', depth=8, width=4)
  c.data.batch_size = 32
  c.eval.update(batch_size=32, num_examples=40, attack='pgd-2', every_epochs=1,
                suite=('fgsm',))
  c.optimizer.epochs = 2
  c.save.every_steps = 2
  c.log_every = 1
  return c
"""
# The teacher has 6 steps and validations at 3 and 6; the student follows.
TEACHER_POINTS = {
  'in the teacher': "kill(metrics, 'append', logs(5))",
  'in the evaluation of the teacher': (
    "kill(evaluate, '_save', count=1, after=True)"
  ),
  'in the student': "kill(metrics, 'append', logs(5), count=2)",
  'in a checkpoint of the student': (
    "appears('checkpoints/last/4.*/state.*/*/d/*', '/state')"
  ),
  'in the evaluation of the student': (
    "kill(evaluate, '_save', count=4, after=True)"
  ),
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


@pytest.fixture(scope='session')
def reference(tmp_path_factory):
  return make_reference(tmp_path_factory.mktemp('runs'))


@pytest.fixture(scope='session')
def quick_reference(tmp_path_factory):
  """Compiled in a third of the time."""
  folder = tmp_path_factory.mktemp('quick')
  return make_reference(folder, JAX_DISABLE_MOST_OPTIMIZATIONS='1')


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
    start = ['-c', WITH_KILL, RESULTS + plan]
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


def test_a_killed_run_ends_as_if_it_had_not_been(quick_reference):
  """Two kill points of the many that the slow test has."""
  environment, workdir, kept, first = quick_reference
  steps = [line['step'] for line in read_lines(kept / 'metrics.jsonl')]
  assert steps == list(range(1, 10))
  argv = arguments(workdir)
  run(environment, argv, POINTS['in the arrays of a checkpoint'])
  found = {p.name for p in (workdir / 'checkpoints/last').iterdir()}
  assert found == {'2', '4.orbax-checkpoint-tmp'}  # the kill was in between
  assert 'going on from step 2' in run(environment, argv).stdout
  assert_equal_runs(workdir, kept)

  plan = POINTS['between attacks']
  output = check_kill(environment, argv, plan, workdir, kept)
  assert 'going on from step 9' in output
  assert table(output) == table(first)

  before = (workdir / 'speed.jsonl').read_bytes()  # grows with every step
  again = run(environment, argv).stdout
  assert table(again) == table(first) and len(table(again)) == 2
  assert (workdir / 'speed.jsonl').read_bytes() == before
  assert_equal_runs(workdir, kept)


def test_a_killed_evaluation_repeats_one_attack_on_one_pool(quick_reference):
  """500 images are two pools, so three columns are six units.

  Without AVX-512: some processors round all batch sizes alike with it.
  """
  environment, workdir, reference, _ = quick_reference
  if platform.machine() == 'x86_64':
    flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_cpu_max_isa=AVX2'
    environment = environment | {'XLA_FLAGS': flags}
  argv = arguments(
    workdir, 'pgd_at.py:digits', '--config.eval.num_examples=0', '--mode=eval'
  )
  suite = "--config.eval.suite=('apgd_ce-5','square-20')"
  argv[argv.index(TINY[-1])] = suite  # of two, both would count

  def begin():
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(
      reference, workdir, ignore=shutil.ignore_patterns('attacked', '*.csv')
    )

  begin()
  run(environment, argv)
  undisturbed, flags = kept(workdir), (workdir / 'images.csv').read_bytes()
  columns = ('clean', 'apgd_ce-5', 'square-20')
  units = [f'{c}-{first}.npz' for c in columns for first in (0, 256)]
  assert undisturbed.keys() == set(units)
  assert flags.count(b'\n') == 501

  begin()
  there = {}
  for plan, done in (
    ("kill(evaluate, '_save', count=3, after=True)", 3),  # between two pools
    ("kill(evaluate.np, 'savez', count=3)", 5),  # before the last is written
    (None, 6),
  ):
    run(environment, argv, plan)
    files = {u: (workdir / 'attacked' / u) for u in units}
    found = {u: p.stat().st_mtime_ns for u, p in files.items() if p.exists()}
    assert list(found) == units[:done]
    assert there.items() <= found.items(), 'a finished unit was run again'
    there = found
  assert kept(workdir) == undisturbed
  assert (workdir / 'images.csv').read_bytes() == flags


# SIGTERM, once the line of a step has been logged.
ASK = """
def ask(path, line, original=metrics.append):
  original(path, line)
  if (path.name, line['step']) == ('metrics.jsonl', 5):
    os.kill(os.getpid(), signal.SIGTERM)
metrics.append = ask
"""


def test_a_run_that_is_asked_to_end_saves_and_goes_on(quick_reference):
  """Step 5 is no step at which a checkpoint is due."""
  environment, workdir, kept, _ = quick_reference
  shutil.rmtree(workdir, ignore_errors=True)
  argv = arguments(workdir)
  asked = run(environment, argv, ASK, code=75)
  assert asked.stderr == (
    'stopped: asked to end by SIGTERM; step 5 is saved, the same command goes '
    'on from there\n'
  )
  assert 'going on from step 5' in run(environment, argv).stdout
  assert_equal_runs(workdir, kept)


def test_a_second_run_in_the_same_workdir_is_refused(quick_reference):
  environment, workdir, kept, _ = quick_reference
  shutil.copytree(kept, workdir, dirs_exist_ok=True)
  argv = arguments(workdir)
  with lock.held(workdir):
    refused = run(environment, argv, code=2, plan='')
  assert refused.stderr.count('\n') == 1
  assert f'is in use by process {os.getpid()} on ' in refused.stderr
  (workdir / 'lock').write_text('process 1 on elsewhere')  # it was killed
  done = run(environment, argv)
  assert 'process 1 on elsewhere ended' in done.stdout
  assert (workdir / 'lock').read_text() == ''


@pytest.mark.slow
@pytest.mark.parametrize('point', POINTS)
def test_every_kill_point(point, reference):
  environment, workdir, kept, _ = reference
  check_kill(environment, arguments(workdir), POINTS[point], workdir, kept)


@pytest.mark.slow
def test_many_kills_of_one_run(reference):
  environment, workdir, kept, _ = reference
  shutil.rmtree(workdir, ignore_errors=True)
  argv = arguments(workdir)
  for point in (
    'before a line is logged',
    'between the best and the last checkpoint',
    'before the last checkpoint is whole',
    'between attacks',
  ):
    run(environment, argv, POINTS[point])
  run(environment, argv)
  assert_equal_runs(workdir, kept)


@pytest.mark.slow
def test_kills_from_outside(reference):
  """At whatever point is met when a line of the log has been written."""
  environment, workdir, kept, _ = reference
  shutil.rmtree(workdir, ignore_errors=True)
  argv = arguments(workdir)
  for lines in (1, 5):
    process = subprocess.Popen(
      [sys.executable, '-m', 'jax_robust_kd.main', *argv],
      env=environment,
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while len(read_lines(workdir / 'metrics.jsonl')) < lines:
      assert time.monotonic() < deadline
      time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
  run(environment, argv)
  assert_equal_runs(workdir, kept)


@pytest.mark.slow
def test_kills_of_a_run_with_a_teacher(tmp_path):
  """The one command that trains a teacher and then its student."""
  environment = make_environment(tmp_path)
  config = tmp_path / 'teacher.py'
  config.write_text(TEACHER)
  workdir, kept = tmp_path / 'run', tmp_path / 'reference'
  argv = arguments(
    workdir, 'adaad.py:digits', f'--config.teacher.config={config}'
  )
  run(environment, argv)
  workdir.rename(kept)
  for plan in TEACHER_POINTS.values():
    check_kill(environment, argv, plan, workdir, kept)
    assert_equal_runs(workdir / 'teacher', kept / 'teacher')


@pytest.mark.slow
def test_a_damaged_cache_of_compiled_programs_does_no_harm(reference):
  """A kill may cut a file that JAX is writing there."""
  environment, workdir, kept, _ = reference
  shutil.rmtree(workdir, ignore_errors=True)
  run(environment, arguments(workdir), POINTS['before a line is logged'])
  files = list(Path(environment['JAX_COMPILATION_CACHE_DIR']).glob('*-cache'))
  assert files
  for path in files:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  run(environment, arguments(workdir))
  assert_equal_runs(workdir, kept)


@pytest.fixture
def quick_compile():
  """Compiled programs are kept by the process: no cache, few optimizations."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
  jax.config.update('jax_compilation_cache_dir', before)


@pytest.mark.parametrize(
  'flags,found',
  [
    # Step 1 makes the weights huge, step 2 has a loss that is not a number.
    (['--config.optimizer.learning_rate=1e20'], 'the loss is nan at step 2'),
    # The loss of step 3 is finite, its gradient is not: without a look at the
    # gradient the checkpoint of step 3 would hold weights that are NaN.
    (['--config.optimizer.learning_rate=1e9'], 'the grad_norm is nan at step'),
  ],
)
def test_a_loss_that_is_not_finite_stops_the_run(
  flags, found, tmp_path, capsys, quick_compile
):
  flags += [
    '--config.optimizer.warmup_epochs=0',
    '--config.optimizer.ema_decay=0',
    '--config.save.every_steps=1',
    '--config.eval.every_epochs=100',
  ]
  assert (
    main.main(
      ['main', *arguments(tmp_path / 'run', 'pgd_at.py:digits', *flags)]
    )
    == 1
  )
  sentence = capsys.readouterr().err
  assert sentence.startswith(f'stopped: {found}') and sentence.count('\n') == 1
  assert 'Traceback' not in sentence
  last = tmp_path / 'run/checkpoints/last'
  folder = checkpoint.open_folder(tmp_path / 'run', 'last', 2)
  steps = folder.all_steps()
  assert f'the last good checkpoint is step {max(steps)} in {last}' in sentence
  for step in steps:
    state, _ = checkpoint._restore_step(folder, step, None)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
  folder.close()
