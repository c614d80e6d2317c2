"""Any number of processes and devices is the same run."""

import os
from pathlib import Path
import shutil
import signal
import subprocess
import time

from helpers.runs import ROOT
from helpers.several_processes import (
  arguments,
  finish,
  free_port,
  launch,
  log_of,
  start,
  wait_for_step,
  weights_of,
)
import numpy as np
import pytest

from jax_robust_kd import main
from jax_robust_kd.runtime import checkpoint
from jax_robust_kd.runtime.files import read_json, read_lines

HERE = Path(__file__).parents[1] / 'helpers'
# Processes x devices of each.
SHAPES = [(1, 1), (1, 4), (2, 2), pytest.param((4, 1), marks=pytest.mark.slow)]


@pytest.fixture(scope='module')
def one_step(tmp_path_factory):
  """Returns (shape, BatchNorm) -> what one training step came to."""
  made = {}

  def once(shape, bn):
    if (shape, bn) in made:
      return made[shape, bn]
    folder = tmp_path_factory.mktemp('step')
    number, devices = shape
    port = free_port()
    ends = finish([
        start([HERE / 'process_worker.py', f'localhost:{port}', number, i,
               folder, bn], devices)
        for i in range(number)
    ])  # fmt: skip
    assert all(code == 0 for code, *_ in ends), ends
    parts = [dict(np.load(folder / f'{i}.npz')) for i in range(number)]
    whole = {
      k: np.concatenate([p[k] for p in parts])
      for k in ('index', 'image', 'start')
    }
    made[shape, bn] = {**parts[0], **whole}
    return made[shape, bn]

  return once


@pytest.mark.parametrize('shape', SHAPES[1:], ids=str)
def test_augmentation_and_noise_belong_to_the_image(one_step, shape):
  found, one = one_step(shape, 'sync'), one_step((1, 1), 'sync')
  np.testing.assert_array_equal(found['index'], np.arange(16))
  np.testing.assert_array_equal(found['image'], one['image'])
  np.testing.assert_array_equal(found['start'], one['start'])
  assert np.ptp(one['start'] - one['image']) > 0.1, 'there was no noise'


def compare_first_step(found, expected):
  np.testing.assert_allclose(found['loss'], expected['loss'], rtol=1e-6)
  names = [k for k in expected if k.startswith('grad')]
  assert names
  for name in names:
    np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


@pytest.mark.parametrize('shape', SHAPES[1:], ids=str)
def test_synchronised_batchnorm_is_one_device(one_step, shape):
  compare_first_step(one_step(shape, 'sync'), one_step((1, 1), 'sync'))


@pytest.mark.slow  # two more runs of two processes
@pytest.mark.parametrize('shape', SHAPES[2:], ids=str)
def test_batchnorm_of_each_device_needs_as_many_devices(one_step, shape):
  compare_first_step(one_step(shape, 'own'), one_step((1, 4), 'own'))


def test_batchnorm_of_each_device_is_another_network(one_step):
  """Or the test above would not notice which of the two it is."""
  own, sync = one_step((1, 4), 'own'), one_step((1, 4), 'sync')
  assert abs(own['loss'] / sync['loss'] - 1) > 1e-4


def flags_of(workdir: Path) -> list[list[str]]:
  """Returns the columns of images.csv but for the margins."""
  lines = (workdir / 'images.csv').read_text().splitlines()
  names = lines[0].split(',')
  keep = [i for i, name in enumerate(names) if not name.endswith('margin')]
  return [[line.split(',')[i] for i in keep] for line in lines]


def test_a_process_that_does_not_come_is_a_sentence_not_a_hang(tmp_path):
  number = 2
  argv = arguments(tmp_path / 'run')
  lonely = start(
    ['-m', 'jax_robust_kd.main', *argv, '--distributed',
     f'--coordinator=localhost:{free_port()}', f'--num_processes={number}',
     '--process_id=0', '--start_timeout=3'],
    1,
  )  # fmt: skip
  ((code, _, errors),) = finish([lonely])
  assert code == 75
  assert errors.splitlines()[-1] == (
    'stopped: not all processes of this run came up within 3 s; start the same '
    'command on all of them again, and it goes on from the last checkpoint'
  )


@pytest.mark.parametrize(
  'flags,named',
  [
    (['--coordinator=localhost:1'], 'need --distributed'),
    (['--distributed', '--num_processes=2'], 'need --coordinator'),
    (['--distributed', '--coordinator=localhost'], 'HOST:PORT'),
    (
      ['--distributed', '--coordinator=h:1', '--num_processes=2'],
      '--process_id=-1',
    ),
  ],
)
def test_flags_that_do_not_fit(flags, named, tmp_path, capsys):
  code = main.main(['main', *arguments(tmp_path / 'run'), *flags])
  sentence = capsys.readouterr().err
  assert code == 2 and sentence.count('\n') == 1 and named in sentence


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  """A run of two processes to its end."""
  workdir = tmp_path_factory.mktemp('two') / 'run'
  ends = finish(launch((2, 1), arguments(workdir)), 300)
  assert [code for code, *_ in ends] == [0, 0], ends
  assert 'devices   2 process(es) x 1 x cpu' in ends[0][1]
  assert not [s for s in ends[1][1].splitlines() if 'Gloo' not in s]
  return workdir


