"""`--mode check` from the command line: exit codes and what is written."""

from functools import partial
import json
from pathlib import Path
import shutil

import numpy as np
import pytest

from jax_robust_kd import checks, main
from jax_robust_kd.evaluation import evaluate

CHECKED = 16
CHECKS = {check.name: check for check in checks.CHECKS}
FLAGS = (
  '--config=configs/pgd_at.py:digits',
  '--config.student.width=4',
  '--config.data.val_size=32',
  '--config.optimizer.epochs=8',
  '--config.validation.every_epochs=8',
  '--config.validation.attack=pgd-2',
  '--config.optimizer.ema_decay=0',
  '--config.train_attack.num_steps=1',
  '--config.eval.num_examples=64',
  f'--config.check.num_images={CHECKED}',
  "--config.eval.suite=('fgsm','pgd-20')",
)


def command(workdir: Path, mode: str) -> int:
  return main.main(['main', *FLAGS, f'--mode={mode}', f'--workdir={workdir}'])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A run of the program."""
  folder = tmp_path_factory.mktemp('runs')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAX_COMPILATION_CACHE_DIR', '')  # keeps nothing on disk
    # A tenth of what the checks run for a user.
    short = dict(num_steps=20, num_restarts=2, num_queries=100, num_draws=100)
    patch.setattr(checks, 'Options', partial(checks.Options, **short))
    assert command(folder / 'run', 'train') == 0
    yield folder / 'run'


@pytest.fixture
def workdir(trained, tmp_path):
  """A copy that has been trained, and not yet attacked."""
  copy = tmp_path / 'run'
  shutil.copytree(trained, copy, ignore=shutil.ignore_patterns('attacked'))
  return copy


def read(workdir: Path) -> tuple[str, dict[str, dict]]:
  written = json.loads((workdir / 'checks.json').read_text())
  return written['level'], {check['name']: check for check in written['checks']}


def red(report: dict[str, dict]) -> set[str]:
  return {name for name, check in report.items() if check['level'] == 'red'}


def test_an_honest_run_and_one_whose_images_were_exchanged(workdir, capsys):
  assert command(workdir, 'check') == 0
  level, report = read(workdir)
  assert level in ('green', 'amber') and not red(report)
  assert report.keys() == CHECKS.keys()
  assert 'can the numbers of pgd_at be believed?' in capsys.readouterr().out
  assert report['clean']['value']['accuracy'] > 30
  # All that is on disk is scored again, and four attacks of the checks' own.
  files = sorted((workdir / 'attacked').glob('*-0.npz'))
  kept = {path.stem: dict(np.load(path)) for path in files}
  adv = {name: file['adv'] for name, file in kept.items() if 'adv' in file}
  assert adv.keys() == {'fgsm-0', 'pgd-20-0'}
  images = sum(map(len, adv.values()))
  assert images > 32
  assert report['rescoring']['value']['images'] == images + 4 * CHECKED

  file = kept['pgd-20-0']
  surest, weakest = np.argmin(file['margin']), np.argmax(file['margin'])
  assert file['margin'][surest] < 0 < file['margin'][weakest]
  swap = np.arange(len(file['margin']))
  swap[[surest, weakest]] = weakest, surest
  file['adv'] = file['adv'][swap]
  np.savez(workdir / 'attacked/pgd-20-0.npz', **file)
  assert command(workdir, 'check') == 3
  level, report = read(workdir)
  assert level == 'red' and 'rescoring' in red(report)
  assert report['rescoring']['value']['flags differ'] >= 1
  assert report['rescoring']['meaning'] == CHECKS['rescoring'].otherwise


def times_1000(forward):
  return lambda variables, image: (
    1000 * forward(variables, image, 'eval').logits
  )


def of_the_batch(forward):
  """BatchNorm with the statistics of whatever else is in the batch."""
  return lambda variables, image: forward(variables, image, 'train').logits


@pytest.mark.parametrize(
  'defence, reasons, fine',
  [
    pytest.param(
      times_1000,
      {'scale', 'gradients'},
      {'clean', 'batches', 'rescoring'},
      marks=pytest.mark.slow,
    ),
    (of_the_batch, {'batches'}, {'determinism', 'logits', 'gradients'}),
  ],
)
def test_a_broken_defence_ends_with_3(
  defence, reasons, fine, workdir, monkeypatch
):
  monkeypatch.setattr(evaluate, 'logits_of', defence)
  assert command(workdir, 'check') == 3
  level, report = read(workdir)
  assert level == 'red'
  assert reasons <= red(report)
  assert not fine & red(report)
  for name in reasons:
    assert report[name]['meaning'] == CHECKS[name].otherwise
