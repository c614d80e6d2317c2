"""Methods, models, attacks and data sets of one's own, by a config alone."""

from functools import partial
import json
from pathlib import Path
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import __main__, data, job, main, models, settings
from jax_robust_kd.config import load_config
from jax_robust_kd.core import UserError
from jax_robust_kd.evaluation import store
from jax_robust_kd.runtime import imports
from jax_robust_kd.training import build

ROOT = Path(__file__).parents[2]
MINE = ROOT / 'tests/helpers/own.py'
CONFIG = """
from jax_robust_kd.config import base_config

def get_config():
  c = base_config('digits')
  c.method = dict(name='./mine.py:method', weight=0.5)
  c.student = dict(name='mine.py:Model')
  c.data.name = './mine.py:images'
  c.validation.attack = './mine.py:attack-1'
  c.eval.suite = ('./mine.py:attack-2', 'fgsm')
  c.optimizer.update(epochs=1, warmup_epochs=0.0)
  return c
"""


@pytest.fixture
def config(tmp_path):
  """A config, and a file of one's own beside it."""
  shutil.copy(MINE, tmp_path / 'mine.py')
  (tmp_path / 'conf.py').write_text(CONFIG)
  return tmp_path / 'conf.py'


def test_a_file_beside_the_config_is_found_from_anywhere(config, monkeypatch):
  monkeypatch.chdir('/')
  c = settings.read(str(config), [])
  mine = config.parent / 'mine.py'
  assert c.method.name == f'{mine}:method'
  assert c.student.name == f'{mine}:Model'
  assert c.data.name == f'{mine}:images'
  assert c.validation.attack == f'{mine}:attack-1'
  assert c.eval.suite == (f'{mine}:attack-2', 'fgsm')


def test_an_override_is_found_beside_the_config_or_here(config, monkeypatch):
  (config.parent / 'here').mkdir()
  shutil.copy(MINE, config.parent / 'here/other.py')
  monkeypatch.chdir(config.parent / 'here')
  names = ['mine.py:weighted', './other.py:weighted']
  for name, folder in zip(names, ['.', 'here'], strict=True):
    words = [f'--config.method.name={name}', '--config.method.weight=0.25']
    c = settings.read(str(config), words)
    path = config.parent / folder / name.partition(':')[0]
    assert c.method.name == f'{path}:weighted' and c.method.weight == 0.25
  c = settings.read(str(config), ["--config.eval.suite=('mine.py:attack',)"])
  assert c.eval.suite == (f'{config.parent}/mine.py:attack',)


def test_a_run_of_ones_own_is_trained_and_evaluated_again(config, capsys):
  folder = config.parent / 'run'
  argv = ['main', f'--config={config}', f'--workdir={folder}']
  few = ['--config.eval.num_examples=32', '--config.data.num_train=128']
  assert main.main([*argv, *few]) == 0
  card = json.loads((folder / 'results.json').read_text())
  assert (card['name'], card['architecture']) == ('method', 'Model')
  assert set(card['accuracy']) == {'attack-2', 'fgsm'}
  stored = json.loads((folder / 'config.json').read_text())
  assert stored['method']['name'] == f'{config.parent}/mine.py:method'
  c = settings.read_run(str(folder), [])
  assert job.run(c, folder, 'eval') == ''
  (config.parent / 'mine.py').rename(config.parent / 'gone.py')
  capsys.readouterr()
  assert main.main([*argv, *few]) == 2
  assert 'there is no file' in capsys.readouterr().err


def test_a_baseline_of_ones_own_has_a_folder_of_its_name(config):
  c = settings.read(str(config), ['--config.baseline=mine.py:weighted'])
  plan = job.make_plan(c, Path('runs/q'))
  assert [(str(folder), label) for _, folder, label in plan] == [
    ('runs/q', 'method'),
    ('runs/q/weighted', 'weighted'),
  ]
  assert plan[1][0].method.name == f'{config.parent}/mine.py:weighted'


def test_ones_own_is_importable_too(config, monkeypatch):
  monkeypatch.syspath_prepend(config.parent)
  (config.parent / 'mine_too.py').write_text(MINE.read_text())
  words = ['--config.method.name=mine_too:weighted']
  c = settings.read(str(config), [*words, '--config.data.name=mine_too:images'])
  assert build.make_method(c).teachers == ()
  dataset = build.load_data(c)
  assert dataset.num_classes == 3 and dataset.class_names == ('a', 'b', 'c')
  assert dataset.name == 'mine_too:images'


