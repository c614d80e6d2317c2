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

from helpers.runs import (
  POINTS,
  ROOT,
  TEACHER,
  TEACHER_POINTS,
  TINY,
  arguments,
  assert_equal_runs,
  check_kill,
  kept,
  make_environment,
  run,
  table,
)
import jax
import numpy as np
import pytest

from jax_robust_kd import main
from jax_robust_kd.runtime import checkpoint, lock
from jax_robust_kd.runtime.files import read_lines


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
    ("kill('kept', count=3)", 3),  # between two pools
    ("kill('keep', count=3)", 5),  # before the last is written
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
def ask(point, **facts):
  if point == 'logged' and logs(5)(**facts):
    os.kill(os.getpid(), signal.SIGTERM)
faults.watch(ask)
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
    '--config.validation.every_epochs=100',
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