@pytest.mark.slow
def test_sigterm_to_one_process_ends_both_at_one_step(undisturbed, tmp_path):
  argv = arguments(tmp_path / 'run')
  processes = launch((2, 1), argv)
  wait_for_step(tmp_path / 'run', 2)
  processes[1].send_signal(signal.SIGTERM)
  ends = finish(processes, 200)
  assert [code for code, *_ in ends] == [75, 75], ends
  said = {errors.splitlines()[-1] for _, _, errors in ends}
  assert len(said) == 1 and 'asked to end by SIGTERM' in said.pop()
  ends = finish(launch((2, 1), argv), 300)
  assert [code for code, *_ in ends] == [0, 0], ends
  assert weights_of(tmp_path / 'run') == weights_of(undisturbed)
  assert log_of(tmp_path / 'run') == log_of(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_a_lost_process_ends_the_other_in_bounded_time(
  victim, undisturbed, tmp_path
):
  argv = arguments(tmp_path / 'run')
  processes = launch((2, 1), argv)
  wait_for_step(tmp_path / 'run', 5)
  child = subprocess.run(
    ['pgrep', '-P', str(processes[victim].pid)],
    capture_output=True,
    text=True,
  ).stdout.split()
  os.kill(int(child[0]), signal.SIGKILL)
  begin = time.monotonic()
  ends = finish(processes, 90)
  assert time.monotonic() - begin < 60
  code, _, errors = ends[1 - victim]
  assert code == 75, ends
  assert 'another process of this run was lost' in errors.splitlines()[-1]
  ends = finish(launch((2, 1), argv), 300)
  assert [code for code, *_ in ends] == [0, 0], ends
  assert weights_of(tmp_path / 'run') == weights_of(undisturbed)
  assert log_of(tmp_path / 'run') == log_of(undisturbed)


@pytest.mark.slow
def test_evaluation_of_one_checkpoint_has_the_same_flags(undisturbed, tmp_path):
  """AutoAttack too: each process attacks other images."""
  suite = "--config.eval.suite=('fgsm','pgd-5','autoattack')"
  found = {}
  for shape in ((1, 1), (1, 4), (2, 2), (4, 1)):
    workdir = tmp_path / f'{shape[0]}x{shape[1]}'
    shutil.copytree(undisturbed, workdir)
    shutil.rmtree(workdir / 'attacked')
    argv = arguments(workdir, suite, '--mode=eval')
    ends = finish(launch(shape, argv), 600)
    assert all(code == 0 for code, *_ in ends), ends
    found[shape] = flags_of(workdir)
  assert all(flags == found[1, 1] for flags in found.values())


@pytest.mark.slow
def test_transfer_over_processes_gives_the_same_flags(undisturbed, tmp_path):
  """Features are extracted by all, each its share of the images."""
  found = []
  for shape in ((1, 1), (2, 1)):
    workdir = tmp_path / f'{shape[0]}x{shape[1]}'
    argv = [
      f'--features={undisturbed}',
      f'--config={ROOT}/configs/transfer.py:digits',
      '--config.optimizer.epochs=5', '--config.eval.num_examples=60',
      "--config.eval.suite=('pgd-3',)", f'--workdir={workdir}',
    ]  # fmt: skip
    ends = finish(launch(shape, argv, 'jax_robust_kd transfer'))
    assert all(code == 0 for code, *_ in ends), ends
    found.append(flags_of(workdir))
  assert found[0] == found[1] and len(found[0]) == 61


@pytest.mark.slow
def test_another_topology_goes_on(tmp_path):
  """Saved on 4 devices, gone on with 1, 2 and 8; BatchNorm synchronised."""
  base = tmp_path / 'run'
  sync = '--config.sync_bn=True'
  argv = arguments(base, sync)
  processes = launch((1, 4), argv)
  wait_for_step(base, 4)
  processes[0].send_signal(signal.SIGTERM)
  ((code, _, _),) = finish(processes, 200)
  assert code == 75
  before = weights_of(base)
  found = checkpoint.read(base, 'last')
  assert found is not None
  step = int(found[0]['step'])
  losses = {}
  for shape in ((1, 4), (1, 1), (1, 2), (1, 8), (2, 2)):
    workdir = tmp_path / f'{shape[0]}x{shape[1]}'
    shutil.copytree(base, workdir)
    assert weights_of(workdir) == before
    ends = finish(launch(shape, arguments(workdir, sync)), 300)
    assert all(code == 0 for code, *_ in ends), ends
    assert f'going on from step {step}' in ends[0][1]
    lines = read_lines(workdir / 'metrics.jsonl')
    losses[shape] = next(r for r in lines if r['step'] > step)['loss']
    assert read_json(workdir / 'results.json')['num_examples'] == 40
  for loss in losses.values():
    np.testing.assert_allclose(loss, losses[1, 4], rtol=1e-6)
