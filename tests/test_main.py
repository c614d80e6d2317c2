"""The commands, and what they have in common."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

from jax_robust_kd import __version__, config, settings
from jax_robust_kd.__main__ import COMMANDS, main
from jax_robust_kd.commandline import parse, split_config

ROOT = Path(__file__).parents[1]
NAMES = ('train', 'eval', 'check', 'compare', 'transfer', 'analyse', 'prepare',
         'preview', 'config')  # fmt: skip


def command(*words):
  return main(['jax-robust-kd', *map(str, words)])


def refused(capsys, *words):
  """Returns the sentence that refuses a command line."""
  assert command(*words) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1, error
  return error


def test_all_commands_are_listed(capsys):
  assert set(NAMES) <= set(COMMANDS)
  assert command('--help') == 0
  said = capsys.readouterr().out
  assert all(f'  {name} ' in said for name in COMMANDS)
  assert command() == 0
  assert capsys.readouterr().out == said


@pytest.mark.parametrize('name', COMMANDS)
def test_the_help_of_each_has_an_example_that_is_read(name, capsys):
  assert command(name, '--help') == 0
  said = capsys.readouterr().out
  example = COMMANDS[name].example
  assert example in said and example.startswith(f'jax-robust-kd {name} ')
  assert all(len(line) <= 80 or example in line for line in said.splitlines())
  words = example.split()[2:]
  if COMMANDS[name].config == 'or of the run':  # there is none
    words += ['--config', 'rslad:digits']
  args = parse(COMMANDS[name], f'jax_robust_kd {name}', words)
  assert args.words[:3] == ['-m', 'jax_robust_kd', name]


def test_help_and_version_come_without_jax():
  """They import nothing slow, so that help is there at once."""
  code = (
    'import sys, jax_robust_kd.__main__ as m\n'
    'for words in (["--help"], ["train", "--help"], ["--version"]):\n'
    '  assert m.main(["", *words]) == 0\n'
    'assert not {"jax", "numpy", "absl"} & set(sys.modules)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == f'jax-robust-kd {__version__}'


def test_unknown_commands_and_words(capsys):
  assert "'trian'" in refused(capsys, 'trian')
  assert "'now'" in refused(capsys, 'analyse', '--workdir=x', 'now')
  assert 'rows' in refused(capsys, 'preview', '--rows=3', '--name=digits')
  assert '--name NAME' in refused(capsys, 'preview')
  assert '--config CONFIG and --workdir FOLDER' in refused(capsys, 'train')


def test_the_config_may_stand_anywhere():
  words = ['--workdir', 'w', '--config.a.b=1', '--config', 'x:y', '--config.c',
           '-2', '--noconfig.d', '--mode=eval']  # fmt: skip
  assert split_config(words) == (
    'x:y',
    ['--config.a.b=1', '--config.c=-2', '--noconfig.d'],
    ['--workdir', 'w', '--mode=eval'],
  )
  assert split_config(['--config=a', '--config=b:c']) == ('b:c', [], [])


def test_configs_by_name_and_by_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  expected = str(ROOT / 'configs/rslad.py')
  for spec in ('rslad', 'configs/rslad.py', expected):
    assert config.locate(f'{spec}:digits') == f'{expected}:digits'
  (tmp_path / 'configs').mkdir()
  own = tmp_path / 'configs/rslad.py'
  own.write_text((ROOT / 'configs/rslad.py').read_text())
  assert config.locate('configs/rslad.py') == 'configs/rslad.py'  # from here
  assert config.locate('rslad') == expected


def test_the_config_with_the_source_of_each_value(capsys):
  words = ['--config.seed=4', '--config.student.width=8']
  assert command('config', '--config=rslad:digits', *words) == 0
  lines = capsys.readouterr().out.splitlines()
  assert 'seed = 4  # command line' in lines
  assert 'student.width = 8  # command line' in lines
  assert "method.name = 'rslad'  # config" in lines
  assert 'optimizer.learning_rate = 0.1' in lines
  assert 'data.batch_size = 64' in lines  # of the defaults for digits
  assert len(lines) == len(settings.flat(settings.read('rslad:digits', [])))


def test_fields_that_the_config_does_not_name():
  """Every field of the model and the method can be overridden."""
  words = ['--config.student.activation=swish', '--config.method.name=trades']
  c = settings.read('pgd_at:digits', [*words, '--config.method.beta=3.5'])
  assert (c.student.activation, c.method.beta) == ('swish', 3.5)
  wide = ['--config.student.name=resnet18', '--config.student.width=8']
  with pytest.raises(
    settings.UserError,
    match="^student.widht is unknown; did you mean 'width'\\? known: .*depth",
  ):
    settings.read('pgd_at:digits', ['--config.student.widht=8'])
  assert settings.read('pgd_at:cifar10', wide).student.width == 8


def test_a_group_cannot_be_replaced(capsys):
  word = '--config.optimizer={"name": "sgd"}'
  error = refused(capsys, 'config', '--config=pgd_at:digits', word)
  assert 'optimizer is a group' in error and '--config.optimizer.' in error


FILES = {
  'no python': ('this is { no Python', 'SyntaxError'),
  'typo in a key': (
    'from jax_robust_kd.config import base_config\n'
    'def get_config():\n  c = base_config()\n  c.optimzer.epochs = 3\n',
    'optimzer',
  ),
  'returns nothing': ('def get_config(): pass', 'returns a NoneType'),
  'no get_config': ('x = 1', 'defines no get_config'),
}


@pytest.mark.parametrize('case', FILES)
def test_config_files_that_cannot_be_read(case, tmp_path, capsys):
  text, words = FILES[case]
  (tmp_path / 'mine.py').write_text(text)
  error = refused(capsys, 'config', '--config', tmp_path / 'mine.py')
  assert words in error and 'mine.py' in error
  assert '\\' not in error and error.count('error') <= 2


@pytest.mark.parametrize(
  'workdir, words',
  [
    ('a\0b', 'zero byte'),
    ('~nosuchuser/x', 'no such user'),
    ('gs://bucket/x', 'gs:// is not supported'),
    ('x' * 300, 'too long'),
    ('x/' * 3000, 'too long'),
  ],
  ids=['nul', 'user', 'bucket', 'long name', 'long path'],
)
@pytest.mark.parametrize('name', ['train', 'compare', 'transfer', 'analyse'])
def test_folders_that_cannot_be(name, workdir, words, capsys):
  given = {
    'train': ['--config=pgd_at:digits'],
    'compare': ['--configs=pgd_at:digits'],
    'transfer': ['--config=transfer:digits', '--features=x'],
    'analyse': [],
  }[name]
  assert words in refused(capsys, name, *given, '--workdir', workdir)


def test_the_home_folder_is_expanded(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('HOME', str(tmp_path))
  error = refused(capsys, 'analyse', '--workdir=~/run')
  assert str(tmp_path / 'run') in error


@pytest.mark.parametrize('platform', ['cuda', 'nonsense'])
def test_devices_that_are_not_there(platform, tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'jax_robust_kd', 'train', '--config=pgd_at:digits',
     f'--workdir={tmp_path}/w'],
    env={**os.environ, 'JAX_PLATFORMS': platform},
    capture_output=True,
    text=True,
    cwd=ROOT,
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  last = done.stderr.splitlines()[-1]
  assert last.startswith(f'error: JAX_PLATFORMS={platform} finds no device')
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'w').exists()
