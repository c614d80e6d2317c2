"""Settings: radii as strings, every config file, what differs."""

from pathlib import Path

import pytest

from jax_robust_kd import build, config, data, job, threat
from jax_robust_kd.core import UserError

CONFIGS = sorted((Path(__file__).parent.parent / 'configs').glob('*.py'))


def test_radii_are_exact():
  assert threat.parse_radius('e', '8/255') == 8 / 255
  assert threat.parse_radius('e', ' 8 / 255 ') == 8 / 255
  assert threat.parse_radius('e', '0.5') == 0.5
  assert threat.parse_radius('e', '31/1000') == 0.031
  assert threat.parse_radius('e', '0.1') == 0.1


@pytest.mark.parametrize('text', ['0.031', '0.0314', '0.0078', '0.0157'])
def test_rounded_radii_are_said_not_changed(text):
  with pytest.raises(UserError, match='/255 if that is meant'):
    threat.parse_radius('e', text)


@pytest.mark.parametrize('text', ['0', '-0.1', '1/0', 'eight', '8/255/2', ''])
def test_radii_that_are_no_radii(text):
  with pytest.raises(UserError):
    threat.parse_radius('e', text)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_every_config_is_valid_on_digits(path):
  """Any config file may be given :digits, the quickstart is digits."""
  argument = '' if path.stem == 'quickstart' else ':digits'
  c = config.load_config(f'{path}{argument}')
  for each, _, _ in job.make_plan(c, Path('runs')):
    build.check(each, data.load('digits'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config_files_are_short_and_begin_with_their_command(path):
  text = path.read_text()
  assert text.count('\n') <= 30
  assert f'--config configs/{path.name}' in text.split('"""')[1]


def test_every_method_has_a_config():
  from jax_robust_kd.methods import METHODS

  assert METHODS.keys() <= {p.stem for p in CONFIGS}


def test_evaluation_follows_the_attack_unless_told_otherwise():
  c = config.base_config('cifar10')
  c.attack.epsilon = '4/255'
  assert threat.threat_model(c) == ('linf', '4/255', '2/255')
  c.eval.epsilon = '2/255'
  assert threat.threat_model(c) == ('linf', '2/255', '2/255')
  assert c.attack.epsilon == '4/255'


def test_a_new_key_is_refused():
  for group in (config.base_config(), config.base_config().attack):
    with pytest.raises((KeyError, AttributeError), match='locked'):
      group.sede = 1


def test_differing_keys_have_dotted_names():
  a = {'x': {'y': 1, 'z': 2}, 'w': 3}
  b = {'x': {'y': 1, 'z': 5}, 'v': 3}
  assert config.differing_keys(a, b) == ['v', 'w', 'x.z']
  assert config.differing_keys(a, a) == []


def test_plan_of_the_quickstart():
  c = config.load_config(str(CONFIGS[0].parent / 'quickstart.py'))
  plan = job.make_plan(c, Path('runs/q'))
  assert [label for _, _, label in plan] == ['teacher', 'advfunmatch', 'kd']
  assert [str(f) for _, f, _ in plan] == [
      'runs/q/teacher', 'runs/q', 'runs/q/kd',
  ]  # fmt: skip
  student, contrast = plan[1][0], plan[2][0]
  assert student.teacher.checkpoint == 'runs/q/teacher'
  differing = config.differing_keys(job.as_json(student), job.as_json(contrast))
  assert {d.split('.')[0] for d in differing} == {'method', 'contrast'}


def test_threat_models_by_name():
  c = config.base_config('cifar10')
  c.eval.threat = 'l2_0.5'
  assert threat.threat_model(c) == ('l2', '0.5', '1/8')
  config.validate(c)
  c.eval.epsilon = '0.25'  # a part goes first
  assert threat.threat_model(c)[:2] == ('l2', '0.25')
  c.eval.threat = 'linf_8'
  with pytest.raises(UserError, match='linf_8_255'):
    config.validate(c)


def test_corruptions_by_name():
  from jax_robust_kd import corruptions

  assert len(corruptions.chosen(('all',))) == 75
  assert corruptions.chosen(('fog_3',)) == ('fog_3',)
  with pytest.raises(UserError, match="'fog_6'"):
    corruptions.chosen(('fog_6',))
