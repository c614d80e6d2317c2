"""Checks on what users write, before there are data and devices."""

import math

from jax_robust_kd.config.defaults import Config
from jax_robust_kd.config.names import RENAMED, refuse_old_name
from jax_robust_kd.core import UserError
from jax_robust_kd.threat import THREATS, check_radii, threat_model

_NONE = math.inf  # no upper bound

# Setting -> lowest and highest value, then those of the two that are excluded.
RANGES = {
  'seed': (0, 2**32 - 1),
  'log_every': (1, _NONE),
  'data.num_train': (0, _NONE),
  'data.val_size': (0, _NONE),
  'data.batch_size': (1, _NONE),
  'data.image_size': (0, _NONE),
  'data.memory_gb': (0, _NONE),
  'data.workers': (0, _NONE),
  'train_attack.num_steps': (1, _NONE),
  'optimizer.learning_rate': (0, _NONE),
  'optimizer.momentum': (0, 1, 1),
  'optimizer.weight_decay': (0, _NONE),
  'optimizer.clip_norm': (0, _NONE),
  'optimizer.milestones': (0, 1, 0, 1),  # each of them
  'optimizer.decay': (0, 1, 0),
  'optimizer.warmup_epochs': (0, _NONE),
  'optimizer.epochs': (1, _NONE),
  'optimizer.ema_decay': (0, 1, 1),
  'optimizer.swa_start': (0, 1, 1),
  'optimizer.awp_gamma': (0, _NONE),
  'optimizer.awp_warmup_epochs': (0, _NONE),
  'optimizer.accumulate': (1, _NONE),
  'validation.every_epochs': (1, _NONE),
  'eval.num_examples': (0, _NONE),
  'eval.batch_size': (1, _NONE),
  'check.num_images': (1, _NONE),
  'save.every_steps': (1, _NONE),
  'save.keep': (1, _NONE),
}

# Methods whose inner maximization starts at a point of gradient 0.
_RANDOM_START = ('trades',)


def _one_of(name: str, value, options) -> None:
  if value not in options:
    choices = ', '.join(str(o) for o in options)
    raise UserError(f'{name}={value!r} is unknown; use one of: {choices}')


def check_range(key: str, value) -> None:
  """Checks a number, or each of a tuple, against RANGES.

  Raises:
    UserError: it is outside, or no finite number.
  """
  if isinstance(value, tuple | list):
    for each in value:
      check_range(key, each)
    return
  low, high, *excluded = RANGES[key]
  if not isinstance(value, (int, float)):
    raise UserError(f'{key}={value!r} must be a number')
  inside = math.isfinite(value) and low <= value <= high
  if inside and value not in excluded:
    return
  if high == math.inf:
    raise UserError(f'{key}={value} must be at least {low}')
  ends = f'{"(" if low in excluded else "["}{low}, {high}'
  ends += ')' if high in excluded else ']'
  raise UserError(f'{key}={value} must be in {ends}')


def _check_milestones(milestones) -> None:
  if list(milestones) != sorted(set(milestones)):
    raise UserError(
      f'optimizer.milestones={tuple(milestones)} must increase; sort them'
    )


def _check_choices(c: Config) -> None:
  _one_of(
    'train_attack.init', c.train_attack.init, ('zero', 'uniform', 'gaussian')
  )
  _one_of('train_attack.bn', c.train_attack.bn, ('eval', 'batch'))
  _one_of('precision', c.precision, ('float32', 'bfloat16'))
  _one_of('eval.checkpoint', c.eval.checkpoint, ('best', 'last'))
  _one_of(
    'eval.attack_precision', c.eval.attack_precision, ('float32', 'bfloat16')
  )
  _one_of('data.damaged', c.data.damaged, ('stop', 'skip'))
  _one_of('data.extra.labels', c.data.extra.labels, ('file', 'teacher'))
  _one_of('save.on_failure', c.save.on_failure, ('stop', 'go_on'))


def _check_teacher(group: str, given: Config) -> None:
  if given.set and given.checkpoint:
    raise UserError(
      f'{group}.set changes the config that trains a teacher, but '
      f'{group}.checkpoint={given.checkpoint!r} is trained already; leave one '
      'of them out'
    )
  if given.set and not given.config:
    raise UserError(
      f'{group}.set changes the config that trains a teacher; set '
      f'{group}.config to one'
    )


def validate(c: Config) -> None:
  """Checks all that can be checked without data and devices.

  Raises:
    UserError: the first mistake, naming the field, the value and the remedy.
  """
  for old in RENAMED:
    group, _, key = old.rpartition('.')
    if key in (c[group] if group else c):
      refuse_old_name(old)
  a = c.train_attack
  check_radii('train_attack', a.norm, a.epsilon, a.step_size)
  if c.eval.threat:
    _one_of('eval.threat', c.eval.threat, THREATS)
  check_radii('eval', *threat_model(c), norms=('linf', 'l2', 'l1'))
  _check_choices(c)
  if c.optimizer.ema_decay and c.optimizer.swa_start:
    raise UserError(
      f'optimizer.ema_decay={c.optimizer.ema_decay} and optimizer.swa_start='
      f'{c.optimizer.swa_start} are two ways to average; set one to 0'
    )
  for group in ('teacher', 'clean_teacher'):
    _check_teacher(group, c[group])
  for key in RANGES:
    group, _, name = key.rpartition('.')
    check_range(key, (c[group] if group else c)[name])
  _check_milestones(c.optimizer.milestones)
  if c.method.name in _RANDOM_START and c.train_attack.init == 'zero':
    raise UserError(
      f"train_attack.init='zero' moves no image with method {c.method.name!r}, "
      "whose gradient is 0 there; use 'gaussian' or 'uniform'"
    )
  for name in c.eval.suite:
    if not isinstance(name, str):
      raise UserError(
        f'eval.suite={tuple(c.eval.suite)} must hold names of attacks, such as '
        "('pgd-20',)"
      )
