"""A run that is shown and exported, from the command line."""

import json
import shutil
import subprocess
import sys

from helpers.saved_runs import save_run
import numpy as np
from PIL import Image
import pytest

from jax_robust_kd import __main__ as program
from jax_robust_kd.data import load


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """An evaluated run."""
  folder = tmp_path_factory.mktemp('runs') / 'run'
  save_run(folder, load('digits'))
  assert call('eval', '--workdir', folder, *SMALL) == 0
  return folder


SMALL = (
  '--config.eval.num_examples=40',
  "--config.eval.suite=('pgd-2',)",
  '--config.eval.batch_size=32',
)


def call(*words) -> int:
  return program.main(['jax-robust-kd', *map(str, words)])


def test_the_page_of_a_run_and_its_card(run, capsys):
  assert call('report', '--workdir', run) == 0
  html = (run / 'report.html').read_text()
  assert len(html) < 2_000_000 and 'Accuracy against epsilon' in html
  assert html.count('class="strip"') >= 1
  assert (run / 'MODEL_CARD.md').read_text().startswith('---\n')
  with Image.open(run / 'pgd-2.png') as sheet:
    assert sheet.size[0] == 20 * 9
  capsys.readouterr()
  assert call('report', '--workdir', run) == 0
  assert 'epsilon 0' not in capsys.readouterr().out, 'it is kept'


def test_several_runs_and_the_table(run, tmp_path):
  for name in ('a', 'b'):
    shutil.copytree(run, tmp_path / name)
  both = f'{tmp_path / "a"},{tmp_path / "b"}'
  assert call('report', '--workdir', both) == 0
  assert 'Comparison of 2 runs' in (tmp_path / 'report.html').read_text()
  assert call('table', '--folder', tmp_path) == 0
  lines = (tmp_path / 'results.csv').read_text().splitlines()
  assert len(lines) == 3 and 'accuracy.pgd-2' in lines[0]


def test_an_export_is_proved_and_runs_alone(run, tmp_path):
  out = tmp_path / 'out'
  assert (
    call('export', '--workdir', run, '--to', 'stablehlo', '--out', out) == 0
  )
  proof = json.loads((out / 'parity.json').read_text())['stablehlo']
  assert proof['relative_error'] < 1e-5 and proof['flips'] == 0
  assert proof['num_images'] == 40 and proof['loses'] == 0
  stored = proof['stored_attacks']['pgd-2']
  assert stored['upper_bound'] == stored['reference']
  folder = out / 'stablehlo'
  names = (folder / 'labels.txt').read_text().splitlines()
  assert len(names) == 10
  photo = np.asarray(load('digits').test.image[0])[..., 0]
  Image.fromarray(photo).save(folder / 'photo.png')
  done = subprocess.run(
    [sys.executable, 'predict.py', 'photo.png'],
    cwd=folder, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stdout.count('%') == 5


@pytest.mark.parametrize(
  'words, sentence',
  [
    (('export', '--workdir', '{run}', '--to', 'coreml'), 'litert,onnx,torch'),
    (('report', '--workdir', '{none}'), 'has no results.json'),
    (('table', '--folder', '{none}'), 'no evaluated run'),
  ],
)
def test_mistakes_are_sentences(words, sentence, run, tmp_path, capsys):
  words = [w.format(run=run, none=tmp_path) for w in words]
  assert call(*words) == 2
  error = capsys.readouterr().err
  assert sentence in error and error.count('\n') == 1