@pytest.mark.parametrize(
  'word, sentence',
  [
    ('method.name=mine.py:none', "has no 'none'; write FILE.py:name"),
    ('method.name=none.py:method', 'there is no file none.py; put it beside'),
    ('method.name=no_such:method', 'give its folder in PYTHONPATH'),
    ('method.name=mine.py:no_method', 'returns a int; return a Method'),
    ('student.name=mine.py:method', 'lacks dtype, mean, num_classes, std; add'),
    ('student.name=mine.py:no_model', 'is no flax.linen.Module; return one'),
    ('data.name=mine.py:no_method', 'returns a int; return a dict of arrays'),
    ('method.wieght=1', "method.wieght is unknown; did you mean 'weight'?"),
    ('student.depth=1', 'student.depth is unknown; .*known: mean, std, width'),
    ('peer.depth=1', 'peer.name is empty; set it before'),
    ('data.augment.zoom=1', 'augment.zoom is unknown; known: .*cutmix_prob'),
    ('clean_teacher.x=1', 'unknown; known: arch, checkpoint, config'),
    ('optimiser.name=adamw', "did you mean 'optimizer'"),
    ('optimizer.name.x=adamw', 'optimizer.name.x is unknown'),
  ],
)
def test_mistakes_are_one_sentence(config, word, sentence):
  with pytest.raises(UserError, match=sentence):
    c = settings.read(str(config), [f'--config.{word}'])
    build.check(c, build.load_data(c))


def test_a_file_that_fails_is_named(config):
  (config.parent / 'mine.py').write_text('1 / 0')
  with pytest.raises(UserError, match=r'method.*mine.py.*ZeroDiv.*; mend it'):
    build.make_method(settings.read(str(config), []))


def test_a_field_that_the_config_does_not_name(config):
  c = settings.read(str(config), ['--config.student.width=5'])
  module = build.make_student(c, data.load('digits'))
  assert getattr(module, 'width', None) == 5
  c = settings.read(str(config), ['--config.peer.name=resnet18'])
  assert c.peer.to_dict() == {'name': 'resnet18'}
  words = ['--config.peer.name=resnet18', '--config.peer.depth=34']
  assert settings.read(str(config), words).peer.depth == 34


def test_an_augmentation_that_the_config_does_not_name(config):
  config.write_text(CONFIG.replace(
    "  return c", "  c.data.augment = dict(flip=True)\n  return c"
  ))  # fmt: skip
  c = settings.read(str(config), ['--config.data.augment.crop_pad=3'])
  assert c.data.augment.to_dict() == {'flip': True, 'crop_pad': 3}


def test_the_source_of_a_model_counts_for_kept_attacks(config):
  def identity(text):
    path = config.parent / f'model_{len(text)}.py'
    path.write_text(text)
    fields = {'mean': (), 'std': ()}
    module = models.build(f'{path}:Model', 10, fields)
    return store.model_identity(module)

  text = MINE.read_text()
  assert identity(text) == identity(text)
  assert identity(text) != identity(text.replace('nn.relu', 'nn.swish'))
  module = models.build('small_resnet', 10, {'depth': 8})
  assert store.model_identity(module) == str(module)


def test_a_model_without_batchnorm(config):
  """Its running averages are empty in every mode."""
  c = load_config(str(config))
  student = build.init_network(c, data.load('digits'))
  assert student.variables['batch_stats'] == {}
  for mode in models.MODES:
    out = student.forward(student.variables, jnp.zeros((2, 8, 8, 1)), mode)
    assert out.logits.shape == (2, 10) and out.batch_stats == {}


def test_names():
  assert imports.names_object('a.b:c') and imports.names_object('x/y.py:c')
  for name in ('npz:mine', 'npz:a.py', 'cifar10:3.0.2', 'cifar10', 'a/b', ''):
    assert not imports.names_object(name), name
    assert imports.short(name) == name
  assert imports.short('/a/b.py:c') == imports.short('a.b:c') == 'c'
  assert imports.absolute('none.py:c', '/') == 'none.py:c'


def test_a_partial_counts_with_what_it_fills_in():
  one, two = (imports.source_of(partial(np.save, file=i)) for i in (1, 2))
  assert one != two


def test_the_page_says_how(tmp_path, monkeypatch):
  """Its files, its config, its command and its call, one after the other."""
  page = (ROOT / 'docs/extending.md').read_text()
  blocks = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
  names = [re.match(r'# (\w+\.py)\n', block) for block in blocks]
  for name, block in zip(names, blocks, strict=True):
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) <= 18
    if name:
      (tmp_path / name[1]).write_text(block)
  (call,) = (b for n, b in zip(names, blocks, strict=True) if not n)
  monkeypatch.syspath_prepend(tmp_path)
  exec(call, {})
  words = re.findall(r'^jax-robust-kd (train .*)$', page, re.MULTILINE)
  monkeypatch.chdir(tmp_path)
  few = ['optimizer.epochs=1', 'optimizer.warmup_epochs=0.0']
  few += ['teacher.set.' + word for word in few]
  flags = [f'--config.{word}' for word in [*few, 'student.width=4']]
  assert __main__.main(['', *words[0].split(), *flags]) == 0
  card = json.loads((tmp_path / 'runs/mine/results.json').read_text())
  assert (card['name'], card['architecture']) == ('mine', 'Mine')
  assert set(card['accuracy']) == {'strong-20x2', 'pgd-20'}
