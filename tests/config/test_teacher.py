"""Settings of the config that trains a teacher, from its student's."""

from pathlib import Path

import pytest

from jax_robust_kd import config, job, settings
from jax_robust_kd.core import UserError

SET = '--config.teacher.set.'


def plan(*overrides, spec='quickstart'):
  """Returns the configs of the teacher and of the student."""
  c = settings.read(spec, list(overrides))
  config.validate(c)
  (teacher, _, label), (student, *_), *_ = job.make_plan(c, Path('w'))
  assert label == 'teacher'
  for each in (teacher, student):
    config.validate(each)
  return teacher, student


def test_settings_reach_the_teacher_alone():
  before, student = plan()
  teacher, same = plan(f'{SET}student.width=16', f'{SET}optimizer.epochs=3')
  assert student == same  # what trained its teacher stands beside the teacher
  teacher = teacher.to_dict()
  assert config.differing_keys(before.to_dict(), teacher) == [
    'optimizer.epochs',
    'student.width',
  ]
  assert teacher['student']['width'] == 16
  assert teacher['optimizer']['epochs'] == 3


def test_a_field_that_the_config_does_not_name():
  teacher, _ = plan(f'{SET}student.activation=swish')
  assert teacher.student.activation == 'swish'


def test_the_teacher_may_come_from_the_same_command_line():
  other = '--config.teacher.config=pgd_at:digits'
  teacher, _ = plan(f'{SET}student.width=9', other, spec='rslad:digits')
  assert (teacher.method.name, teacher.student.width) == ('pgd_at', 9)


def test_a_config_sets_them_too():
  c = config.load_config('quickstart')
  c.teacher.set = dict(student=dict(width=16))
  teacher = job.teacher_config(c)
  assert teacher.student.to_dict() == {
    'name': 'small_resnet',
    'depth': 8,
    'width': 16,
  }
  c.teacher.set = dict(student=dict(widht=16))
  with pytest.raises(UserError, match='widht'):
    job.teacher_config(c)


def test_the_suite_is_the_students():
  suite = "--config.eval.suite=('fgsm','pgd-3')"
  teacher, student = plan(suite)
  assert teacher.eval.suite == student.eval.suite == ('fgsm', 'pgd-3')
  teacher, _ = plan(suite, f"{SET}eval.suite=('fgsm',)")
  assert teacher.eval.suite == ('fgsm',)


@pytest.mark.parametrize(
  'spec, overrides, words',
  [
    ('quickstart', ['student.widht=1'], 'widht.*width'),
    ('quickstart', ['student.width=a'], 'student.width=a'),
    ('quickstart', ['student=3'], 'student is a group'),
    ('quickstart', ['data.num_train=9'], r'set data\.num_train'),
    ('pgd_at:digits', ['student.width=9'], r'set --config\.teacher\.config'),
  ],
)
def test_what_is_refused(spec, overrides, words):
  with pytest.raises(UserError, match=words):
    plan(*[SET + word for word in overrides], spec=spec)


def test_a_trained_teacher_is_not_changed():
  with pytest.raises(UserError, match=r"checkpoint='runs/t' is trained alread"):
    plan(f'{SET}student.width=9', '--config.teacher.checkpoint=runs/t')
  c = config.base_config()
  c.teacher.set = dict(seed=1)
  with pytest.raises(UserError, match=r'set teacher\.config to one'):
    config.validate(c)
