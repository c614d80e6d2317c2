"""Ranges of settings, and settings that exclude each other."""

import inspect
import math

import pytest

from jax_robust_kd import config, data, settings
from jax_robust_kd.config.checks import RANGES
from jax_robust_kd.core import UserError
from jax_robust_kd.training import build

# Group -> what checks its numbers instead: the function that takes them.
ELSEWHERE = ('student.', 'peer.', 'method.', 'data.augment.', 'data.extra.')


def change(key, value):
  c = config.base_config()
  group, _, name = key.rpartition('.')
  with c.unlocked(), c.ignore_type():
    (c[group] if group else c)[name] = value
  return c


def test_every_number_has_a_range():
  found = {
    key
    for key, value in settings.flat(config.base_config()).items()
    if isinstance(value, int | float | tuple)
    and not isinstance(value, bool)
    and not key.startswith(ELSEWHERE)
  }
  assert found - {'eval.suite', 'eval.corruptions'} == RANGES.keys()


@pytest.mark.parametrize('key', RANGES)
def test_ends_of_ranges(key):
  low, high, *excluded = RANGES[key]
  for value in (low, high):
    if value in excluded or value == math.inf:
      value = (value,) if key == 'optimizer.milestones' else value
      with pytest.raises(UserError, match=key):
        config.validate(change(key, value))
    else:
      config.validate(change(key, value))


@pytest.mark.parametrize(
  'key, value, words',
  [
    ('seed', -1, r'seed=-1 must be in \[0, 4294967295\]'),
    ('seed', 2**32, 'seed=4294967296'),
    ('optimizer.clip_norm', -1.0, r'optimizer\.clip_norm=-1\.0 .* least 0'),
    ('optimizer.ema_decay', 1.5, r'ema_decay=1\.5 must be in \[0, 1\)'),
    ('optimizer.learning_rate', math.nan, 'learning_rate=nan'),
    ('optimizer.milestones', (0.5, 1.5), r'milestones=1\.5 .* \(0, 1\)'),
    ('optimizer.milestones', ('a',), "milestones='a' must be a number"),
    ('optimizer.milestones', (0.9, 0.1), r'milestones=\(0\.9, 0\.1\).*sort'),
    ('optimizer.milestones', (0.5, 0.5), 'milestones.*increase'),
    ('eval.suite', (1,), r'eval\.suite=\(1,\).*pgd-20'),
  ],
)
def test_what_is_out_of_range_is_refused(key, value, words):
  with pytest.raises(UserError, match=words):
    config.validate(change(key, value))


def test_trades_cannot_start_at_the_image():
  c = config.base_config()
  c.train_attack.init = 'zero'
  config.validate(c)
  c.method = {'name': 'trades'}
  with pytest.raises(UserError, match=r"init='zero' .*'trades'.*'uniform'"):
    config.validate(c)


@pytest.mark.parametrize('key', ['width', 'depth'])
def test_networks_have_a_size(digits, key):
  c = settings.read('pgd_at:digits', [f'--config.student.{key}=0'])
  with pytest.raises(UserError, match=f'{key}=0 .*small_resnet'):
    build.check(c, digits)


def test_every_argument_of_augmentation_is_a_setting():
  arguments = inspect.signature(data.make_augment).parameters
  defaults = config.base_config('cifar10').data.augment
  assert set(defaults) == arguments.keys() - {'num_classes'}


def test_augmentation_is_checked_before_anything_starts(digits):
  c = settings.read('pgd_at:digits', ['--config.data.augment.cutout=-1'])
  with pytest.raises(UserError, match=r'data\.augment\.cutout=-1'):
    build.check(c, digits)
