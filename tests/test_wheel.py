"""The wheel, built and installed where nothing of the project can be seen."""

import os
from pathlib import Path
import subprocess
import sys
import zipfile

import pytest

ROOT = Path(__file__).parents[1]


def run(command, folder, **variables):
  """Runs a command that must not fail; returns what it prints."""
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  done = subprocess.run(
    [str(word) for word in command],
    cwd=folder,
    env=environment | variables,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """Builds the wheel, from a copy: building leaves files."""
  setuptools = pytest.importorskip('setuptools', minversion='70.1')
  del setuptools
  folder = tmp_path_factory.mktemp('wheel')
  source = folder / 'source'
  source.mkdir()
  for name in ('jax_robust_kd', 'configs', 'setup.py', 'pyproject.toml',
               'README.md', 'LICENSE'):  # fmt: skip
    run(['cp', '-r', ROOT / name, source], folder)
  pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
  run(
    [*pip, 'wheel', '--no-build-isolation', '--no-deps', '-w', folder, source],
    folder,
  )
  (path,) = folder.glob('*.whl')
  return path


@pytest.fixture(scope='module')
def program(wheel):
  """Installs it into an environment that sees only its dependencies."""
  folder = wheel.parent / 'environment'
  run([sys.executable, '-m', 'venv', folder], wheel.parent)
  python = folder / 'bin/python'
  (site,) = (folder / 'lib').glob('python*/site-packages')
  known = [p for p in sys.path if p.endswith('site-packages')]
  # Not the `.pth` files in there: this project is installed by one.
  (site / 'dependencies.pth').write_text('\n'.join(known))
  pip = [python, '-m', 'pip', '--disable-pip-version-check', 'install']
  run([*pip, '--no-deps', '--no-index', wheel], wheel.parent)
  return folder / 'bin/jax-robust-kd'


def test_what_is_in_the_wheel(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  configs = {path.name for path in (ROOT / 'configs').glob('*.py')}
  inside = {
    Path(n).name for n in names if n.startswith('jax_robust_kd/configs')
  }
  assert configs == inside
  assert 'jax_robust_kd/data/digits.npz' in names
  assert not [n for n in names if n.startswith(('tests', 'configs', 'docs'))]


def test_every_command_works_from_any_folder(program, tmp_path):
  assert 'jax-robust-kd 0' in run([program, '--version'], tmp_path)
  where = 'import jax_robust_kd; print(jax_robust_kd.__file__)'
  found = run([program.with_name('python'), '-c', where], tmp_path)
  assert found.startswith(str(program.parents[1]))
  said = run([program, 'config', '--config', 'rslad:digits'], tmp_path)
  assert "method.name = 'rslad'  # config" in said
  # Its teacher's config is found too.
  assert "teacher.config = 'configs/teacher.py:digits'" in said
  run([program, 'config', '--config=configs/teacher.py:digits'], tmp_path)


@pytest.mark.slow
def test_the_installed_program_trains(program, tmp_path):
  """Teacher, student and results, in the folder where it is called."""
  run(
    [program, 'train', '--config', 'rslad:digits', '--workdir', 'w',
     '--config.optimizer.epochs=2', '--config.data.num_train=128',
     '--config.eval.num_examples=32', "--config.eval.suite=('fgsm',)"],
    tmp_path,
    JAX_PLATFORMS='cpu',
  )  # fmt: skip
  assert (tmp_path / 'w/results.json').is_file()
  assert (tmp_path / 'w/teacher/results.json').is_file()
