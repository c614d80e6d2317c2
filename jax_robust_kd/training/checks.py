"""Checks of a config that need to know attacks, batches and devices."""

import jax

from jax_robust_kd import data, threat
from jax_robust_kd.attacks import SUITES, suites
from jax_robust_kd.config import Config
from jax_robust_kd.core import UserError


def check_attacks(c: Config, mode: str) -> None:
  """Checks what attacks at the end, and in training what validates."""
  validates = (c.validation.attack,) if mode == 'train' else ()
  if c.validation.attack in SUITES and validates:
    raise UserError(
      f'validation.attack={c.validation.attack!r} is several attacks; choose '
      'one'
    )
  if not c.eval.suite:
    raise UserError("eval.suite=() attacks nothing; use such as ('pgd-20',)")
  for field, specs in (
    ('validation.attack', validates),
    ('eval.suite', tuple(c.eval.suite)),
  ):
    try:
      suites.plan_deterministic(specs, threat.make_budget(c))
    except UserError as error:
      raise UserError(f'{field}: {error}') from None


def check_num_examples(c: Config, dataset: data.Dataset) -> None:
  """Checks that there are as many test images as are asked for."""
  if c.eval.num_examples > len(dataset.test.label):
    raise UserError(
      f'eval.num_examples={c.eval.num_examples} is larger than the '
      f'{len(dataset.test.label)} test images; 0 takes all'
    )


def check_batches(c: Config) -> None:
  """Checks that batches divide over devices and parts."""
  devices = jax.device_count()
  data.check_divides('data', c.data.batch_size, devices)
  data.check_divides('eval', c.eval.batch_size, devices)
  size, parts = c.data.batch_size // devices, c.optimizer.accumulate
  if size % parts:
    raise UserError(
      f'optimizer.accumulate={parts} does not divide the {size} images of a '
      'device; use a divisor'
    )
  mixes = c.data.augment.mixup_alpha or c.data.augment.cutmix_alpha
  if mixes and size % 2:
    raise UserError(
      f'data.batch_size={c.data.batch_size} gives {devices} devices an odd '
      'number of images each; mixup and CutMix need an even one'
    )
