"""Checks on what users write, before there are data and devices."""

from jax_robust_kd.config.defaults import Config
from jax_robust_kd.config.names import RENAMED, refuse_old_name
from jax_robust_kd.core import UserError
from jax_robust_kd.threat import THREATS, check_radii, threat_model


def _one_of(name: str, value, options) -> None:
  if value not in options:
    choices = ', '.join(str(o) for o in options)
    raise UserError(f'{name}={value!r} is unknown; use one of: {choices}')


def _at_least(name: str, value, least) -> None:
  if value < least:
    raise UserError(f'{name}={value} must be at least {least}')


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
  _one_of('optimizer.name', c.optimizer.name, ('sgd', 'adamw'))
  _one_of(
    'optimizer.schedule', c.optimizer.schedule, ('cosine', 'step', 'constant')
  )
  _one_of('optimizer.decay_on', c.optimizer.decay_on, ('kernels', 'all'))


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
  if not 0 <= c.optimizer.swa_start < 1:
    raise UserError(
      f'optimizer.swa_start={c.optimizer.swa_start} must be a share of the '
      'run in [0, 1)'
    )
  for name, value in (
    ('train_attack.num_steps', c.train_attack.num_steps),
    ('data.batch_size', c.data.batch_size),
    ('eval.batch_size', c.eval.batch_size),
    ('validation.every_epochs', c.validation.every_epochs),
    ('check.num_images', c.check.num_images),
    ('optimizer.epochs', c.optimizer.epochs),
    ('optimizer.accumulate', c.optimizer.accumulate),
    ('save.every_steps', c.save.every_steps),
    ('save.keep', c.save.keep),
    ('log_every', c.log_every),
  ):
    _at_least(name, value, 1)
  for name, value in (
    ('data.num_train', c.data.num_train),
    ('data.val_size', c.data.val_size),
    ('data.image_size', c.data.image_size),
    ('data.memory_gb', c.data.memory_gb),
    ('data.workers', c.data.workers),
    ('eval.num_examples', c.eval.num_examples),
    ('optimizer.learning_rate', c.optimizer.learning_rate),
    ('optimizer.weight_decay', c.optimizer.weight_decay),
    ('optimizer.warmup_epochs', c.optimizer.warmup_epochs),
    ('optimizer.awp_gamma', c.optimizer.awp_gamma),
    ('optimizer.awp_warmup_epochs', c.optimizer.awp_warmup_epochs),
  ):
    _at_least(name, value, 0)
