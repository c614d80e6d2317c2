"""Configs in files: those that users write, and those of finished runs."""

import json
from pathlib import Path
import shutil

from helpers.saved_runs import save_run
import pytest

from jax_robust_kd import config, job, main, settings, workdir
from jax_robust_kd.core import UserError
from jax_robust_kd.methods import options
from jax_robust_kd.methods.advfunmatch import INNER
from jax_robust_kd.training import build

CONFIG = 'configs/pgd_at.py:digits'
# The config.json of a run of CONFIG, before keys were renamed.
OLD = Path(__file__).parents[1] / 'golden' / 'old_config.json'

# What a user's config file says -> the sentence.
OLD_NAMES = {
  "c.contrast = 'kd'": 'contrast is now baseline',
  "c.attack.update(init='zero')": 'attack is now train_attack',
  "c.attack.epsilon = '4/255'": 'attack is now train_attack',
  'c.attack = dict(num_steps=3)': 'attack is now train_attack',
  "c['attack'].num_steps = 3": 'attack is now train_attack',
  "c.update({'contrast': 'kd'})": 'contrast is now baseline',
  "c.eval.attack = 'fgsm'": 'eval.attack is now validation.attack',
  "c.eval.update(attack='fgsm')": 'eval.attack is now validation.attack',
  'c.eval.every_epochs = 9': (
    'eval.every_epochs is now validation.every_epochs'
  ),
  'c.eval.num_checked += 1': 'eval.num_checked is now check.num_images',
}


@pytest.mark.parametrize('line', OLD_NAMES)
def test_old_names_are_refused_in_files(tmp_path, line, capsys):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from jax_robust_kd.config import base_config\n\n'
    f'def get_config():\n  c = base_config()\n  {line}\n  return c\n'
  )
  with pytest.raises(UserError, match=f'^{OLD_NAMES[line]}$'):
    config.load_config(str(path))
  argv = ['main', f'--config={path}', f'--workdir={tmp_path}/run']
  assert main.main(argv) == 2
  assert OLD_NAMES[line] in ' '.join(capsys.readouterr().err.split())


@pytest.mark.parametrize('old', config.RENAMED)
def test_old_names_are_refused_in_copies(old):
  """A file may unlock its config, and `job.copy` makes a plain one."""
  c = job.copy(config.base_config())
  config.validate(c)
  group, _, key = old.rpartition('.')
  (c[group] if group else c)[key] = 'x'
  with pytest.raises(UserError, match=f'^{old} is now {config.RENAMED[old]}$'):
    config.validate(c)


@pytest.mark.parametrize(
  'flag, sentence',
  [
    ('contrast=kd', 'contrast is now baseline'),
    ('attack.epsilon=4/255', 'attack.epsilon is now train_attack.epsilon'),
    ('eval.attack=fgsm', 'eval.attack is now validation.attack'),
    ('eval.num_checked=9', 'eval.num_checked is now check.num_images'),
  ],
)
def test_old_names_are_refused_on_the_command_line(flag, sentence):
  with pytest.raises(UserError, match=f'^{sentence}$'):
    settings.read(CONFIG, [f'--config.{flag}'])


def test_names_that_only_look_old_are_not_refused():
  c = config.base_config()
  c.method = dict(name='kd', alpha=0.5)
  c.student = dict(name='small_resnet', attack=1, contrast=2)
  c.eval.attack_precision = 'bfloat16'
  config.refuse_old_name('eval.attack_precision')
  config.validate(c)


def test_old_folders_are_read_with_the_new_names(tmp_path):
  shutil.copy(OLD, tmp_path / 'config.json')
  found = workdir.as_json(workdir.read_config(tmp_path))
  assert config.RENAMED.keys() & found.keys() == set()
  expected = workdir.as_json(config.load_config(CONFIG))
  assert config.differing_keys(found, expected) == []


def test_old_folders_are_read_with_their_own_values(tmp_path):
  stored = json.loads(OLD.read_text())
  stored['contrast'] = 'kd'
  stored['attack']['num_steps'] = 7
  stored['eval'] |= {'attack': 'fgsm', 'every_epochs': 3, 'num_checked': 9}
  stored['student'] = {'name': 'resnet18'}
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  c = workdir.read_config(tmp_path)
  assert (c.baseline, c.train_attack.num_steps) == ('kd', 7)
  assert (c.validation.attack, c.validation.every_epochs) == ('fgsm', 3)
  assert c.check.num_images == 9
  assert c.student.to_dict() == {'name': 'resnet18'}  # no field of a default


@pytest.mark.parametrize(
  'name, val', [('photos.npz', 'last'), ('digits', ''), ('cifar10', '')]
)
def test_old_folders_keep_the_images_they_held_out(tmp_path, name, val):
  """The last ones; today '' is a draw by class for images of one's own."""
  stored = json.loads(OLD.read_text())
  assert 'val' not in stored['data']
  stored['data']['name'] = name
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  assert workdir.read_config(tmp_path).data.val == val
  stored['data']['val'] = ''
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  assert workdir.read_config(tmp_path).data.val == ''


@pytest.mark.parametrize('old, new', options.RENAMED.items())
def test_old_folders_are_read_with_the_new_options(tmp_path, old, new):
  stored = json.loads(OLD.read_text())
  stored['method'] = {'name': 'advfunmatch', 'inner': old}
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  c = workdir.read_config(tmp_path)
  assert c.method.inner == new
  assert build.make_method(c).perturb is INNER[new]
  stored['method'] = {'name': 'saad', 'corrected': 'label'}  # as it was
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  assert workdir.read_config(tmp_path).method.corrected == 'label'


def test_old_folders_are_evaluated(tmp_path, digits):
  save_run(tmp_path, digits)
  shutil.copy(OLD, tmp_path / 'config.json')
  argv = ['main', f'--config={CONFIG}', f'--workdir={tmp_path}', '--mode=eval']
  flags = ('--config.eval.num_examples=32', "--config.eval.suite=('fgsm',)")
  assert main.main([*argv, *flags]) == 0
  assert json.loads((tmp_path / 'results.json').read_text())['accuracy']
  # Training goes on only where everything is as it was.
  c = settings.read(CONFIG, list(flags))
  with pytest.raises(UserError, match=r'eval\.num_examples'):
    workdir.check_workdir(tmp_path, c, 'train')
  workdir.check_workdir(tmp_path, settings.read(CONFIG, []), 'train')
